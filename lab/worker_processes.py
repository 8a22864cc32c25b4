"""Which processes of the machine belong to the runs of one lab's worker.

Why it exists: a run that was killed or cancelled must leave nothing running, and a program that it
started may have another environment, session or parent than the run. What it promises: programs
are found by what they are and by the lab's network namespace, in which only the lab's own
services and its worker's programs live; guests have namespaces of their own.
"""

from __future__ import annotations

from pathlib import Path

from lab.layout import Layout
from lab.services import processes, supervisor
from lab.services.service import read_record

WORKER = "worker"
PROGRAMS = (
    "ansible-playbook",
    "ansible_tether.py",
    "git",
    "git-remote-https",
    "ssh",
    "sshpass",
    "terraform-provider-proxmox",
    "tofu",
    "tofu_tether.py",
)
_RUN_MARKS = (b"prefect.engine", b"prefect.flow_engine", b"flow-run\0execute")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _network(path: str | Path) -> int:
    try:
        return Path(path).stat().st_ino
    except OSError:
        return 0


def run_processes(layout: Layout) -> list[int]:
    """The processes that execute flow runs: all Python that the worker started but itself."""
    worker = read_record(layout, WORKER).pid
    mark = supervisor.mark(layout, WORKER)
    return [
        pid
        for pid in processes.marked_exactly(mark)
        if pid != worker and any(text in _command(pid) for text in _RUN_MARKS)
    ]


def _program(command: bytes) -> str:
    """The name of a program, or of the script that an interpreter runs."""
    words = [word.decode(errors="replace") for word in command.split(b"\0") if word]
    for word in words[:3]:
        name = word.partition(":")[0].rsplit("/", 1)[-1]
        for program in PROGRAMS:
            if name == program or name.startswith(f"{program}_v"):
                return program
    return ""


def children_of_runs(layout: Layout) -> dict[int, str]:
    """Living programs in the lab's network that only a run starts, by pid."""
    network = _network(layout.namespace_path)
    services = set(processes.marked(f"{layout.instance}:")) - set(
        processes.marked_exactly(supervisor.mark(layout, WORKER))
    )
    protected = processes.ancestors()
    found = {}
    for pid in processes.all_pids():
        if pid in services or pid in protected:
            continue
        program = _program(_command(pid))
        is_inside = network != 0 and _network(f"/proc/{pid}/ns/net") == network
        if program and is_inside and processes.Identity.of(pid) is not None:
            found[pid] = program
    return found
