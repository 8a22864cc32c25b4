"""The clusters that exist in the lab now, each looked after by a worker in a thread of its own.

Why it exists: what stands in for containers (`lab.argocd`, `lab.edge`) has to come and go with
clusters that flows make and remove. What it promises: a cluster is found by its kubeconfig in
OpenBao, read once; a cluster that is gone takes its worker along, also when another of the same
name follows. What it refuses: to let one cluster that does not answer hold up the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from domain.errors import LifecycleError, TemporaryError
from lab.layout import Layout
from lab.services.openbao_setup import KV_MOUNT, OpenBaoRefused, root_client

LOOK_SECONDS = 3.0
STEP_SECONDS = 1.5
LOST_SECONDS = 60.0
"""Whose API is silent for so long has lost its machines, and the containers with them."""

STOP_SECONDS = 20.0
_log = logging.getLogger(__name__)


class Worker(Protocol):
    """Looks after one cluster."""

    def step(self) -> None:
        """Look once and act."""
        ...

    def stop(self) -> None:
        """End all that was started; a later step may start it again."""
        ...


class _Watched:
    """The thread of one cluster."""

    def __init__(self, name: str, worker: Worker) -> None:
        self._name = name
        self._worker = worker
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self._ending.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        seen_at, said = time.monotonic(), ""
        try:
            while not self._ending.wait(STEP_SECONDS):
                try:
                    self._worker.step()
                    seen_at, said = time.monotonic(), ""
                except TemporaryError as error:
                    said = _told(self._name, error, said)
                    if time.monotonic() - seen_at > LOST_SECONDS:
                        self._worker.stop()
                except LifecycleError as error:
                    # Another cluster of this name, or no rights: begin again with its kubeconfig.
                    _told(self._name, error, said)
                    return
        finally:
            self._worker.stop()


def _told(name: str, error: Exception, said: str) -> str:
    text = str(error)
    if text != said:
        _log.warning("%s: %s", name, text)
    return text


def cluster_kubeconfigs(layout: Layout, known: set[str]) -> dict[str, str | None]:
    """The clusters in OpenBao; kubeconfigs only of those that are not known yet."""
    client = root_client(layout)
    listed = client.call("LIST", f"{KV_MOUNT}/metadata/clusters", absent_is_none=True)
    found: dict[str, str | None] = {}
    for key in listed["data"]["keys"] if listed else []:
        name = str(key).rstrip("/")
        if name in known:
            found[name] = None
            continue
        path = f"{KV_MOUNT}/data/clusters/{name}/kubeconfig"
        answer = client.call("GET", path, absent_is_none=True)
        values = (answer or {}).get("data", {}).get("data") or {}
        if values.get("kubeconfig"):
            found[name] = str(values["kubeconfig"])
    return found


def watch_clusters(
    layout: Layout,
    make: Callable[[str, str], Worker],
    ending: threading.Event,
    forget: Callable[[str], None] = lambda _name: None,
    on_look: Callable[[], None] = lambda: None,
) -> None:
    """Keep one worker for each cluster until `ending` is set; `forget` hears which are gone."""
    watched: dict[str, _Watched] = {}
    try:
        while not ending.wait(LOOK_SECONDS if watched else 1.0):
            on_look()
            for name in [name for name, found in watched.items() if not found.is_alive]:
                del watched[name]
            try:
                found = cluster_kubeconfigs(layout, set(watched))
            except (OpenBaoRefused, OSError, ValueError, KeyError) as error:
                _log.warning("OpenBao: %s", error)
                continue
            except Exception as error:  # its client's own errors: OpenBao is down for a while
                _log.warning("OpenBao does not answer (%s)", type(error).__name__)
                continue
            for name in set(watched) - set(found):
                watched.pop(name).end()
                forget(name)
            for name, kubeconfig in found.items():
                if kubeconfig is not None:
                    _log.info("%s: found", name)
                    watched[name] = _Watched(name, make(name, kubeconfig))
    finally:
        for each in watched.values():
            each.end()
