"""The registry: every class is described, and wrong secrets are told all at once."""

from __future__ import annotations

import pytest

from blocks.rotation.registry import CLASSES, adapter_for, check_secrets, rotation_class, table
from blocks.rotation.site import RotationSite
from domain.errors import InvalidSpec, PolicyViolation
from domain.rotation.contract import SecretRef


def test_every_class_has_its_own_name_and_a_full_row() -> None:
    assert len({each.kind for each in CLASSES}) == len(CLASSES)
    for row in table():
        assert all(row.values()), row
        assert row["expected outage (s)"] == "0"


def test_every_adapter_says_what_the_registry_says(store: object, session: object) -> None:
    for each in CLASSES:
        site = RotationSite("trial", session)  # type: ignore[arg-type]
        if each.kind.startswith(("openbao", "postgresql", "redis")):
            adapter = each.make(site)
            assert (adapter.kind, adapter.has_overlap) == (each.kind, each.has_overlap)


def test_an_unknown_class_is_told_with_those_that_are_known() -> None:
    with pytest.raises(InvalidSpec, match="redis-acl-user"):
        rotation_class("redis-acl-users")


def test_everything_that_is_wrong_is_told_at_once() -> None:
    wrong = [
        SecretRef("apps/a", "redis-acl-user", "trial", {"user": "a", "usr": "b"}),
        SecretRef("apps/b", "nothing", "trial"),
    ]
    with pytest.raises(InvalidSpec) as caught:
        check_secrets(wrong)
    assert len(caught.value.problems) == 3


def test_unseal_shares_need_a_person(session: object) -> None:
    site = RotationSite("trial", session)  # type: ignore[arg-type]
    with pytest.raises(PolicyViolation, match="approval"):
        adapter_for(site, SecretRef("apps/a", "openbao-unseal-keys", "trial"))
