"""Asking a service of the lab over HTTP from inside its network namespace.

What it refuses: proxies and CA bundles of the caller's environment; only the lab's CA counts.
"""

from __future__ import annotations

import ssl
from typing import Any

import httpx

from lab.layout import Layout
from lab.services.namespace import inside


def request(
    layout: Layout,
    method: str,
    url: str,
    *,
    json: Any = None,
    headers: dict[str, str] | None = None,
    timeout_seconds: float = 5.0,
) -> httpx.Response:
    verify: ssl.SSLContext | bool = False
    if url.startswith("https:"):
        verify = ssl.create_default_context(cafile=str(layout.ca_file))
    with (
        inside(layout.namespace_path),
        httpx.Client(verify=verify, trust_env=False, timeout=timeout_seconds) as client,
    ):
        return client.request(method, url, json=json, headers=headers)


def reason_not_ok(layout: Layout, url: str, *, expected: tuple[int, ...] = (200,)) -> str | None:
    """None if the URL answers with an expected status, else why not."""
    try:
        status = request(layout, "GET", url, timeout_seconds=3.0).status_code
    except (httpx.HTTPError, OSError) as error:
        return f"no answer from {url} ({type(error).__name__})"
    return None if status in expected else f"{url} answers {status}"


def reason_not_ok_from_host(url: str) -> str | None:
    """The same, asked from the machine itself as a browser would."""
    try:
        status = httpx.get(url, timeout=3.0, trust_env=False).status_code
    except (httpx.HTTPError, OSError) as error:
        return f"no answer from {url} ({type(error).__name__})"
    return None if status == 200 else f"{url} answers {status}"
