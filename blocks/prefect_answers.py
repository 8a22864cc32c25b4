"""How Prefect's client says that its server does not answer: the only place that knows its HTTP."""

from __future__ import annotations

import httpx

NO_ANSWER: tuple[type[Exception], ...] = (httpx.TransportError, OSError, RuntimeError)
"""The client's own words for a server that it cannot reach at its start are a `RuntimeError`."""
