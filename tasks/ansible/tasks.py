"""Machines become nodes: the tasks that run the playbooks, and the one that fetches the kubeconfig.

Promises a short-lived identity for each act, host keys verified, and per-host results in the UI
while it runs and after. Tokens are read from OpenBao inside the task, handed to Ansible in a
private directory in memory, and dropped with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prefect import task
from prefect.logging import get_run_logger

from blocks.ansible_run import PlaybookResult, PlaybookRun, RunStatus, run_playbook
from blocks.openbao import OpenBaoSession, openbao
from blocks.private_directory import private_directory
from blocks.ssh_command import run_command, wait_for_ssh
from blocks.ssh_identity import SshIdentity, make_identity
from domain.errors import InvalidSpec, LifecycleError, PermanentError, TemporaryError, Unreachable
from domain.host_reports import (
    HostEvent,
    HostReport,
    HostStatus,
    TaskStatus,
    failure_text,
    final_reports,
    overall_percent,
    running_reports,
    table_rows,
)
from domain.inventory import hosts_of
from domain.kubeconfig import rewrite_kubeconfig
from domain.specs import ClusterSpec
from tasks.retry_rules import TEMPORARY
from tasks.runs.progress import LiveArtifact

HERE = Path(__file__).parent
CONFIGURE = HERE / "playbooks" / "configure.yaml"
PROBE = HERE / "playbooks" / "probe.yaml"
PROBE_TASK = "Read the host's state"
USER = "infraflows"
DEADLINE_SECONDS = 3000.0
CERTIFICATE_MARGIN_SECONDS = 300
BOOT_DEADLINE_SECONDS = 180.0
SHOW_EVERY_SECONDS = 2.0
FORKS_AT_MOST = 25
KUBECONFIG_FILE = "/etc/rancher/rke2/rke2.yaml"

EventHook = Callable[[HostEvent], None]
ProgressHook = Callable[[float], None]


def count_tasks(playbook: Path) -> int:
    """Return how many tasks a playbook has for each host, those of its roles included."""

    def size(entries: list[dict[str, Any]] | None) -> int:
        total = 0
        for entry in entries or []:
            inner = [entry[key] for key in ("block", "rescue", "always") if key in entry]
            total += sum(size(part) for part in inner) if inner else 1
        return total

    total = 0
    for play in yaml.safe_load(playbook.read_text()):
        total += sum(size(play.get(key)) for key in ("pre_tasks", "tasks", "post_tasks"))
        for role in play.get("roles") or []:
            name = role["role"] if isinstance(role, dict) else role
            file = HERE / "roles" / name / "tasks" / "main.yaml"
            total += size(yaml.safe_load(file.read_text()))
    return total


class HostBoard:
    """The hosts of one playbook as artifacts: `<cluster>-hosts` and `<cluster>-hosts-progress`."""

    def __init__(
        self, cluster: str, hosts: list[str], expected: int, on_progress: ProgressHook | None
    ) -> None:
        """Show every host as not heard of."""
        self._on_progress = on_progress
        self._hosts, self._expected = hosts, expected
        self._events: list[HostEvent] = []
        self._table = LiveArtifact(
            f"{cluster}-hosts", "table", f"What Ansible did on each machine of {cluster}"
        )
        self._bar = LiveArtifact(
            f"{cluster}-hosts-progress", "progress", f"Configuration of {cluster}'s machines"
        )
        self._shown_at = 0.0

    def take(self, event: HostEvent) -> None:
        """Note an event; write it out if the last time was long enough ago."""
        self._events.append(event)
        now = time.monotonic()
        if now - self._shown_at >= SHOW_EVERY_SECONDS:
            self._shown_at = now
            self.show(running_reports(self._hosts, self._events))

    def show(self, reports: list[HostReport]) -> None:
        """Write the table and the bar."""
        self._table.show(json.dumps(table_rows(reports, self._expected)))
        percent = overall_percent(reports, self._expected)
        self._bar.show(percent)
        if self._on_progress is not None:
            self._on_progress(percent / 100.0)


@dataclass(frozen=True)
class Site:
    """What a playbook's run needs of the outside: where secrets are, which machines, their keys."""

    environment: str
    inventory: Mapping[str, Any]
    host_keys: Mapping[str, str]
    """Public host keys by address, read over a trusted channel."""


@contextmanager
def _session(site: Site) -> Iterator[tuple[OpenBaoSession, SshIdentity, Path]]:
    """Yield OpenBao, a signed identity for the machines, and the private directory of both."""
    server = openbao(site.environment)
    with private_directory("ansible") as directory, server.session() as bao:

        def sign(public_key: str) -> str:
            lifetime_seconds = int(DEADLINE_SECONDS) + CERTIFICATE_MARGIN_SECONDS
            return bao.sign_ssh_key(server.ssh_role, public_key, [USER], lifetime_seconds)

        yield bao, make_identity(directory, sign, site.host_keys), directory


