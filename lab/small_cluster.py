"""A small cluster of one trial: started, failed on purpose, cleared, and judged whole or gone.

Why it exists: "converged" must mean the same in every test that kills or breaks something. What it
promises: a judgement is made from what the systems hold, by the administrator's eyes, and names
all that is wrong at once. What it refuses: to be satisfied with the run's own word.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from domain.machines import machines
from domain.specs import parse_spec
from lab.clearing import clear_cluster, clear_machines
from lab.driver import Driver, DriverFailed, RunView, small_spec

BOOTSTRAP = "bootstrap-cluster/lab"
DECOMMISSION = "decommission-cluster/lab"
CHILDREN_GONE_SECONDS = 60.0


def plain_spec(name: str, servers: int = 1, workers: int = 0, index: int = 0) -> dict[str, Any]:
    """A small cluster's spec without the platform parts whose many definitions take time."""
    spec = small_spec(name, servers, workers, index)
    off = dict.fromkeys(("longhorn", "argo_cd", "monitoring"), False)
    return {**spec, "platform": {**spec["platform"], **off}}


@dataclass
class SmallCluster:
    """One cluster of a trial."""

    driver: Driver
    spec: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def wanted(self) -> dict[int, str]:
        """The machines that the spec stands for, by VMID."""
        return {machine.vm_id: machine.name for machine in machines(parse_spec(self.spec))}

    def clear(self) -> None:
        """Take the cluster out of the lab by force."""
        clear_cluster(self.driver.layout, self.name, set(self.wanted))

    def clear_machines(self) -> None:
        """Remove its machines by force, as an administrator does on the hypervisor."""
        clear_machines(self.driver.layout, self.name, set(self.wanted))

    def start(self, deployment: str = BOOTSTRAP) -> str:
        return self.driver.start(deployment, self.spec)

    def build(self) -> RunView:
        """Run the spec to a good end."""
        return self.driver.complete(self.start())

    def fail(self, run: str | None = None) -> RunView:
        """Run the spec to one clear error, or wait for that end of a run that was started."""
        view = self.driver.wait_end(run or self.start())
        explained = self.driver.explain(view.run_id)
        if view.state != "FAILED":
            raise DriverFailed(f"the run was to fail.\n{explained}")
        if "Unable to " not in view.message or "Traceback" in view.message:
            raise DriverFailed(f"the error is not a clear one.\n{explained}")
        return view

    def disks_of_no_machine(self) -> list[str]:
        """Volumes at the numbers of this cluster's machines that no machine names."""
        marks = tuple(f"vm-{vm_id}-" for vm_id in self.wanted)
        found = self.driver.inventory().orphaned_volumes
        return [volume for volume in found if volume.partition(":")[2].startswith(marks)]

    def require_whole(self, view: RunView) -> None:
        """Exactly what the spec says exists, once, healthy, recorded and unlocked."""
        problems = [*self._wrong_machines(), *self._wrong_records(), *self._failed_checks(view)]
        if problems:
            raise DriverFailed(f"{self.name} is not whole:\n  " + "\n  ".join(problems))

    def _wrong_machines(self) -> Iterator[str]:
        found = self.driver.inventory().of(self.name).machines
        names = [(vm.vm_id, vm.name) for vm in found]
        if names != list(self.wanted.items()):
            yield f"machines are {names}, wanted {self.wanted}"
        for vm in found:
            if (vm.status, vm.lock, vm.pool) != ("running", "", self.spec["proxmox"]["pool"]):
                yield f"{vm.name} is {vm.status}, locked by {vm.lock!r}, in pool {vm.pool!r}"
        yield from (f"no machine owns the disk {disk}" for disk in self.disks_of_no_machine())

    def _wrong_records(self) -> Iterator[str]:
        found = self.driver.inventory().of(self.name)
        if len(found.states) != 1:
            yield f"states are {found.states}"
        yield from (f"the state {name} is locked" for name in found.state_locks)
        ledger = self.driver.layout.ledger_directory / f"{self.name}.jsonl"
        said = self.driver.command("infraflows", "verify-ledger", str(ledger), is_checked=False)
        if "chain and signatures are right" not in said:
            yield f"the ledger does not verify: {said}"

    def _failed_checks(self, view: RunView) -> Iterator[str]:
        checks = self.driver.artifacts(view.run_id).get(f"{self.name}-checks") or []
        members = [check for check in checks if "etcd" in str(check["check"]).lower()]
        if not members:
            yield f"no check of etcd among {checks}"
        for check in checks:
            if "passed" not in str(check["result"]):
                yield f"check {check}"

    def require_gone(self) -> None:
        """Nothing of the cluster exists in any system."""
        found = self.driver.inventory().of(self.name).lines()
        left = [line for line in found if not line.startswith(("orphaned", "running_tasks"))]
        left += self.disks_of_no_machine()
        if left:
            raise DriverFailed(f"{self.name} is not gone:\n  " + "\n  ".join(left))


def wait_until_no_children(driver: Driver) -> None:
    """Wait until the programs of a dead run have ended by themselves."""
    deadline = time.monotonic() + CHILDREN_GONE_SECONDS
    while left := driver.leftover_children():
        if time.monotonic() > deadline:
            raise DriverFailed(f"programs of a dead run are still alive: {left}")
        time.sleep(0.2)
