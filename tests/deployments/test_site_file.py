from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deployments.site_file import read_site_file
from domain.errors import InvalidSpec

SITE = {
    "environment": "staging",
    "openbao": {
        "address": "https://bao.example.org:8200",
        "ca_file": "/etc/infraflows/ca.pem",
        "role_id_file": "/etc/infraflows/role_id",
        "secret_id_file": "/etc/infraflows/secret_id",
    },
    "proxmox": {
        "url": "https://pve1.example.org:8006",
        "ca_file": "/etc/infraflows/ca.pem",
        "credential": "infraflows/staging/proxmox",
    },
    "git": {
        "url": "https://git.example.org/infrastructure.git",
        "ca_file": "/etc/infraflows/ca.pem",
        "credential": "infraflows/staging/git",
    },
    "dns": {
        "server": "10.0.0.2",
        "zone": "staging.example.org",
        "credential": "infraflows/staging/dns",
    },
    "state": {"url": "https://git.example.org/state", "credential": "infraflows/staging/state"},
    "toolchain": {"tofu": "/usr/bin/tofu", "provider_mirror": "/usr/share/providers"},
    "artifacts": {"url": "https://mirror.example.org/rke2"},
    "ledger": {"directory": "/var/lib/infraflows/ledger"},
    "prefect": {
        "api_url": "https://prefect.example.org/api",
        "ui_url": "https://prefect.example.org",
    },
}


def _written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_site_file_has_a_block_for_each_system(tmp_path: Path) -> None:
    from deployments.blocks import site_blocks

    site = read_site_file(_written(tmp_path, SITE))
    slugs = [block.get_block_type_slug() for block in site_blocks(site)]
    assert len(slugs) == len(set(slugs)) == 7


def test_no_field_of_a_site_file_could_hold_a_secret(tmp_path: Path) -> None:
    for word in ("password", "secret_id", "token"):
        wrong = {**SITE, "git": {**SITE["git"], word: "x"}}  # type: ignore[dict-item]
        with pytest.raises(InvalidSpec, match=f"git.{word}"):
            read_site_file(_written(tmp_path, wrong))


def test_every_problem_of_a_site_file_is_told_at_once(tmp_path: Path) -> None:
    wrong = {key: value for key, value in SITE.items() if key != "dns"}
    wrong["proxmox"] = {"url": "https://pve1.example.org:8006"}
    with pytest.raises(InvalidSpec) as caught:
        read_site_file(_written(tmp_path, wrong))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "proxmox.ca_file",
        "proxmox.credential",
        "dns",
    ]


def test_applications_are_converged_by_night_where_there_are_any(tmp_path: Path) -> None:
    from deployments.setup import schedules

    system = {"url": "https://x.example.org", "ca_file": "", "credential": "infraflows/x"}
    onboarding = {
        "gitlab": system,
        "harbor": {**system, "registry": "x.example.org"},
        "gitops": system,
        "gateway_url": "https://gateway.example.org",
        "platform": {
            "clusters": {"staging": "demo"},
            "domain": "apps.example.org",
            "ingress_address": "192.0.2.1",
            "database_credential": "infraflows/staging/database",
        },
    }
    without = schedules(read_site_file(_written(tmp_path, SITE)))
    assert without == [("rotate-secrets/nightly", "0 1 * * *", True)]
    found = schedules(read_site_file(_written(tmp_path, {**SITE, "onboarding": onboarding})))
    assert found == [*without, ("converge-apps/default", "0 3 * * *", True)]
