"""Entering the lab's network namespace.

Why it exists: everything in the lab listens on addresses that exist only inside its own network
namespace. A health check or an API call from the host has to stand inside it.

What it promises: `inside` moves the calling *thread* only, and moves it back, so that a check costs
no process and no thread of its own. (`lab.network` makes the namespace and starts commands in it.)
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace_path: Path) -> None:
    """Move this thread into the network namespace, for good."""
    descriptor = os.open(namespace_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set_namespace(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def inside(namespace_path: Path) -> Iterator[None]:
    """Run a block of this thread inside the network namespace."""
    origin = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace_path)
        try:
            yield
        finally:
            _set_namespace(origin)
    finally:
        os.close(origin)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
