"""Drives a lab as an operator would, for tests and benchmarks: starts runs, watches, breaks, looks.

Why it exists: what the product promises about kills, faults and clean-up can only be tried from
outside, by the ways that an operator has (Prefect's API, the site's command) and by the rights of
the lab's administrator, who sees what is really there.

What it promises: it reads phases from the run's own artifacts, never from the clock. What it
refuses: to import the product's flows, or to repair anything on its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from lab import breaks, network
from lab.holdings import Holdings, ProxmoxAdmin, look
from lab.layout import ENVIRONMENT, Layout
from lab.services import processes, supervisor
from lab.services.catalogue import service
from lab.services.https_probe import request
from lab.services.service import read_record
from lab.shell import shell_environment
from lab.worker_processes import children_of_runs, run_processes

POLL_SECONDS = 0.1
WORKER = "worker"
SETUP_TIMEOUT_SECONDS = 300.0
RUN_TIMEOUT_SECONDS = 900.0
_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


class DriverFailed(AssertionError):
    """The lab or a run is not as the caller needs it. The text says what was seen."""


def _named(parameters: Any, part: str = "") -> Any:
    return ((parameters.get(part) or {}) if part else parameters).get("name")


@dataclass(frozen=True)
class RunView:
    """A run at one moment."""

    run_id: str
    state: str
    """Prefect's type: RUNNING, PAUSED, COMPLETED..."""
    name: str
    message: str
    phases: Mapping[str, str] = field(default_factory=dict)
    """State of each phase (waiting, running, done, failed, skipped), in their order."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0

    @property
    def is_final(self) -> bool:
        return self.state in _FINAL

    @property
    def is_completed(self) -> bool:
        return self.state == "COMPLETED"


def _rows(data: Any) -> list[dict[str, Any]]:
    found = json.loads(data) if isinstance(data, str) else data
    return list(found) if isinstance(found, list) else []


class Driver:
    """One lab, which is up."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._is_set_up = False

    # --- Prefect ---------------------------------------------------------------------------

    def api(self, method: str, path: str, body: Any = None, *, accept: Sequence[int] = ()) -> Any:
        """Ask Prefect's API; a busy server is asked again, where asking twice does no harm."""
        url = f"{self.layout.prefect_api_url}/{path}"
        attempts = 5 if method in ("GET", "DELETE") or path.endswith("/filter") else 1
        for left in reversed(range(attempts)):
            try:
                reply = request(self.layout, method, url, json=body, timeout_seconds=60.0)
                break
            except httpx.TransportError:
                if not left:
                    raise
                time.sleep(1.0)
        if reply.status_code in accept:
            return None
        if reply.status_code >= 400:
            raise DriverFailed(f"{method} {path}: HTTP {reply.status_code} {reply.text[:500]}")
        return reply.json() if reply.content else None

    def set_up(self) -> None:
        """Run `infraflows setup`; a lab that was set up is left as it is."""
        if self._is_set_up:
            return
        found = self.api("GET", "deployments/name/decommission-cluster/lab", accept=[404])
        # The automations are what the set-up makes last.
        if not (found and self.api("POST", "automations/filter", {})):
            self.command("infraflows", "setup", "--site", str(self.layout.site_file))
        self._is_set_up = True

    def command(self, program: str, *arguments: str, is_checked: bool = True) -> str:
        """Run a command of the product inside the lab's network; returns what it printed."""
        environment = shell_environment(self.layout, os.environ)
        pairs = [f"{name}={environment[name]}" for name in _COMMAND_VARIABLES]
        beside = Path(sys.executable).with_name(program)
        done = network.run_inside(
            self.layout.instance,
            ["env", *pairs, str(beside if beside.exists() else program), *arguments],
            check=False,
            timeout_seconds=SETUP_TIMEOUT_SECONDS,
        )
        if is_checked and done.returncode:
            raise DriverFailed(f"{program} {arguments[0]}: {done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def start(self, deployment: str, spec: Mapping[str, Any]) -> str:
        """Start a deployment on a cluster, as `bootstrap-cluster/lab`; returns the run's id."""
        return self.start_with(deployment, {"spec": dict(spec)})

    def start_with(self, deployment: str, parameters: Mapping[str, Any]) -> str:
        """Start any deployment; returns the run's id."""
        self.set_up()
        found = self.api("GET", f"deployments/name/{deployment}")
        body = {"parameters": dict(parameters), "state": {"type": "SCHEDULED"}}
        made = self.api("POST", f"deployments/{found['id']}/create_flow_run", body)
        return str(made["id"])

    def app_runs(self, deployment: str, app: str) -> list[str]:
        """Return the ids of a deployment's runs on an application, the oldest first."""
        flow, _, name = deployment.partition("/")
        wanted = {"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [name]}}}
        # Not by the runs' names: a run that waits for its start does not have its own yet.
        found: list[dict[str, Any]] = []
        while page := self.api("POST", "flow_runs/filter", {**wanted, "offset": len(found)}):
            found += page
        own = [r for r in found if app in (_named(r["parameters"]), _named(r["parameters"], "app"))]
        return [str(run["id"]) for run in sorted(own, key=lambda run: str(run["created"]))]

    def wait_app_runs(
        self, deployment: str, app: str, count: int, timeout_seconds: float = 120.0
    ) -> list[str]:
        """Wait until a deployment has had so many runs on an application; returns all of them."""
        deadline = time.monotonic() + timeout_seconds
        while len(found := self.app_runs(deployment, app)) < count:
            if time.monotonic() > deadline:
                what = f"{len(found)} of {count} runs of {deployment} on {app}"
                raise DriverFailed(f"{what} in {timeout_seconds:g} s")
            time.sleep(5 * POLL_SECONDS)
        return found

    def artifacts(self, run: str) -> dict[str, Any]:
        """The content of the run's artifacts by key; tables as lists of rows."""
        body = {"artifacts": {"flow_run_id": {"any_": [run]}}, "sort": "ID_DESC", "limit": 200}
        found = self.api("POST", "artifacts/filter", body)
        newest_last = sorted(found, key=lambda artifact: str(artifact["created"]))
        return {
            str(artifact["key"]): (
                _rows(artifact["data"]) if artifact["type"] == "table" else artifact["data"]
            )
            for artifact in newest_last
        }

    def view(self, run: str) -> RunView:
        """The run and its phases now."""
        seen = self.api("GET", f"flow_runs/{run}")
        state = seen.get("state") or {}
        tables = [t for key, t in self.artifacts(run).items() if key.endswith("-phases")]
        rows = tables[-1] if tables else []
        return RunView(
            run_id=run,
            state=str(state.get("type", "PENDING")),
            name=str(state.get("name", "Pending")),
            message=str(state.get("message") or ""),
            phases={row["phase"]: str(row["state"]).split()[-1] for row in rows},
            seconds={row["phase"]: float(row["seconds"] or 0) for row in rows},
            total_seconds=float(seen.get("total_run_time") or 0),
        )

    def wait_until(
        self, run: str, holds: Callable[[RunView], bool], what: str, timeout_seconds: float
    ) -> RunView:
        """Poll the run until `holds`; a run that ended first is an error."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            view = self.view(run)
            if holds(view):
                return view
            if view.is_final:
                raise DriverFailed(f"{what}: the run ended before.\n{self.explain(run)}")
            if time.monotonic() > deadline:
                raise DriverFailed(f"{what}: not in {timeout_seconds:g} s.\n{self.explain(run)}")
            time.sleep(POLL_SECONDS)

    def wait_phase(
        self, run: str, phase: str, state: str = "running", timeout_seconds: float = 600.0
    ) -> RunView:
        """Wait until a phase is in a state, or past it."""
        passed = {"waiting": 0, "running": 1, "done": 2, "skipped": 2, "failed": 2}
        return self.wait_until(
            run,
            lambda view: passed[view.phases.get(phase, "waiting")] >= passed[state],
            f"waiting for phase {phase} to be {state}",
            timeout_seconds,
        )

    def wait_end(self, run: str, timeout_seconds: float = RUN_TIMEOUT_SECONDS) -> RunView:
        """Wait until the run ended, well or not."""
        return self.wait_until(run, lambda v: v.is_final, "waiting for the end", timeout_seconds)

    def complete(
        self, run: str, *, is_approved: bool = False, timeout_seconds: float = RUN_TIMEOUT_SECONDS
    ) -> RunView:
        """Wait for the end of a run that must complete; answers its gate if so told."""
        if is_approved:
            waited = self.wait_until(
                run, lambda v: v.is_final or v.state == "PAUSED", "the gate", timeout_seconds
            )
            if not waited.is_final:
                self.approve(run)
        view = self.wait_end(run, timeout_seconds)
        if not view.is_completed:
            raise DriverFailed(f"the run did not complete.\n{self.explain(run)}")
        return view

    def approve(self, run: str, *, approver: str = "operator of the lab") -> None:
        """Approve the plan that a paused run shows."""
        keyset = self.api("GET", f"flow_runs/{run}")["state"]["state_details"]["run_input_keyset"]
        shown = self.api("GET", f"flow_runs/{run}/input/{keyset['schema']}")
        schema = json.loads(shown) if isinstance(shown, str) else shown
        answer = {
            "approve": True,
            "plan_hash": schema["properties"]["plan_hash"]["default"],
            "approved_by": approver,
        }
        # A refused resume is HTTP 200 with the word REJECT in it.
        result = self.api("POST", f"flow_runs/{run}/resume", {"run_input": answer})
        if result["status"] != "ACCEPT":
            raise DriverFailed(f"the approval was refused: {result}")

    def cancel(self, run: str) -> None:
        """Ask for the run's cancellation, as the UI's button does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.api("POST", f"flow_runs/{run}/set_state", {"state": state, "force": False})

    def log_lines(self, run: str) -> list[str]:
        """What the run logged, oldest first."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        lines: list[str] = []
        while found := self.api("POST", "logs/filter", {**body, "offset": len(lines)}):
            lines += [str(line["message"]) for line in found]
        return lines

    def explain(self, run: str, lines: int = 15) -> str:
        """How a run stands, with the end of its log, for a test that fails."""
        view = self.view(run)
        phases = ", ".join(f"{name} {state}" for name, state in view.phases.items())
        log = "\n".join(f"    {line[:600]}" for line in self.log_lines(run)[-lines:])
        return f"{view.name}: {view.message}\n  phases: {phases}\n  end of its log:\n{log}"

    def set_gate(self, policy: str) -> None:
        """Set the lab's gate policy: `automatic`, or `approval` to hold runs at the gate."""
        name = f"infraflows_gate_{ENVIRONMENT}"
        self.api("PATCH", f"variables/name/{name}", {"value": policy})

    def free_lock(self, cluster: str) -> None:
        """Free a killed run's lock at once, which would else end with its lease (60 s)."""
        name = f"target:{ENVIRONMENT}-{cluster}"
        self.api("DELETE", f"v2/concurrency_limits/{name}", accept=[404])

    # --- the worker ------------------------------------------------------------------------

    def flow_processes(self) -> list[int]:
        """The processes that execute flow runs now."""
        return run_processes(self.layout)

    def leftover_children(self) -> dict[int, str]:
        """Programs that runs started (tofu, ansible-playbook, git, ssh) and that still live."""
        return children_of_runs(self.layout)

    def kill_worker(self, *, is_machine_lost: bool = True) -> None:
        """SIGKILL the worker and its runs, and with a lost machine everything that they started."""
        if is_machine_lost:
            children = list(self.leftover_children())
            supervisor.kill(self.layout, service(WORKER), comes_back=False)
            processes.send(children, signal.SIGKILL)
            return
        runs = self.flow_processes()
        record = read_record(self.layout, WORKER)
        record.is_wanted = False  # else the watchdog brings it back
        record.store(self.layout)
        processes.send([*([record.pid] if record.is_alive else []), *runs], signal.SIGKILL)

    def start_worker(self) -> None:
        """Start the worker; returns once it is healthy."""
        supervisor.start(self.layout, service(WORKER))

    # --- the site --------------------------------------------------------------------------

    def inventory(self) -> Holdings:
        """What exists in every system, read with the administrator's rights."""
        return look(self.layout)

    def proxmox(self) -> ProxmoxAdmin:
        """The hypervisors' API with the administrator's token."""
        return ProxmoxAdmin(self.layout)

    def set_fault(self, name: str, **options: Any) -> None:
        """Break something, as `infraflows-lab break` does."""
        breaks.set_fault(self.layout, name, {key: str(value) for key, value in options.items()})

    def faults(self) -> list[dict[str, Any]]:
        """The faults that are set, with how often each struck (`fired`)."""
        return breaks.current(self.layout)

    def clear_faults(self) -> None:
        """Take every fault away."""
        breaks.clear(self.layout)

    def destroy(self, spec: Mapping[str, Any]) -> RunView:
        """Remove a cluster by the product's own flow, approving its plan."""
        return self.complete(self.start("decommission-cluster/lab", spec), is_approved=True)


_COMMAND_VARIABLES = (
    "INFRAFLOWS_LAB_INSTANCE",
    "INFRAFLOWS_LAB_HOME",
    "INFRAFLOWS_UI_PORT",
    "PATH",
    "PREFECT_API_URL",
    "INFRAFLOWS_SITE",
    "BAO_ADDR",
    "BAO_CACERT",
)


def small_spec(name: str, servers: int = 1, workers: int = 0, index: int = 0) -> dict[str, Any]:
    """The spec of a small cluster; clusters of different `index` (0 to 8) share nothing.

    An index has ten addresses: the virtual one, then servers, then workers.
    """
    first = 100 + 10 * index
    if servers + workers > 9 or not 0 <= index <= 8:
        raise ValueError("a small cluster has at most 9 machines and an index from 0 to 8")
    return {
        "name": name,
        "environment": ENVIRONMENT,
        "proxmox": {
            "pool": name,
            "nodes": ["pve1", "pve2", "pve3"],
            "storage": "vmstore",
            "template": "debian-12-cloud",
            "first_vm_id": 300 + 100 * index,
            "bridge": "vmbr0",
        },
        "network": {
            "cidr": "10.90.0.0/24",
            "gateway": "10.90.0.1",
            "dns_servers": ["10.90.0.1"],
            "domain": "lab.infraflows.internal",
        },
        "control_plane": {
            "count": servers,
            "cores": 2,
            "memory_mib": 2048,
            "disk_gib": 10,
            "first_address": f"10.90.0.{first + 1}",
            "virtual_ip": f"10.90.0.{first}",
        },
        "workers": {
            "count": workers,
            "cores": 1,
            "memory_mib": 1024,
            "disk_gib": 10,
            "first_address": f"10.90.0.{first + 1 + servers}",
        },
        "kubernetes": {"version": "v1.36.3+rke2r1"},
        "platform": {
            "metallb": {
                "first_address": f"10.90.0.{220 + 2 * index}",
                "last_address": f"10.90.0.{221 + 2 * index}",
            },
            # Each cluster's Argo CD is a set of real programs in the lab: the demo's is enough.
            "argo_cd": False,
        },
    }
