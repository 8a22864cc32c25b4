"""Builds the guests' golden image: a Debian root file system that every clone starts from.

Why: the lab's machines are real Debian systems booted from an overlay over this tree. Promises: one
image per content of `guest/`, complete or absent; the packages are installed in mount and PID
namespaces of their own, so that a killed build leaves no mount behind. Refuses: to run without
root.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

from lab.toolchain.content import content_hash, exclusive, file_parts, link, staged
from lab.toolchain.gobuild import BuildError, Say
from lab.toolchain.paths import cache_dir

GUEST_DIR = Path(__file__).parent / "guest"
SUITE = "bookworm"
# Raised by whoever changes what the code below puts into the image.
_RECIPE = "1"
_ATTEMPTS = 3
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT_SOURCES = (
    "deb {mirror} {suite} main\ndeb {mirror} {suite}-updates main\n"
    "deb {mirror}-security {suite}-security main\n"
)


def debian_mirror() -> str:
    """Debian's mirror; a site without internet names its own by `INFRAFLOWS_DEBIAN_MIRROR`."""
    return os.environ.get("INFRAFLOWS_DEBIAN_MIRROR") or "http://deb.debian.org/debian"


def image_hash(guest_dir: Path = GUEST_DIR) -> str:
    """Names the image by its package list, its files and the script that configures it."""
    files = [path for path in guest_dir.rglob("*") if path.is_file()]
    return content_hash((SUITE, _RECIPE, *file_parts(guest_dir, files)))


def build_image(say: Say) -> Path:
    """The directory of the image, built now if it is not there; `image/current` points at it."""
    images = cache_dir() / "image"
    root = images / f"{SUITE}-{image_hash()}"
    with exclusive("image"):
        if not (root / "usr/bin/cloud-init").exists():
            if os.geteuid() != 0:
                raise BuildError("Unable to build the guest image: it takes root. Run as root.")
            started = time.monotonic()
            say("image: installing Debian with its packages")
            with staged(root) as stage:
                _populate(stage)
            say(f"image: built in {time.monotonic() - started:.0f} s")
        link(images / "current", Path(root.name))
    return root


def _populate(stage: Path) -> None:
    stage.chmod(0o755)
    log = cache_dir() / "image" / "build.log"
    debootstrap = ["debootstrap", "--variant=minbase", f"--keyring={_KEYRING}"]
    debootstrap += ["--include=ca-certificates", SUITE, str(stage), debian_mirror()]
    for attempt in range(1, _ATTEMPTS + 1):
        log.unlink(missing_ok=True)
        if _isolated(debootstrap, log):
            break
        if attempt == _ATTEMPTS:
            raise BuildError(f"Unable to install Debian: {_tail(log)}. The whole log is {log}.")
        _empty(stage)
        time.sleep(5 * attempt)
    _lend_machine_settings(stage)
    shutil.copytree(GUEST_DIR / "files", stage, dirs_exist_ok=True)
    build = stage / "build"
    build.mkdir()
    shutil.copy(GUEST_DIR / "packages.txt", build)
    shutil.copy(GUEST_DIR / "configure.sh", build)
    mount_proc = f"--mount-proc={stage / 'proc'}"
    for attempt in range(1, _ATTEMPTS + 1):
        # `configure.sh` may be run again over a half-installed tree: apt continues.
        if _isolated(["chroot", str(stage), "/build/configure.sh"], log, mount_proc):
            break
        if attempt == _ATTEMPTS:
            raise BuildError(f"Unable to configure the image: {_tail(log)}. The log is {log}.")
        time.sleep(5 * attempt)
    shutil.rmtree(build)


def _isolated(command: list[str], log: Path, *options: str) -> bool:
    """Run in own mount and PID namespaces: when the command dies, so does all that it started."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    env |= {name: os.environ[name] for name in ("http_proxy", "https_proxy") if name in os.environ}
    isolate = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *options, "--"]
    with log.open("ab") as output:
        done = subprocess.run(
            [*isolate, *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode == 0


def _lend_machine_settings(stage: Path) -> None:
    """The way to the mirror, for the time of the build; `configure.sh` takes it away again."""
    sources = _APT_SOURCES.format(mirror=debian_mirror(), suite=SUITE)
    (stage / "etc/apt/sources.list").write_text(sources)
    (stage / "etc/resolv.conf").unlink(missing_ok=True)
    shutil.copy("/etc/resolv.conf", stage / "etc/resolv.conf")


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-5:])
