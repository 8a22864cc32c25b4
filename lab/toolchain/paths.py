"""Where the lab's built things lie.

Why: every part of the lab asks here for a program, the guest image or the RKE2 artefacts, so that
one environment variable (`INFRAFLOWS_CACHE`) moves all of it. Promises: the functions are cheap and
touch nothing. Refuses: to guess; a program that was not built is an error that says how to build
it.
"""

import os
import shutil
import sys
from pathlib import Path

PROVIDER_VERSION = "0.111.1"
RKE2_VERSION = "v1.36.3+rke2r1"

# Programs that come as Python wheels and lie beside the interpreter.
_WHEEL_TOOLS = frozenset({"bao", "kubectl"})


class NotBuiltError(RuntimeError):
    """A built thing is asked for that is not there yet."""


def cache_dir() -> Path:
    """The root of everything that is built once and shared by all checkouts of the machine."""
    return Path(os.environ.get("INFRAFLOWS_CACHE") or "/var/cache/infraflows")


def bin_dir() -> Path:
    """The directory of symlinks to the current builds."""
    return cache_dir() / "bin"


def tool(name: str) -> Path:
    """The program `name`: of the pinned builds, or of the wheels in this Python environment."""
    if name in _WHEEL_TOOLS:
        found = shutil.which(name, path=str(Path(sys.prefix) / "bin"))
        if found is None:
            raise NotBuiltError(
                f"Unable to find {name}: it is not in {sys.prefix}/bin. Run lab/setup.sh."
            )
        return Path(found)
    path = bin_dir() / name
    if not path.exists():
        raise NotBuiltError(
            f"Unable to find {name}: {path} does not exist. "
            "Run `python -m lab.toolchain build tools --tests`."
        )
    return path


def provider_mirror() -> Path:
    """The directory that OpenTofu's CLI configuration names as `filesystem_mirror`."""
    return cache_dir() / "providers"


def provider_dir() -> Path:
    """The place inside the mirror where OpenTofu looks for the Proxmox provider."""
    source = Path("registry.opentofu.org") / "bpg" / "proxmox" / PROVIDER_VERSION / "linux_amd64"
    return provider_mirror() / source


def guest_image() -> Path:
    """The guest's root file system, the read-only lower layer of every clone."""
    path = cache_dir() / "image" / "current"
    if not path.exists():
        raise NotBuiltError(
            f"Unable to find the guest image: {path} does not exist. "
            "Run `python -m lab.toolchain build image`."
        )
    return path.resolve()


def rke2_artifacts() -> Path:
    """The directory that the artefact mirror serves as `/rke2`; one folder per version in it."""
    return cache_dir() / "rke2"
