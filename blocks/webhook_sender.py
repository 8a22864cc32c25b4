"""Asking our own gateway for something, by the way that everybody comes: a signed delivery.

Exists so that a flow never writes into the gateway's queue beside its one writer. Promises TLS
that is verified and that a 2xx means stored. Refuses redirects: the signature is for the gateway.
"""

from __future__ import annotations

import json
import ssl
import time
import uuid
from collections.abc import Mapping
from typing import Any

import httpx

from domain.errors import NotFound, PermanentError, Unauthorized, Unreachable
from domain.webhooks.gitlab_events import RECONCILE_KIND
from domain.webhooks.signatures import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    decoded_key,
    sign,
)

TIMEOUT_SECONDS = 15.0


def ask_to_look(
    address: str, ca_file: str, signing_key: str, project_id: int, kind: str = RECONCILE_KIND
) -> None:
    """Have the gateway compare the head of a project with what was onboarded.

    Raises:
        Unreachable: it does not answer, or cannot store it now. Unauthorized: it does not believe
        the key. NotFound: it does not know the project.
    """
    deliver(
        address,
        ca_file,
        signing_key,
        {"object_kind": kind, "project_id": project_id},
        f"ask the gateway about project {project_id}",
    )


def deliver(
    address: str, ca_file: str, signing_key: str, event: Mapping[str, Any], act: str
) -> None:
    """Deliver an event, signed with a project's key."""
    body = json.dumps(event).encode()
    message_id, now = f"infraflows-{uuid.uuid4()}", int(time.time())
    headers = {
        "content-type": "application/json",
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(now),
        SIGNATURE_HEADER: sign(decoded_key(signing_key), message_id, now, body),
    }
    context = ssl.create_default_context(cafile=ca_file or None)
    failed = f"Unable to {act}"
    try:
        with httpx.Client(
            verify=context, trust_env=False, timeout=TIMEOUT_SECONDS, follow_redirects=False
        ) as client:
            status = client.post(address, content=body, headers=headers).status_code
    except httpx.HTTPError as error:
        raise Unreachable(
            f"{failed}: no answer of {address} ({type(error).__name__}). Check the gateway."
        ) from None
    if 200 <= status < 300:
        return
    if status == 401:
        raise Unauthorized(f"{failed}: it does not believe the signing key. Connect the project.")
    if status == 404:
        raise NotFound(f"{failed}: it does not know the project. Connect the project.")
    if status in (408, 429) or status >= 500:
        raise Unreachable(f"{failed}: it answered {status}. Read its log.")
    raise PermanentError(f"{failed}: it answered {status}. Check the gateway's address.")
