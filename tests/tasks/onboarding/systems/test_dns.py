"""Host names of applications in a zone of a real BIND, and whose they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blocks.dns_zone import RecordSwap, UpdateKey
from domain.errors import Conflict, InvalidSpec
from domain.onboarding.tenant import Tenant
from tasks.onboarding.steps.dns import Dns

STEP = Dns()
Make = Callable[..., Tenant]


@pytest.fixture
def key(systems: Any) -> UpdateKey:
    return UpdateKey.from_values(systems.dns.key, "dns")


@pytest.fixture
def shop(systems: Any, tenant_of: Make) -> Any:
    tenant = tenant_of("shop", ("staging", "production"))
    STEP.apply(tenant)
    yield tenant
    STEP.remove(tenant)


def test_it_makes_what_is_wanted_and_a_second_time_nothing(
    systems: Any, shop: Tenant, changes_of: Callable[..., list[str]]
) -> None:
    assert systems.zone.lookup("shop.apps") == ["10.90.0.5"]
    assert systems.zone.lookup("shop-staging.apps") == ["10.90.0.5"]
    assert systems.zone.texts(["_infraflows.shop.apps"]) == {
        "_infraflows.shop.apps": ["infraflows app=shop"]
    }
    serial = systems.zone.serial()

    assert STEP.found(shop) == STEP.wanted(shop)
    assert changes_of(lambda: STEP.apply(shop)) == []
    assert systems.zone.serial() == serial


def test_one_update_changes_names_marks_and_list(
    systems: Any, shop: Tenant, tenant_of: Make
) -> None:
    environments = {
        "production": {
            "replicas": 2,
            "hostnames": ["buy.apps.lab.infraflows.internal"],
            "outside_hostnames": ["buy.outside.lab.infraflows.internal"],
        }
    }
    changed = tenant_of("shop", environments=environments)
    serial = systems.zone.serial()

    STEP.apply(changed)

    assert systems.zone.serial() == serial + 1
    assert STEP.found(changed) == STEP.wanted(changed)
    assert systems.zone.lookup("buy.outside") == ["10.90.0.6"]
    assert systems.zone.lookup_all(["shop.apps", "shop-staging.apps"]) == {}


def test_removing_leaves_nothing_in_the_zone(systems: Any, shop: Tenant) -> None:
    STEP.remove(shop)

    names = ["shop.apps", "shop-staging.apps"]
    assert STEP.found(shop) == {}
    assert systems.zone.lookup_all(names) == {}
    assert systems.zone.texts([f"_infraflows.{name}" for name in names]) == {}
    assert systems.zone.texts(["shop._infraflows"]) == {}


def test_names_are_found_by_their_marks_when_the_specification_is_another(
    shop: Tenant, tenant_of: Make
) -> None:
    names = {"name shop.apps.lab.infraflows.internal"}
    names.add("name shop-staging.apps.lab.infraflows.internal")
    assert set(STEP.found(tenant_of("shop", ("development",)))) == names


def test_an_unmanaged_change_is_seen_and_taken_back(
    systems: Any, shop: Tenant, key: UpdateKey
) -> None:
    systems.zone.set_addresses({"shop.apps": "10.90.0.66"}, key)

    assert STEP.found(shop) != STEP.wanted(shop)
    STEP.apply(shop)
    assert STEP.found(shop) == STEP.wanted(shop)


@pytest.mark.parametrize("kind", ["address", "text", "mark"])
def test_a_name_of_somebody_else_is_a_conflict_and_untouched(
    systems: Any, tenant_of: Make, key: UpdateKey, kind: str
) -> None:
    theirs = {
        "address": RecordSwap("foreign-staging.apps", "A", (), ("10.90.0.99",)),
        "text": RecordSwap("foreign-staging.apps", "TXT", (), ("v=spf1 -all",)),
        "mark": RecordSwap("_infraflows.foreign-staging.apps", "TXT", (), ("infraflows app=x",)),
    }[kind]
    systems.zone.swap([theirs], key)
    serial = systems.zone.serial()
    tenant = tenant_of("foreign")

    with pytest.raises(Conflict):
        STEP.apply(tenant)
    assert STEP.found(tenant) == {}
    STEP.remove(tenant)

    assert systems.zone.serial() == serial
    systems.zone.swap([RecordSwap(theirs.name, theirs.kind, theirs.after, ())], key)


@pytest.mark.usefixtures("systems")
def test_a_name_outside_the_zone_is_refused(tenant_of: Make) -> None:
    environments = {"staging": {"hostnames": ["shop.example.org"]}}
    with pytest.raises(InvalidSpec, match=r"shop\.example\.org.* outside the zone"):
        STEP.apply(tenant_of("shop", environments=environments))


def test_a_record_that_changed_since_it_was_read_is_a_conflict(
    systems: Any, shop: Tenant, key: UpdateKey
) -> None:
    read_before = RecordSwap("shop.apps", "A", ("10.90.0.7",), ("10.90.0.8",))
    with pytest.raises(Conflict, match="changed meanwhile"):
        systems.zone.swap([read_before], key)
    assert systems.zone.lookup("shop.apps") == ["10.90.0.5"]


def test_it_survives_being_killed_after_each_of_its_changes(
    systems: Any, tenant_of: Make, killed_everywhere: Callable[..., int]
) -> None:
    # One atomic update each: killed before it is known to have happened, and not killed.
    assert killed_everywhere(STEP, lambda n: tenant_of(f"kill-{n}a")) == 2
