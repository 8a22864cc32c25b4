"""The lab's own passwords and tokens: made once, kept in files that only root reads.

A real site has these from its administrators. What the product needs of them is put into OpenBao
by the lab's set-up; the product itself never reads these files.
"""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from lab.layout import GATEWAY, POSTGRESQL_PORT, Layout
from lab.services.files import PRIVATE, private_directory, write_atomically

PROXMOX_TOKEN_ID = "infraflows@pve!worker"  # noqa: S105 - a token's public name
ADMIN_TOKEN_ID = "administrator@pve!lab"  # noqa: S105 - a token's public name
TSIG_KEY_NAME = "infraflows"
TSIG_ALGORITHM = "hmac-sha256"
DATABASE_PROVISIONER = "provisioner"
"""Makes tenants' databases and owner roles."""
DATABASE_ISSUER = "openbao"
"""OpenBao's own login: makes short-lived users in the owner roles, and nothing else."""

Credential = Mapping[str, str]


def _password() -> str:
    return secrets.token_urlsafe(24)


def _database_login(username: str) -> dict[str, str]:
    return {
        "host": GATEWAY,
        "port": str(POSTGRESQL_PORT),
        # Where it logs in to look after the others; it holds nothing.
        "database": "postgres",
        "username": username,
        "password": _password(),
    }


_MAKERS: Mapping[str, Callable[[], dict[str, str]]] = {
    "proxmox": lambda: {"token_id": PROXMOX_TOKEN_ID, "token_secret": str(uuid.uuid4())},
    "proxmox-admin": lambda: {"token_id": ADMIN_TOKEN_ID, "token_secret": str(uuid.uuid4())},
    "git": lambda: {"username": "infraflows", "password": _password()},
    "state": lambda: {"username": "infraflows", "password": _password()},
    "dns": lambda: {
        "key_name": TSIG_KEY_NAME,
        "algorithm": TSIG_ALGORITHM,
        "secret": base64.b64encode(secrets.token_bytes(32)).decode("ascii"),
    },
    "postgresql": lambda: {"username": "prefect", "password": _password()},
    "gitlab": lambda: {"token": f"glpat-{secrets.token_hex(10)}"},
    # Of the person who looks after GitLab: the product never sees it.
    "gitlab-root": lambda: {"token": f"glpat-{secrets.token_hex(10)}"},
    "harbor": lambda: {"username": "infraflows", "password": _password()},
    "database": lambda: _database_login(DATABASE_PROVISIONER),
    # OpenBao alone logs in with it: a leak of the product's login does not reach it.
    "database-issuer": lambda: _database_login(DATABASE_ISSUER),
    "alertmanager": lambda: {"username": "alertmanager", "password": _password()},
}

# What the product reads from OpenBao, by the name of the secret under infraflows/<environment>/.
GIVEN_TO_THE_PRODUCT = (
    "proxmox",
    "git",
    "dns",
    "state",
    "gitlab",
    "harbor",
    "database",
)


def credential_file(layout: Layout, name: str) -> Path:
    return layout.secrets_directory / f"{name}.json"


def ensure_credentials(layout: Layout) -> None:
    private_directory(layout.secrets_directory)
    for name, make in _MAKERS.items():
        path = credential_file(layout, name)
        if not path.exists():
            write_atomically(path, json.dumps(make()), PRIVATE)


def credential(layout: Layout, name: str) -> Credential:
    data: dict[str, str] = json.loads(credential_file(layout, name).read_text(encoding="utf-8"))
    return data
