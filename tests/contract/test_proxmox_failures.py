"""How failures of Proxmox VE reach the product; injected, so on the simulator only."""

from __future__ import annotations

import time
from typing import Any

import pytest

from blocks.proxmox import ProxmoxApi
from domain.errors import (
    Conflict,
    InvalidSpec,
    LifecycleError,
    NotFound,
    PermanentError,
    QuotaExceeded,
    TemporaryError,
    Unauthorized,
    Unreachable,
)


@pytest.fixture(autouse=True)
def simulated_only(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--real-proxmox"):
        pytest.skip("faults are injected into the simulator only")


@pytest.fixture
def site(healthy: Any) -> Any:
    return healthy


@pytest.fixture
def acts(site: Any) -> ProxmoxApi:
    return site.block(timeout_seconds=1.0).api(site.credential)


def clone(acts: ProxmoxApi, vm_id: int, **given: Any) -> str:
    return str(
        acts._http.post(
            "clone the template", "nodes/pve1/qemu/9000/clone", newid=vm_id, full=1, **given
        )
    )


@pytest.mark.parametrize("status", ["500", "503", "595", "596", "timeout", "reset"])
def test_an_api_that_cannot_serve_is_unreachable(site: Any, acts: ProxmoxApi, status: str) -> None:
    site.fault("api-error", status=status, path="/nodes", seconds="3")
    with pytest.raises(Unreachable, match=r"^Unable to list the hypervisors: .+\. .+\.$"):
        acts.nodes()


def test_a_port_where_nobody_listens_is_unreachable(site: Any) -> None:
    with pytest.raises(Unreachable, match="no connection"):
        site.block(url="https://127.0.0.1:9").api(site.credential).version()


def test_reading_goes_on_by_another_address(site: Any) -> None:
    block = site.block(url="https://127.0.0.1:9", alternate_urls=[site.url])
    acts = block.api(site.credential)
    assert acts.version().major >= 8
    assert acts.endpoint == site.url


def test_a_change_goes_to_another_address_only_when_the_first_was_never_reached(site: Any) -> None:
    acts = site.block(url="https://127.0.0.1:9", alternate_urls=[site.url]).api(site.credential)
    assert acts.create_pool("by-alternate", "test") is True
    acts.delete_pool("by-alternate")


def test_a_change_whose_answer_was_lost_is_not_sent_again(site: Any) -> None:
    acts = site.block(alternate_urls=[site.url]).api(site.credential)
    site.fault("api-error", status="596", path="/pools", method="POST", when="after", count="1")
    with pytest.raises(Unreachable):
        acts.create_pool("lost-answer", "test")
    assert acts.create_pool("lost-answer", "test") is False
    acts.delete_pool("lost-answer")


def test_a_certificate_of_another_authority_is_refused_for_good(site: Any, tmp_path: Any) -> None:
    from lab.layout import Layout
    from lab.services.certificates import ensure_certificates

    other = Layout(instance="other", home=tmp_path)
    ensure_certificates(other)
    with pytest.raises(PermanentError, match="not signed by the CA of the block"):
        site.block(ca_file=str(other.ca_file)).api(site.credential).version()


def test_a_wrong_token_is_unauthorized_and_not_shown(site: Any) -> None:
    wrong = {"token_id": "infraflows@pve!worker", "token_secret": "planted-canary-secret"}
    with pytest.raises(Unauthorized) as caught:
        site.block().api(wrong).nodes()
    error: BaseException | None = caught.value
    while error is not None:
        assert "planted-canary-secret" not in repr(error)
        error = error.__cause__ or error.__context__


def test_a_secret_without_its_parts_is_unauthorized(site: Any) -> None:
    with pytest.raises(Unauthorized, match="token_id"):
        site.block().api({"token": "x"})


def test_a_privilege_that_lacks_is_named(site: Any) -> None:
    site.hypervisor.access.define("reader@pve!only", "reader-secret", {"/": ["PVEAuditor"]})
    acts = site.block().api({"token_id": "reader@pve!only", "token_secret": "reader-secret"})
    with pytest.raises(Unauthorized, match=r"Pool\.Allocate"):
        acts.create_pool("forbidden", "test")


def test_a_bad_parameter_is_named(acts: ProxmoxApi) -> None:
    with pytest.raises(InvalidSpec) as caught:
        clone(acts, 5)
    assert any(problem.startswith("newid: ") for problem in caught.value.problems)


def test_a_vmid_that_is_taken_is_a_conflict(acts: ProxmoxApi) -> None:
    with pytest.raises(Conflict, match="9000"):
        clone(acts, 9000)


def test_a_full_storage_is_a_quota_that_is_exceeded(site: Any, acts: ProxmoxApi) -> None:
    site.fault("storage-full", storage="vmstore")
    with pytest.raises(QuotaExceeded):
        acts.wait_task(clone(acts, 701), "the clone")


def test_a_lost_quorum_may_pass(site: Any, acts: ProxmoxApi) -> None:
    site.fault("quorum-lost")
    assert acts.quorum().is_quorate is False
    with pytest.raises(TemporaryError):
        acts.create_pool("no-quorum", "test")


def test_an_offline_hypervisor_is_told_and_its_machines_stay_listed(
    site: Any, acts: ProxmoxApi
) -> None:
    site.fault("node-offline", node="pve1")
    assert {n.name: n.is_online for n in acts.nodes()}["pve1"] is False
    template = next(vm for vm in acts.machines() if vm.vm_id == 9000)
    assert template.is_config_known is False


def test_a_task_that_hangs_ends_at_its_deadline_with_its_name(site: Any, acts: ProxmoxApi) -> None:
    site.fault("task-hangs", type="qmclone", count="1")
    upid = clone(acts, 702)
    with pytest.raises(TemporaryError, match="UPID:pve1:"):
        acts.wait_task(upid, "the clone", deadline_seconds=1.0)
    assert ("qmclone", "9000") in acts.running_tasks()


def test_a_task_that_fails_shows_the_end_of_its_log(site: Any, acts: ProxmoxApi) -> None:
    site.fault("clone-fails", count="1", leave="nothing")
    with pytest.raises(LifecycleError, match=r"Its log ends: .*TASK ERROR") as caught:
        acts.wait_task(clone(acts, 703), "the clone")
    assert not isinstance(caught.value, NotFound)


def test_a_machine_is_deleted_once_and_only_under_its_name(acts: ProxmoxApi) -> None:
    acts.wait_task(clone(acts, 704, name="to-delete"), "the clone")
    with pytest.raises(Conflict, match="'to-delete', not 'another'"):
        acts.delete_machine(704, "pve1", expected_name="another")
    assert acts.delete_machine(704, "pve1", expected_name="to-delete") is True
    assert acts.delete_machine(704, "pve1", expected_name="to-delete") is False


def test_a_running_machine_is_stopped_before_it_is_deleted(site: Any, acts: ProxmoxApi) -> None:
    acts.wait_task(clone(acts, 705, name="running"), "the clone")
    acts.wait_task(str(acts._http.post("start", "nodes/pve1/qemu/705/status/start")), "the start")
    assert 705 in site.runtime.guests
    assert acts.delete_machine(705, "pve1", expected_name="running") is True
    assert 705 not in site.runtime.guests


def test_a_lock_that_no_task_explains_ends_the_wait(
    site: Any, acts: ProxmoxApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blocks.proxmox.ABANDONED_SECONDS", 0.5)
    site.fault("clone-fails", count="1", leave="machine")
    with pytest.raises(LifecycleError):
        acts.wait_task(clone(acts, 706), "the clone")
    began = time.monotonic()
    with pytest.raises(Conflict, match="qm unlock 706"):
        acts.wait_unlocked(706, "pve1")
    assert time.monotonic() - began < 10


def test_an_agent_that_is_silent_may_pass(acts: ProxmoxApi) -> None:
    acts.wait_task(clone(acts, 707, name="silent"), "the clone")
    with pytest.raises(LifecycleError, match="guest agent"):
        acts.agent_interfaces(707, "pve1")
