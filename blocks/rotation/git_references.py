"""What every Git client asks first, with a credential that is tried.

Why it exists: several classes prove by it that a credential reads a repository, or no longer does.
Refuses addresses that are not HTTPS, and redirects: the password would go elsewhere.
"""

from __future__ import annotations

import ssl

import httpx

from domain.errors import PolicyViolation, Unreachable
from domain.rotation.contract import Values

TIMEOUT_SECONDS = 15.0


def references_status(url: str, ca_file: str | None, values: Values, asked_for: str) -> int:
    """Return the HTTP status of listing a repository's references as `values`' user.

    Raises:
        PolicyViolation: not HTTPS. Unreachable: no answer; `asked_for` names the secret.
    """
    if not url.startswith("https://"):
        raise PolicyViolation(
            f"Unable to send a password of {asked_for} to {url}: it is not HTTPS. Correct the "
            "address."
        )
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/info/refs",
            params={"service": "git-upload-pack"},
            auth=(values["username"], values["password"]),
            verify=ssl.create_default_context(cafile=ca_file or None),
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise Unreachable(
            f"Unable to reach the Git server of {asked_for}: {type(error).__name__}. Check its "
            "address and the network."
        ) from None
    return answer.status_code
