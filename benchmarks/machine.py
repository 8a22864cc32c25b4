"""What a measurement was made on and with: figures mean nothing without it. No name, no path."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.results import Machine
from benchmarks.sizes import KUBERNETES_VERSION
from lab.toolchain.paths import PROVIDER_VERSION, tool

_PACKAGES = ("prefect", "ansible-core")


def _memory_gib() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            return round(int(line.split()[1]) / 1024**2, 1)
    return 0.0


def _tofu_version() -> str:
    # Its home is nowhere, so that no person's settings are read.
    done = subprocess.run(
        [str(tool("tofu")), "version", "-json"],
        capture_output=True,
        text=True,
        check=True,
        env={"CHECKPOINT_DISABLE": "1", "HOME": "/nonexistent"},
    )
    return str(json.loads(done.stdout)["terraform_version"])


def this_machine() -> Machine:
    """Return the facts of this machine."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gib=_memory_gib(),
        # What follows the numbers names whoever built the kernel.
        kernel=platform.release().partition("-")[0],
        architecture=platform.machine(),
        measured_on=datetime.now(UTC).date().isoformat(),
        versions={
            "Python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            "OpenTofu": _tofu_version(),
            "provider bpg/proxmox": PROVIDER_VERSION,
            "Kubernetes": KUBERNETES_VERSION,
        },
    )
