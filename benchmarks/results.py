"""The figures of one measurement, as `results.json` keeps them.

Promises that a file that is read is complete, and that what is written names no host and no path.
Nothing is averaged here: every round is kept, so that the spread stays visible.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.phases import BOOTSTRAP_WEIGHTS

PHASES = tuple(BOOTSTRAP_WEIGHTS)
SHARED = ("plan", "apply", "configure")
"""The phases whose work the bare tools do as well."""
BARE_STEPS = ("init", "plan", "apply", "configure")
"""The steps of the bare tools that are compared; `wait` (for the guests) is told apart."""


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FlowTimes(_Figures):
    """One run of a flow."""

    start_seconds: float
    """From its creation to Running."""
    phases: dict[str, float]
    whole_seconds: float
    """From its creation to its end."""


class Round(_Figures):
    """One comparison: the flows and the bare tools, one after the other, on an emptied pool."""

    first: Literal["flow", "bare"]
    bootstrap: FlowTimes
    unchanged: FlowTimes
    decommission: FlowTimes
    bare: dict[str, float]
    """Seconds of each step with the plain tools."""


class Memory(_Figures):
    """Proportional set sizes in MiB; those of what runs all the time are peaks of the sampling."""

    prefect_server: float
    worker: float
    flow_process: float
    flow_programs: float
    """tofu, its provider, Ansible with its forks, ssh, git: all at once, at their peak."""
    lab_services: float
    guests: float


class Size(_Figures):
    """All that was measured with clusters of one size."""

    servers: int
    workers: int
    rounds: list[Round] = Field(min_length=1)
    memory: Memory

    @property
    def nodes(self) -> int:
        """Machines of the cluster."""
        return self.servers + self.workers


class Machine(_Figures):
    """What it was measured on; no name of it."""

    cores: int
    memory_gib: float
    kernel: str
    architecture: str
    measured_on: str
    versions: dict[str, str]


class Results(_Figures):
    """One measurement."""

    machine: Machine
    start_samples_seconds: list[float] = Field(min_length=1)
    sizes: list[Size]

    def store(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_results(path: Path) -> Results | None:
    """Return what a file holds; None when nothing was measured yet."""
    if not path.exists():
        return None
    return Results.model_validate_json(path.read_text(encoding="utf-8"))
