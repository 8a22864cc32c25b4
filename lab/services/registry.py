"""The OCI registry behind Harbor as a service: the distribution's own docker-registry.

It listens on the loopback address of the lab's namespace only and asks nobody for a password:
Harbor stands before it.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from lab.layout import REGISTRY_PORT, Layout
from lab.services.files import PRIVATE, private_directory, write_atomically, write_if_changed
from lab.services.https_probe import reason_not_ok
from lab.services.service import Launch, Service

PROGRAM = "docker-registry"
ADDRESS = "127.0.0.1"


def registry_directory(layout: Layout) -> Path:
    return layout.harbor_directory / "registry"


def registry_url() -> str:
    return f"http://{ADDRESS}:{REGISTRY_PORT}"


def configuration(directory: Path, address: str, secret: str) -> str:
    """The registry's configuration; YAML reads JSON, too."""
    document: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "storage")},
            "delete": {"enabled": True},
        },
        # Relative: what it answers must be right behind Harbor's address. The secret signs the
        # state of uploads, which go on after a restart.
        "http": {"addr": address, "relativeurls": True, "secret": secret},
    }
    return json.dumps(document, indent=2)


def prepare_directory(directory: Path, address: str) -> Path:
    """Make the storage and the configuration; returns the latter's file."""
    private_directory(directory)
    private_directory(directory / "storage")
    secret_file = directory / "secret"
    if not secret_file.exists():
        write_atomically(secret_file, secrets.token_hex(32), PRIVATE)
    text = configuration(directory, address, secret_file.read_text(encoding="ascii"))
    write_if_changed(directory / "config.yml", text, mode=PRIVATE)
    return directory / "config.yml"


def prepare(layout: Layout) -> None:
    private_directory(layout.harbor_directory)
    prepare_directory(registry_directory(layout), f"{ADDRESS}:{REGISTRY_PORT}")


def launch(layout: Layout) -> Launch:
    config = registry_directory(layout) / "config.yml"
    return Launch(command=[PROGRAM, "serve", str(config)], directory=registry_directory(layout))


def is_healthy(layout: Layout) -> str | None:
    return reason_not_ok(layout, f"{registry_url()}/v2/")


SERVICE = Service(
    name="registry",
    summary="OCI registry behind Harbor",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    programs=(PROGRAM,),
)
