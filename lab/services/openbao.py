"""OpenBao as a service: its configuration, start, unsealing and health.

A production server, not dev mode: integrated (raft) storage, TLS, the audit device on, initialised
and unsealed by the lab. Its unseal key and root token lie in the lab's home, for root's eyes only.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx

from lab.layout import GATEWAY, OPENBAO_PORT, Layout
from lab.services.files import PRIVATE, private_directory, write_atomically, write_if_changed
from lab.services.https_probe import request
from lab.services.openbao_setup import (
    configure,
    initialise,
    is_configured,
    is_initialised_without_keys,
    root_client,
    unseal,
)
from lab.services.service import BrokenOnPurpose, Launch, Service
from lab.toolchain.paths import tool

_CONFIGURATION = """\
ui            = true
disable_mlock = true
log_level     = "info"
api_addr      = "https://{address}:{port}"
cluster_addr  = "https://{address}:{cluster_port}"

storage "raft" {{
  path                   = "{directory}/raft"
  node_id                = "lab"
  performance_multiplier = 1
}}

listener "tcp" {{
  address         = "{address}:{port}"
  cluster_address = "{address}:{cluster_port}"
  tls_cert_file   = "{certificate}"
  tls_key_file    = "{key}"
  tls_min_version = "tls12"
}}

audit "file" "to-file" {{
  description = "every request and answer; secret values as HMAC"
  options {{
    file_path = "{audit_log}"
    mode      = "0600"
  }}
}}
"""


def sealed_on_purpose_file(layout: Layout) -> Path:
    """Its presence says that a person sealed it (`break openbao-sealed`): leave it so."""
    return layout.openbao_directory / "sealed-on-purpose"


def audit_log(layout: Layout) -> Path:
    return layout.log_file("openbao-audit")


def prepare(layout: Layout) -> None:
    directory = private_directory(layout.openbao_directory)
    if is_initialised_without_keys(layout):
        shutil.rmtree(directory / "raft", ignore_errors=True)
    private_directory(directory / "raft")
    layout.log_directory.mkdir(parents=True, exist_ok=True)
    write_if_changed(
        directory / "openbao.hcl",
        _CONFIGURATION.format(
            address=GATEWAY,
            port=OPENBAO_PORT,
            cluster_port=OPENBAO_PORT + 1,
            directory=directory,
            certificate=layout.server_certificate_file,
            key=layout.server_key_file,
            audit_log=audit_log(layout),
        ),
        mode=PRIVATE,
    )


def launch(layout: Layout) -> Launch:
    return Launch(
        command=[
            str(tool("bao")),
            "server",
            f"-config={layout.openbao_directory / 'openbao.hcl'}",
        ]
    )


def _health(layout: Layout) -> dict[str, bool] | None:
    url = f"{layout.openbao_url}/v1/sys/health"
    try:
        data = request(layout, "GET", url, timeout_seconds=3.0).json()
    except (httpx.HTTPError, OSError, ValueError):
        return None
    return data if isinstance(data, dict) and "sealed" in data else None


def answers(layout: Layout) -> str | None:
    return None if _health(layout) else f"no answer from {layout.openbao_url}"


def is_healthy(layout: Layout) -> str | None:
    health = _health(layout)
    if health is None:
        return f"no answer from {layout.openbao_url}"
    if health["sealed"]:
        if sealed_on_purpose_file(layout).exists():
            return "sealed on purpose; `infraflows-lab break --clear` unseals it"
        return "sealed"
    if health["standby"]:
        return "standby: it has not become the leader yet"
    return None


def settle(layout: Layout) -> None:
    if sealed_on_purpose_file(layout).exists():
        raise BrokenOnPurpose(
            "Unable to unseal openbao: it was sealed on purpose. "
            "Run `infraflows-lab break --clear openbao-sealed`."
        )
    initialise(layout)
    unseal(layout)
    if not is_configured(layout):
        configure(layout)


def seal(layout: Layout) -> None:
    write_atomically(sealed_on_purpose_file(layout), "")
    root_client(layout).call("PUT", "sys/seal")


def clear_seal(layout: Layout) -> bool:
    """Unseal what was sealed on purpose. False if nothing was."""
    marker = sealed_on_purpose_file(layout)
    if not marker.exists():
        return False
    marker.unlink()
    if answers(layout) is None:
        unseal(layout)
    return True


SERVICE = Service(
    name="openbao",
    summary="OpenBao: secrets, transit keys, SSH certificates",
    launch=launch,
    prepare=prepare,
    answers=answers,
    settle=settle,
    is_healthy=is_healthy,
    programs=("bao",),
    start_timeout_seconds=60,
)
