"""The whole lab comes up from any state, and goes away from any state without a trace.

These tests run a lab of their own beside any other: its own instance, home and port.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab import leftovers
from lab.layout import Layout
from lab.services import processes
from lab.services.credentials import credential
from lab.services.namespace import inside

pytestmark = pytest.mark.lab

VMID = 4711
SERVICES = {
    "openbao",
    "dns",
    "site",
    "proxmox",
    "edge",
    "argocd",
    "registry",
    "harbor",
    "gitlab",
    "gateway",
    "postgresql",
    "prefect",
    "worker",
    "ui",
    "watchdog",
}


def run(layout: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab.cli", *arguments],
        env={**os.environ, **layout.environment()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def succeed(layout: Layout, *arguments: str) -> str:
    done = run(layout, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def own() -> Iterator[Layout]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not pytest's folder: that one is closed to the users of the database and the name server.
    directory = Path(tempfile.mkdtemp(prefix="infraflows-lab-", dir="/var/tmp"))
    directory.chmod(0o755)
    layout = Layout(instance=f"t{os.getpid() % 100000}", home=directory / "home", ui_port=port)
    yield layout
    run(layout, "down", "--purge")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def running(own: Layout) -> Layout:
    """The lab, healthy, with one real guest that runs."""
    succeed(own, "up")
    start_guest(own)
    return own


def proxmox(layout: Layout, method: str, path: str, **form: Any) -> Any:
    token = credential(layout, "proxmox-admin")
    header = f"PVEAPIToken={token['token_id']}={token['token_secret']}"
    context = ssl.create_default_context(cafile=str(layout.ca_file))
    with (
        inside(layout.namespace_path),
        httpx.Client(verify=context, trust_env=False, timeout=30) as client,
    ):
        url = f"{layout.proxmox_url}/api2/json{path}"
        reply = client.request(method, url, data=form or None, headers={"Authorization": header})
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


def finish(layout: Layout, upid: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = proxmox(layout, "GET", f"/nodes/pve1/tasks/{upid}/status")
        if state["status"] == "stopped":
            assert state["exitstatus"] == "OK", state
            return
        time.sleep(0.2)
    pytest.fail(f"task {upid} does not end")


def guest_state(layout: Layout) -> str:
    state: str = proxmox(layout, "GET", f"/nodes/pve1/qemu/{VMID}/status/current")["status"]
    return state


def start_guest(layout: Layout) -> None:
    vmids = {vm["vmid"] for vm in proxmox(layout, "GET", "/nodes/pve1/qemu")}
    if VMID not in vmids:
        upid = proxmox(
            layout, "POST", "/nodes/pve1/qemu/9000/clone", newid=VMID, name="probe", full=1
        )
        finish(layout, upid)
    if guest_state(layout) != "running":
        finish(layout, proxmox(layout, "POST", f"/nodes/pve1/qemu/{VMID}/status/start"))
    assert guest_state(layout) == "running"


def kill_everything(layout: Layout) -> None:
    """As an out-of-memory killer gone mad: every process of the lab at once, guests included."""
    victims = [
        identity for pid in leftovers.lab_pids(layout) if (identity := processes.Identity.of(pid))
    ]
    assert len(victims) > len(SERVICES)
    processes.send((victim.pid for victim in victims), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(victim.is_alive() for victim in victims) and time.monotonic() < deadline:
        time.sleep(0.1)


def assert_nothing_is_left(layout: Layout) -> None:
    """Asked of the kernel's tables, apart from the lab's own search."""
    assert not leftovers.find(layout)
    mark = str(layout.home).encode()
    for pid in processes.all_pids():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if pid not in processes.ancestors():
            assert mark not in command + environment, command
    assert str(layout.home) not in Path("/proc/self/mountinfo").read_text()
    losetup = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True)
    assert str(layout.home) not in losetup.stdout
    netns = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert layout.namespace not in netns.stdout.split()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{layout.namespace}"))
    assert not list(Path("/run").glob(f"{layout.namespace}*"))


def test_up_brings_every_service_to_health_and_a_second_up_does_nothing(own: Layout) -> None:
    first = succeed(own, "up")
    status = json.loads(succeed(own, "status", "--json"))
    assert {entry["name"] for entry in status["services"]} == SERVICES
    assert {entry["state"] for entry in status["services"]} == {"running"}
    assert all(Path(entry["log"]).exists() for entry in status["services"])
    assert f"{len(SERVICES)} started" in first
    again = succeed(own, "up")
    assert "(0 started)" in again
    seconds = re.search(r"up after ([\d.]+) s", again)
    assert seconds is not None
    assert float(seconds[1]) < 2.0


def test_a_running_guest_is_seen_and_a_down_ends_it_but_keeps_its_disk(running: Layout) -> None:
    assert json.loads(succeed(running, "status", "--json"))["guest_count"] == 1
    succeed(running, "down")
    assert_nothing_is_left(running)
    succeed(running, "up")
    assert guest_state(running) == "stopped"
    start_guest(running)


def test_a_hung_guest_does_not_keep_the_lab_from_going_down(running: Layout) -> None:
    succeed(running, "break", "guest-hangs", str(VMID))
    succeed(running, "down")
    assert_nothing_is_left(running)


def test_up_recovers_from_the_death_of_everything(running: Layout) -> None:
    kill_everything(running)
    succeed(running, "up")
    status = json.loads(succeed(running, "status", "--json"))
    assert {entry["state"] for entry in status["services"]} == {"running"}
    start_guest(running)


def test_up_recovers_from_a_reboot(running: Layout) -> None:
    kill_everything(running)
    subprocess.run(["ip", "netns", "delete", running.namespace], check=True)
    for record in (running.run_directory / "services").glob("*.json"):
        data = json.loads(record.read_text())
        record.write_text(json.dumps({**data, "pid": 1, "boot": "an-earlier-boot"}))
    succeed(running, "up")
    start_guest(running)


def test_down_after_the_death_of_everything_leaves_nothing(running: Layout) -> None:
    kill_everything(running)
    succeed(running, "down")
    assert_nothing_is_left(running)


def test_down_finds_a_lab_whose_records_are_lost(running: Layout) -> None:
    shutil.rmtree(running.run_directory)
    succeed(running, "down")
    assert_nothing_is_left(running)


def test_down_finds_a_lab_whose_home_was_half_deleted(running: Layout) -> None:
    for name in ("ca", "secrets", "openbao", "log", "hypervisor/guests/guests"):
        shutil.rmtree(running.home / name)
    succeed(running, "down", "--purge")
    assert_nothing_is_left(running)
    assert not running.home.exists()


def test_down_without_a_lab_succeeds(own: Layout) -> None:
    succeed(own, "down", "--purge")
    succeed(own, "down", "--purge")
    assert_nothing_is_left(own)


def test_an_interrupted_up_can_be_gone_on_with_or_taken_down(own: Layout) -> None:
    for patience_seconds in (0.7, 2.5):
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.cli", "up"],
            env={**os.environ, **own.environment()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(patience_seconds)
        process.kill()
        process.wait()
    succeed(own, "up")
    succeed(own, "down", "--purge")
    assert_nothing_is_left(own)


def test_another_home_and_a_caller_inside_the_lab_are_refused(own: Layout, tmp_path: Path) -> None:
    succeed(own, "up", "--only", "dns")
    other = Layout(instance=own.instance, home=tmp_path / "other", ui_port=own.ui_port)
    for command in (["up", "--only", "dns"], ["down"]):
        refused = run(other, *command)
        assert refused.returncode == 1
        assert str(own.home) in refused.stderr
    assert not other.home.exists()
    command_line = [sys.executable, "-m", "lab.cli", "down"]
    from_inside = run(own, "exec", "--", *command_line)
    assert from_inside.returncode == 1
    assert "runs inside the lab's network" in from_inside.stderr
    succeed(own, "down", "--purge")


def test_a_taken_port_is_told_before_anything_is_touched(own: Layout) -> None:
    with socket.create_server(("127.0.0.1", own.ui_port)):
        refused = run(own, "up")
    assert refused.returncode == 1
    assert f"Port {own.ui_port} on 127.0.0.1 is taken" in refused.stderr
    assert not own.home.exists()
    assert_nothing_is_left(own)
