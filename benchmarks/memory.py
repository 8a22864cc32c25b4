"""Memory of what runs, as proportional set sizes: shared pages are divided by their users.

The sampler runs also while the bare tools are timed, so that what it costs weighs on both.
"""

from __future__ import annotations

import threading
from types import TracebackType

from benchmarks.results import Memory
from lab.layout import Layout
from lab.services import supervisor
from lab.services.catalogue import SERVICES, WATCHDOG, service
from lab.services.processes import resident_mib
from lab.services.service import read_record
from lab.status import guest_processes
from lab.worker_processes import children_of_runs, run_processes

SAMPLE_SECONDS = 3.0
_SERVER, _WORKER = "prefect", "worker"


class MemorySampler:
    """Notes peaks while its block runs."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._peaks: dict[str, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            self._note()

    def _note(self) -> None:
        layout = self._layout
        found = {
            "server": resident_mib(supervisor.owned_pids(layout, service(_SERVER))),
            "worker": resident_mib([read_record(layout, _WORKER).pid]),
            "flow": resident_mib(run_processes(layout)),
            "programs": resident_mib(children_of_runs(layout)),
        }
        for name, mib in found.items():
            self._peaks[name] = max(self._peaks.get(name, 0.0), mib)

    def result(self) -> Memory:
        """Return the peaks, with what the lab's services and the guests take now.

        Raises:
            RuntimeError: nothing was sampled, so there is no peak.
        """
        if not self._peaks:
            raise RuntimeError(
                "Unable to tell the memory: the sampler ended before its first look."
            )
        own = [s for s in (*SERVICES, WATCHDOG) if s.name not in (_SERVER, _WORKER)]
        services = {pid for s in own for pid in supervisor.owned_pids(self._layout, s)}
        guests = guest_processes(self._layout)
        return Memory(
            prefect_server=round(self._peaks["server"], 1),
            worker=round(self._peaks["worker"], 1),
            flow_process=round(self._peaks["flow"], 1),
            flow_programs=round(self._peaks["programs"], 1),
            lab_services=round(resident_mib(services), 1),
            guests=round(sum(resident_mib(pids) for pids in guests.values()), 1),
        )