def _run(
    site: Site, playbook: Path, secrets_path: str | None, on_event: EventHook | None
) -> PlaybookResult:
    """Run a playbook on all machines of the inventory, with the secrets under `secrets_path`."""
    hosts = hosts_of(site.inventory)
    without_key = sorted(name for name, address in hosts.items() if address not in site.host_keys)
    if without_key:
        raise InvalidSpec(
            "the machines' host keys",
            [f"{name}: has no host key. Read it through its guest agent" for name in without_key],
        )
    wait_for_ssh(hosts.values(), BOOT_DEADLINE_SECONDS)
    with _session(site) as (bao, identity, directory):
        run = PlaybookRun(
            playbook=playbook,
            inventory=site.inventory,
            directory=directory,
            roles=HERE / "roles",
            library=HERE / "library",
            module_utils=HERE / "module_utils",
            secret_variables=bao.read(secrets_path) if secrets_path else {},
            ssh_options=identity.options(),
            user=USER,
            forks=min(len(hosts), FORKS_AT_MOST),
            deadline_seconds=DEADLINE_SECONDS,
            details_of=frozenset({PROBE_TASK}),
        )
        return run_playbook(run, on_event)


def explained(result: PlaybookResult, reports: list[HostReport]) -> LifecycleError | None:
    """Return the error that a run's end amounts to; none if it succeeded."""
    if result.status is RunStatus.SUCCESSFUL:
        return None
    if result.status is RunStatus.TIMED_OUT:
        waiting = ", ".join(f"{r.host} ({r.current_task})" for r in reports if r.current_task)
        return PermanentError(
            f"Unable to configure the machines: no end after {result.seconds:.0f} s; still at "
            f"work: {waiting or 'none'}. Look at these machines, then run again."
        )
    text = failure_text(reports)
    if any(report.status is HostStatus.FAILED for report in reports):
        return PermanentError(
            f"Unable to configure the machines:\n{text}\nCorrect the cause on the host, run again."
        )
    if any(report.status is HostStatus.UNREACHABLE for report in reports):
        return Unreachable(f"Unable to reach machines by SSH:\n{text}\nCheck that they are up.")
    if result.status is RunStatus.CANCELLED or result.exit_code in (250, 254):
        return TemporaryError(
            f"Unable to configure the machines: Ansible was ended from outside (exit code "
            f"{result.exit_code}). Run again. {result.console}".rstrip()
        )
    return PermanentError(
        f"Unable to configure the machines: Ansible ended with {result.exit_code} before it "
        f"reached one: {result.console or 'it gave no reason'}. Check playbook and inventory."
    )


@task(name="configure machines", tags=["system:ansible"], **TEMPORARY)
def configure(
    environment: str,
    spec: ClusterSpec,
    inventory: dict[str, Any],
    host_keys: dict[str, str],
    on_progress: ProgressHook | None = None,
) -> list[HostReport]:
    """Make the machines the nodes of the cluster; on machines that are, nothing changes.

    `on_progress` is told how much is done, from 0 to 1.

    Raises:
        PermanentError: with every failed host's own words. Unreachable: a machine does not answer.
    """
    logger = get_run_logger()
    hosts = list(hosts_of(inventory))
    board = HostBoard(spec.name, hosts, count_tasks(CONFIGURE), on_progress)

    def on_event(event: HostEvent) -> None:
        board.take(event)
        if event.status is TaskStatus.CHANGED:
            logger.info("%s: %s (%.1f s)", event.host, event.title, event.seconds)
        elif event.status in (TaskStatus.FAILED, TaskStatus.UNREACHABLE):
            logger.error("%s: %s: %s", event.host, event.title, event.message)

    site = Site(environment, inventory, host_keys)
    result = _run(site, CONFIGURE, f"{spec.secrets_path}/rke2", on_event)
    reports = final_reports(hosts, result.events, result.status is RunStatus.SUCCESSFUL)
    board.show(reports)
    error = explained(result, reports)
    if error is not None:
        raise error
    changed = sum(report.changed for report in reports)
    logger.info("Configured %d hosts in %.1f s, %d changes.", len(hosts), result.seconds, changed)
    return reports


@task(name="probe machines", tags=["system:ansible"], **TEMPORARY)
def probe(
    environment: str, inventory: dict[str, Any], host_keys: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Return, by host, the versions, services, ports and settings in force; changes nothing."""
    result = _run(Site(environment, inventory, host_keys), PROBE, None, None)
    hosts = list(hosts_of(inventory))
    error = explained(result, final_reports(hosts, result.events, is_complete=False))
    if error is not None:
        raise error
    return {
        event.host: dict(event.details["probe"])
        for event in result.events
        if event.details and "probe" in event.details
    }


@task(name="store the kubeconfig", tags=["system:ansible", "system:openbao"], **TEMPORARY)
def store_kubeconfig(
    environment: str, spec: ClusterSpec, inventory: dict[str, Any], host_keys: dict[str, str]
) -> bool:
    """Copy the administrator's kubeconfig from the first server to OpenBao; True if it was new.

    The text stays inside this task: it is a private key with every right on the cluster.
    """
    address = next(iter(hosts_of(inventory).values()))
    path = f"{spec.secrets_path}/kubeconfig"
    with _session(Site(environment, inventory, host_keys)) as (bao, identity, _directory):
        text = run_command(identity, USER, address, f"sudo -n cat {KUBECONFIG_FILE}")
        wanted = {"kubeconfig": rewrite_kubeconfig(text, spec.control_plane.virtual_ip, spec.name)}
        is_new = not bao.exists(path) or bao.read(path) != wanted
        if is_new:
            bao.write(path, wanted)
    return is_new
