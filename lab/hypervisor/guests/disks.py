"""The guests' disks: sparse XFS image files, each holding what differs from the golden image.

Why: a guest's disk must have a true size (a full disk is full, `df` inside shows what the API
says), grow while the guest runs, and be copied as one thing. XFS grows online from outside, and an
image file is copied by its used blocks alone.

Promises: a disk appears and changes whole or not at all (every copy is made beside and renamed);
the copy of a running guest's disk is taken while its file system stands still, by a child process
that lets it go again even when the caller is killed meanwhile.
Refuses: to shrink a disk, and to replace or delete one that a guest has mounted.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from lab.hypervisor.guest_runtime import GuestRuntimeError

SMALLEST_BYTES = 300 * 1024 * 1024  # mkfs.xfs refuses less
BASE_ATTRIBUTE = "user.infraflows.base"
DETACH_SECONDS = 15.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

# Copies "$2" to "$3" and puts the copy in place as "$4"; stands the file system "$1" still
# meanwhile unless that is empty.
_COPY = """
trap '' INT TERM HUP
if [ -n "$1" ]; then fsfreeze --freeze "$1" || exit 1; fi
cp --sparse=always --reflink=auto --preserve=xattr "$2" "$3"; code=$?
if [ -n "$1" ]; then fsfreeze --unfreeze "$1"; fi
if [ $code -ne 0 ]; then rm -f "$3"; exit $code; fi
mv -f "$3" "$4"
"""


class DiskStore:
    """The image files under one directory."""

    def __init__(
        self, directory: Path, image: Path, mounted_by: Callable[[Path], tuple[int, Path] | None]
    ) -> None:
        """`mounted_by` tells for an image file the process whose mounts show it, and where."""
        self._disks = directory / "disks"
        self._snapshots = directory / "snapshots"
        self._image = image
        self._mounted_by = mounted_by
        self._disks.mkdir(parents=True, exist_ok=True)
        self._snapshots.mkdir(parents=True, exist_ok=True)

    def path(self, disk_id: str) -> Path:
        """The image file of a disk (which need not exist)."""
        return self._disks / f"{_checked(disk_id)}.img"

    def base(self, disk_id: str) -> Path:
        """The golden image under the disk: the very one that it was made from."""
        try:
            return Path(os.getxattr(self._existing(disk_id), BASE_ATTRIBUTE).decode())
        except OSError as error:
            raise GuestRuntimeError(
                f"Unable to use disk {disk_id}: it does not tell its base image. "
                "Make the disk anew."
            ) from error

    def create(self, disk_id: str, size_bytes: int, source: str | None) -> None:
        """Make a disk from the golden image or from another disk; an existing one is kept."""
        target = self.path(disk_id)
        if target.exists():
            return
        if source is None:
            self._format(target, size_bytes)
            return
        partial = _beside(target)
        self._copy(self._existing(source), partial, partial.with_suffix(".copied"))
        copied = partial.with_suffix(".copied")
        if size_bytes > copied.stat().st_size:
            os.truncate(copied, size_bytes)
        copied.replace(target)

    def resize(self, disk_id: str, size_bytes: int) -> None:
        """Grow a disk; a running guest sees it at once, a stopped one when it next starts."""
        image = self._existing(disk_id)
        present_bytes = image.stat().st_size
        if size_bytes < present_bytes:
            raise GuestRuntimeError(
                f"Unable to resize disk {disk_id}: shrinking {present_bytes} to {size_bytes} bytes "
                "is not supported. Give a larger size."
            )
        os.truncate(image, size_bytes)
        holder = self._mounted_by(image)
        if holder is not None:
            for device in loop_devices(image):
                _run(["losetup", "--set-capacity", device])
            pid, mountpoint = holder
            _run([*_mounts_of(pid), "xfs_growfs", str(mountpoint)])

    def delete(self, disk_id: str) -> None:
        """Remove a disk and its snapshots."""
        image = self.path(disk_id)
        if image.exists():
            self._await_detached(image, f"delete disk {disk_id}")
        image.unlink(missing_ok=True)
        for partial in self._disks.glob(f".{image.name}.*"):
            partial.unlink(missing_ok=True)
        shutil.rmtree(self._snapshots / _checked(disk_id), ignore_errors=True)

    def snapshot(self, disk_id: str, name: str) -> None:
        """Keep the disk's content; a snapshot that exists already is kept as it is."""
        target = self._snapshot(disk_id, name)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            self._copy(self._existing(disk_id), _beside(target), target)

    def rollback(self, disk_id: str, name: str) -> None:
        """Put a snapshot's content back; the size becomes that of then."""
        kept = self._snapshot(disk_id, name)
        if not kept.exists():
            raise GuestRuntimeError(
                f"Unable to roll back disk {disk_id}: it has no snapshot {name}. "
                "List the snapshots and choose one of them."
            )
        image = self._existing(disk_id)
        self._await_detached(image, f"roll back disk {disk_id}")
        self._copy(kept, _beside(image), image)

    def delete_snapshot(self, disk_id: str, name: str) -> None:
        """Forget a snapshot."""
        target = self._snapshot(disk_id, name)
        target.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            target.parent.rmdir()

    def discard_partial_copies(self) -> None:
        """Remove what copies left that were cut off; one still at work then ends without effect."""
        for partial in (*self._disks.glob(".*"), *self._snapshots.glob("*/.*")):
            partial.unlink(missing_ok=True)

    def export(self, disk_id: str, target: Path) -> None:
        """Write the disk's content into one sparse file."""
        self._copy(self._existing(disk_id), _beside(target), target)

    def import_(self, disk_id: str, source: Path) -> None:
        """Make the disk's content that of an exported file."""
        if not source.exists():
            raise GuestRuntimeError(
                f"Unable to import disk {disk_id}: the backup {source.name} does not exist. "
                "Choose an existing backup."
            )
        image = self.path(disk_id)
        if image.exists():
            self._await_detached(image, f"import disk {disk_id}")
        self._copy(source, _beside(image), image)

    def _format(self, target: Path, size_bytes: int) -> None:
        if size_bytes < SMALLEST_BYTES:
            raise GuestRuntimeError(
                f"Unable to make {target.stem}: {size_bytes} bytes are too few for a guest's disk. "
                f"Give at least {SMALLEST_BYTES} bytes."
            )
        partial = _beside(target)
        partial.unlink(missing_ok=True)
        with partial.open("wb") as opened:
            opened.truncate(size_bytes)
        _run(["mkfs.xfs", "-q", str(partial)])
        os.setxattr(partial, BASE_ATTRIBUTE, str(self._image.resolve()).encode())
        partial.replace(target)

    def _copy(self, source: Path, partial: Path, target: Path) -> None:
        holder = self._mounted_by(source)
        command = ["sh", "-c", _COPY, "copy"]
        if holder is None:
            if source.parent == self._disks:
                self._await_detached(source, f"copy disk {source.stem}")
            command.append("")
        else:
            command = [*_mounts_of(holder[0]), *command, str(holder[1])]
        # Its own session: the file system must be let go even if the caller's group is killed.
        _run([*command, str(source), str(partial), str(target)], start_new_session=True)

    def _await_detached(self, image: Path, act: str) -> None:
        """A guest that has just ended unmounts within moments; one that runs does not."""
        deadline = time.monotonic() + DETACH_SECONDS
        while loop_devices(image):
            if self._mounted_by(image) is not None or time.monotonic() > deadline:
                raise GuestRuntimeError(
                    f"Unable to {act}: it is in use. Stop the guest that uses it."
                )
            time.sleep(0.05)

    def _existing(self, disk_id: str) -> Path:
        image = self.path(disk_id)
        if not image.exists():
            raise GuestRuntimeError(
                f"Unable to find disk {disk_id}: it does not exist. Create it first."
            )
        return image

    def _snapshot(self, disk_id: str, name: str) -> Path:
        return self._snapshots / _checked(disk_id) / f"{_checked(name)}.img"


def loop_devices(image: Path) -> list[str]:
    """The loop devices that show this file."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().rstrip("\n") == str(image.resolve()):
                found.append(f"/dev/{backing.parent.parent.name}")
    return found


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise GuestRuntimeError(
            f"Unable to use the name {name!r} for a disk or snapshot: only letters, digits, "
            "dot, dash and underscore are allowed. Give another name."
        )
    return name


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}-{time.monotonic_ns()}")


def _mounts_of(pid: int) -> list[str]:
    return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--"]


def _run(command: list[str], *, start_new_session: bool = False) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, start_new_session=start_new_session
    )
    if done.returncode != 0:
        cause = done.stderr.strip().splitlines()
        raise GuestRuntimeError(
            f"Unable to run {command[0]}: {cause[-1] if cause else 'no message'}. "
            "Look whether the storage's directory is full or its files were changed by hand."
        )
