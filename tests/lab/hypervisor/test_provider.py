"""The real OpenTofu and the real Proxmox provider against the simulated API."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.toolchain.paths import NotBuiltError, provider_mirror, tool

MAIN = """
terraform {
  required_providers {
    proxmox = {
      source  = "bpg/proxmox"
      version = "0.111.1"
    }
  }
}

provider "proxmox" {
  endpoint = "%(endpoint)s/"
}

variable "disk_gib" {
  type    = number
  default = 8
}

variable "cores" {
  type    = number
  default = 2
}

resource "proxmox_virtual_environment_pool" "lab" {
  pool_id = "demo"
  comment = "made by a test"
}

resource "proxmox_virtual_environment_vm" "machine" {
  for_each  = { server-1 = ["pve1", 101], server-2 = ["pve2", 102], server-3 = ["pve3", 103] }
  name      = "demo-${each.key}"
  vm_id     = each.value[1]
  node_name = each.value[0]
  pool_id   = proxmox_virtual_environment_pool.lab.pool_id
  tags      = ["demo", "infraflows"]

  stop_on_destroy     = true
  reboot_after_update = true

  clone {
    vm_id        = 9000
    node_name    = "pve1"
    datastore_id = "vmstore"
    full         = true
    retries      = 1
  }

  agent {
    enabled = true
    timeout = "10s"
  }

  cpu {
    cores = var.cores
    type  = "x86-64-v2-AES"
  }

  memory {
    dedicated = 2048
  }

  disk {
    datastore_id = "vmstore"
    interface    = "scsi0"
    size         = var.disk_gib
    discard      = "on"
    iothread     = true
  }

  network_device {
    bridge  = "vmbr0"
    vlan_id = 30
  }

  operating_system {
    type = "l26"
  }

  serial_device {}

  initialization {
    datastore_id = "vmstore"
    interface    = "ide2"
    dns {
      domain  = "lab.internal"
      servers = ["10.1.0.1", "10.1.0.2"]
    }
    ip_config {
      ipv4 {
        address = "10.1.0.${each.value[1]}/24"
        gateway = "10.1.0.1"
      }
    }
    user_account {
      username = "infraflows"
      keys     = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0Ud1Ygr9yP4l8s3zI4bDL3QmMsbnR1s5qC a b"]
    }
  }

  lifecycle {
    ignore_changes = [initialization[0].upgrade]
  }
}
"""


class Tofu:
    """OpenTofu in a folder of its own, pointed at a cluster."""

    def __init__(self, directory: Path, cluster: Any, secret: str, token: str) -> None:
        self._directory = directory
        directory.mkdir()
        (directory / "main.tf").write_text(MAIN % {"endpoint": cluster.url})
        mirror = f'filesystem_mirror {{\n path = "{provider_mirror()}"\n }}'
        (directory / "cli.tfrc").write_text(
            f'provider_installation {{\n {mirror}\n direct {{\n exclude = ["*/*/*"]\n }}\n}}\n'
        )
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TF_CLI_CONFIG_FILE": str(directory / "cli.tfrc"),
            "TF_IN_AUTOMATION": "1",
            "SSL_CERT_FILE": str(cluster.certificate),
            "PROXMOX_VE_API_TOKEN": f"{token}={secret}",
        }

    def run(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [str(tool("tofu")), *arguments],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def ok(self, *arguments: str) -> str:
        code, text = self.run(*arguments)
        assert code == 0, text
        return text


@pytest.fixture
def tofu(cluster: Any, tmp_path: Path) -> Tofu:
    try:
        tool("tofu")
    except NotBuiltError as error:
        pytest.skip(str(error))
    made = Tofu(
        tmp_path / "tofu", cluster, "8f6f3f5e-0b43-4f0c-9a39-5d5a1f2b7a11", "infraflows@pve!worker"
    )
    made.ok("init", "-no-color")
    return made


def test_the_provider_creates_resizes_and_destroys_three_machines(tofu: Tofu, cluster: Any) -> None:
    applied = tofu.ok("apply", "-auto-approve", "-no-color")
    assert "Warning" not in applied, applied
    assert sorted(cluster.runtime.guests) == [101, 102, 103]
    assert cluster.runtime.guests[102].addresses == ("10.1.0.102/24",)
    assert cluster.runtime.disks["vmstore.vm-101-disk-0"]["size"] == 8 * 1024**3

    code, text = tofu.run("plan", "-detailed-exitcode", "-no-color")
    assert code == 0, text

    grown = tofu.ok("apply", "-auto-approve", "-no-color", "-var=disk_gib=12", "-var=cores=4")
    assert "3 changed" in grown
    assert cluster.runtime.disks["vmstore.vm-103-disk-0"]["size"] == 12 * 1024**3
    assert cluster.runtime.guests[103].cores == 4
    code, text = tofu.run(
        "plan", "-detailed-exitcode", "-no-color", "-var=disk_gib=12", "-var=cores=4"
    )
    assert code == 0, text

    tofu.ok("destroy", "-auto-approve", "-no-color")
    assert cluster.runtime.guests == {}
    assert [vm["vmid"] for vm in cluster.get("/cluster/resources", type="vm")] == [9000]
    assert cluster.get("/pools") == []
    assert list(cluster.runtime.disks) == ["vmstore.base-9000-disk-0"]


def test_a_machine_that_vanished_is_planned_again(tofu: Tofu, cluster: Any) -> None:
    tofu.ok("apply", "-auto-approve", "-no-color")
    cluster.run("POST", "/nodes/pve2/qemu/102/status/stop")
    assert cluster.run("DELETE", "/nodes/pve2/qemu/102", purge=1) == "OK"
    tofu.run("plan", "-no-color", "-out=plan.bin")
    plan = json.loads(tofu.ok("show", "-json", "plan.bin"))
    acts = {
        change["address"]: change["change"]["actions"]
        for change in plan["resource_changes"]
        if change["change"]["actions"] != ["no-op"]
    }
    assert acts == {'proxmox_virtual_environment_vm.machine["server-2"]': ["create"]}


def test_a_full_storage_is_an_error_that_names_it(tofu: Tofu, cluster: Any) -> None:
    cluster.fault("storage-full", storage="vmstore")
    code, text = tofu.run("apply", "-auto-approve", "-no-color")
    assert code == 1
    assert "out of space" in text
    assert [vm["vmid"] for vm in cluster.get("/cluster/resources", type="vm")] == [9000]
