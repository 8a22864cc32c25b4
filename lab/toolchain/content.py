"""Names builds after what went into them, and puts them in place in one step.

Why: a build that is named by the hash of its inputs never has to be invalidated, and one that
appears by `rename` is either whole or absent, whatever was killed. Promises: one builder at a time
per artefact, on all checkouts of the machine; leftovers of killed builders are removed by the next.
"""

import contextlib
import fcntl
import filecmp
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from lab.toolchain.paths import cache_dir


def content_hash(parts: Iterable[bytes | str]) -> str:
    """A short hash over `parts`, each fenced by its length so that no two lists look alike."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


def file_parts(root: Path, files: Iterable[Path]) -> Iterator[bytes | str]:
    """Name, executable bit and bytes of each file, in a stable order."""
    for path in sorted(files):
        yield path.relative_to(root).as_posix()
        yield "x" if os.access(path, os.X_OK) else "-"
        yield path.read_bytes()


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the machine-wide lock of the artefact `name`; the kernel drops it if we are killed."""
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A fresh folder beside `final` that becomes `final` if the block succeeds.

    The caller holds the artefact's lock, so every other staging folder of it is a dead one.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".staging-{final.name}"
    for dead in final.parent.glob(f"{prefix}*"):
        shutil.rmtree(dead, ignore_errors=True)
    stage = final.parent / f"{prefix}.{os.getpid()}"
    stage.mkdir()
    try:
        yield stage
        if final.exists():
            shutil.rmtree(final)
        stage.rename(final)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def place(name: Path, program: Path) -> bool:
    """Make `name` a regular file with the content of `program`; tell whether that changed anything.

    For readers that do not follow symlinks.
    """
    if name.exists() and not name.is_symlink() and filecmp.cmp(name, program):
        return False
    name.parent.mkdir(parents=True, exist_ok=True)
    fresh = name.with_name(f".{name.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    shutil.copy2(program, fresh)
    fresh.replace(name)
    return True


def link(name: Path, target: Path) -> bool:
    """Point the symlink `name` at `target` atomically; tell whether that changed anything."""
    if name.is_symlink() and name.readlink() == target:
        return False
    name.parent.mkdir(parents=True, exist_ok=True)
    fresh = name.with_name(f".{name.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(name)
    return True
