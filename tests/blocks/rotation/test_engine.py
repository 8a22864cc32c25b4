"""The engine against a real OpenBao: resuming, leaks, rolling back, and who may not meddle."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from blocks.rotation.store import RotationStore
from domain.errors import Conflict, Unreachable
from domain.rotation.contract import Proof, SecretRef, Seen, Values
from domain.rotation.machine import Limits, Request
from domain.rotation.state import Step
from tasks.rotation.engine import Job, StepReport, rotate_one


class PasswordFile:
    """A small real system: it accepts the passwords of a set, and can be made to fail."""

    kind = "password-file"
    has_overlap = True

    def __init__(self) -> None:
        self.accepted: set[str] = {"old-password"}
        self.failures: dict[str, list[Exception]] = {}
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        waiting = self.failures.get(name)
        if waiting:
            raise waiting.pop(0)

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        self._called("create")
        return {"password": f"new-password-{generation}"}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        self._called("set")
        self.accepted.add(new["password"])

    def test(self, secret: SecretRef, new: Values) -> None:
        self._called("test")
        if new["password"] not in self.accepted:
            raise Conflict("Unable to use the password: it is not accepted. Set it.")

    def distribute(self, secret: SecretRef, new: Values) -> None:
        self._called("distribute")

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> list[Seen]:
        self._called("observe")
        return [Seen("reader", True)]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        self._called("revoke")
        self.accepted.discard(old["password"])

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        self._called("prove_dead")
        return Proof(old["password"] not in self.accepted, "password", "not in the file")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        self._called("rollback")
        self.accepted.discard(new["password"])


class Still:
    """A clock that does not wait."""

    def __init__(self) -> None:
        self.moment = datetime.now(UTC)

    def now(self) -> datetime:
        return self.moment

    def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def system() -> PasswordFile:
    return PasswordFile()


@pytest.fixture
def secret(site: Any) -> SecretRef:
    found: SecretRef = site.ref(PasswordFile.kind)
    site.put(found.path, {"password": "old-password"})
    return found


def run(
    system: PasswordFile,
    store: RotationStore,
    secret: SecretRef,
    name: str = "first",
    *,
    is_leak: bool = False,
    limits: Limits | None = None,
    reports: list[StepReport] | None = None,
) -> Any:
    asked = Request(name, datetime.now(UTC), is_leak=is_leak)
    job = Job(secret, asked, limits or Limits(), run_id=name)
    told = reports.append if reports is not None else None
    return rotate_one(system, store, job, clock=Still(), on_step=told)


def test_every_step_is_told_with_fingerprints_and_the_proof_and_no_value(
    system: PasswordFile, store: RotationStore, secret: SecretRef
) -> None:
    reports: list[StepReport] = []
    state = run(system, store, secret, reports=reports)
    assert [report.step.value for report in reports] == [
        "create",
        "set",
        "test",
        "distribute",
        "observe",
        "revoke",
        "prove dead",
        "clean",
    ]
    assert reports[6].proof == Proof(True, "password", "not in the file")
    assert set(state.fingerprints) == {0, 1}
    assert all(text.startswith("vault:v1:") for text in state.fingerprints.values())
    assert "-password" not in repr(reports)


def test_no_version_of_a_dead_value_is_left_in_openbao(
    system: PasswordFile, store: RotationStore, secret: SecretRef, site: Any
) -> None:
    run(system, store, secret)
    for path in (secret.path, store.path(secret)):
        metadata = site.versions.metadata(path)
        newest = metadata["current_version"]
        live = [n for n, entry in metadata["versions"].items() if not entry["destroyed"]]
        assert live == [str(newest)], path
    record = site.get(store.path(secret))
    assert "password" not in json.loads(record["state"])
    assert not [key for key in record if key.startswith("value_")]


def test_the_state_is_readable_without_the_right_to_read_values(
    system: PasswordFile, store: RotationStore, secret: SecretRef
) -> None:
    state = run(system, store, secret)
    assert store.states()[secret.secret_id] == state


def test_the_same_request_rotates_once_and_the_next_one_again(
    system: PasswordFile, store: RotationStore, secret: SecretRef, site: Any
) -> None:
    run(system, store, secret)
    run(system, store, secret)
    assert system.calls.count("create") == 1
    assert run(system, store, secret, "second").generation == 2
    assert site.get(secret.path) == {"password": "new-password-2"}
    assert system.accepted == {"new-password-2"}


def test_a_value_that_keeps_failing_is_replaced_by_another(
    system: PasswordFile, store: RotationStore, secret: SecretRef
) -> None:
    system.failures["test"] = [Unreachable("Unable to try: no answer. Wait.")] * 3
    state = run(system, store, secret)
    assert (state.step, state.generation) == (Step.DONE, 2)
    assert system.accepted == {"new-password-2"}


def test_a_failure_before_revoke_rolls_back_by_itself(
    system: PasswordFile, store: RotationStore, secret: SecretRef, site: Any
) -> None:
    system.failures["distribute"] = [Conflict("Unable to hand out: a trial. Nothing.")]
    state = run(system, store, secret)
    assert state.step is Step.ROLLED_BACK
    assert site.get(secret.path) == {"password": "old-password"}
    assert system.accepted == {"old-password"}
    record = store.load(secret)
    assert record is not None
    assert record.values == {}


def test_a_fault_of_a_class_is_told_by_its_kind_and_never_by_its_text(
    system: PasswordFile, store: RotationStore, secret: SecretRef
) -> None:
    system.failures["set"] = [KeyError("new-password-1"), KeyError("new-password-2")]
    state = run(system, store, secret, limits=Limits(values=1))
    assert state.step is Step.ROLLED_BACK
    assert "KeyError" in state.reason
    assert "new-password" not in state.reason


def test_after_revoke_it_halts_and_the_next_run_goes_on(
    system: PasswordFile, store: RotationStore, secret: SecretRef
) -> None:
    system.failures["prove_dead"] = [Conflict("Unable to log in: a trial. Nothing.")]
    state = run(system, store, secret)
    assert state.is_halted
    assert state.is_past_revoke
    assert run(system, store, secret, "second").step is Step.DONE
    assert system.calls.count("create") == 1


def test_a_leaked_value_is_revoked_before_it_is_replaced_where_the_policy_says_so(
    system: PasswordFile, store: RotationStore, secret: SecretRef
) -> None:
    run(system, store, secret, is_leak=True, limits=Limits(may_revoke_first=True))
    calls = [call for call in system.calls if call in ("revoke", "prove_dead", "distribute")]
    assert calls == ["revoke", "prove_dead", "distribute"]


def test_a_leak_during_a_rotation_finishes_it_and_rotates_again(
    system: PasswordFile, store: RotationStore, secret: SecretRef
) -> None:
    system.failures["prove_dead"] = [Conflict("Unable to log in: a trial. Nothing.")]
    assert run(system, store, secret).is_halted
    state = run(system, store, secret, "leak", is_leak=True)
    assert (state.step, state.generation) == (Step.DONE, 2)
    assert system.accepted == {"new-password-2"}


def test_a_worker_that_was_overtaken_does_not_write(
    system: PasswordFile, store: RotationStore, secret: SecretRef
) -> None:
    run(system, store, secret)
    record = store.load(secret)
    assert record is not None
    store.save(secret, record)
    with pytest.raises(Conflict, match="another writer"):
        store.save(secret, replace(record, proof="late"))


def test_a_value_that_a_person_wrote_meanwhile_is_left_alone(
    system: PasswordFile, store: RotationStore, secret: SecretRef, site: Any
) -> None:
    original = system.test

    def test(ref: SecretRef, new: Values) -> None:
        original(ref, new)
        site.put(secret.path, {"password": "of-a-person"})

    system.test = test  # type: ignore[method-assign]
    state = run(system, store, secret)
    assert state.step is Step.ROLLED_BACK
    assert "holds neither" in state.reason
    assert site.get(secret.path) == {"password": "of-a-person"}


def test_a_secret_without_a_value_gets_its_first(
    system: PasswordFile, store: RotationStore, site: Any
) -> None:
    fresh = site.ref(PasswordFile.kind)
    state = run(system, store, fresh)
    assert state.step is Step.DONE
    assert "revoke" not in system.calls
    assert site.get(fresh.path) == {"password": "new-password-1"}


def test_a_first_value_that_fails_is_withdrawn(
    system: PasswordFile, store: RotationStore, site: Any
) -> None:
    fresh = site.ref(PasswordFile.kind)
    system.failures["observe"] = [Conflict("Unable to look: a trial. Nothing.")]
    assert run(system, store, fresh).step is Step.ROLLED_BACK
    assert site.versions.read(fresh.path).values is None
