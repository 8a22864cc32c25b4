"""Pull login and certificate in an application's namespaces, on a real API server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509

import tasks.onboarding.steps.kubernetes_secrets as module
from domain.errors import Conflict, NotFound
from domain.manifest_order import ObjectKey
from domain.onboarding.tenant import Tenant
from tasks.onboarding.steps.kubernetes_secrets import KubernetesSecrets

STEP = KubernetesSecrets()
Make = Callable[..., Tenant]
ROBOT_PASSWORD = "robot-password"


def prepared(systems: Any, tenant: Tenant) -> Tenant:
    """What the steps before this one leave."""
    systems.put(tenant.pull_robot_path, username=f"robot${tenant.name}", password=ROBOT_PASSWORD)
    for namespace in tenant.namespaces:
        systems.namespace(namespace)
    return tenant


@pytest.fixture
def shop(systems: Any, tenant_of: Make) -> Any:
    tenant = prepared(systems, tenant_of("shop", ("staging", "production")))
    STEP.apply(tenant)
    yield tenant
    STEP.remove(tenant)
    assert STEP.found(tenant) == {}


def secret(systems: Any, name: str, namespace: str = "shop-staging") -> dict[str, bytes]:
    with systems.api() as api:
        found = api.get(ObjectKey("v1", "Secret", namespace, name))
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


def certificate(systems: Any, namespace: str = "shop-staging") -> x509.Certificate:
    return x509.load_pem_x509_certificate(secret(systems, "ingress-tls", namespace)["tls.crt"])


def is_revoked(systems: Any, serial: int) -> bool:
    answer = systems.admin.adapter.get("/v1/pki/crl", json=None)
    crl = x509.load_der_x509_crl(answer.content)
    return crl.get_revoked_certificate_by_serial_number(serial) is not None


def test_it_makes_what_is_wanted_and_a_second_time_nothing(
    shop: Tenant, changes_of: Callable[..., list[str]]
) -> None:
    assert STEP.found(shop) == STEP.wanted(shop)
    assert len(STEP.found(shop)) == 4
    assert changes_of(lambda: STEP.apply(shop)) == []


def test_a_kubelet_finds_the_robots_login(systems: Any, shop: Tenant) -> None:
    login = json.loads(secret(systems, "registry-pull")[".dockerconfigjson"])
    entry = login["auths"]["harbor.test:8930"]
    assert (entry["username"], entry["password"]) == ("robot$shop", ROBOT_PASSWORD)


def test_the_certificate_names_the_hosts_and_is_the_sites(systems: Any, shop: Tenant) -> None:
    found = certificate(systems, "shop-production")
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["shop.apps.lab.infraflows.internal"]
    ca = x509.load_pem_x509_certificates(systems.layout.ca_file.read_bytes())[0]
    found.verify_directly_issued_by(ca)


def test_names_of_the_site_itself_are_not_certified(systems: Any, tenant_of: Make) -> None:
    environments = {"staging": {"hostnames": ["openbao.lab.infraflows.internal"]}}
    tenant = prepared(systems, tenant_of("thief", environments=environments))
    with pytest.raises(Exception, match="OpenBao refused it"):
        STEP.apply(tenant)
    STEP.remove(tenant)


def test_a_renewed_robot_is_seen_and_given_on(systems: Any, shop: Tenant) -> None:
    before = certificate(systems).serial_number
    systems.put(shop.pull_robot_path, username="robot$shop", password="renewed")

    assert STEP.found(shop) != STEP.wanted(shop)
    STEP.apply(shop)

    assert STEP.found(shop) == STEP.wanted(shop)
    assert b"renewed" in secret(systems, "registry-pull")[".dockerconfigjson"]
    assert certificate(systems).serial_number == before


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(
    systems: Any, shop: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = certificate(systems)
    life = before.not_valid_after_utc - before.not_valid_before_utc

    def at(moment: float) -> None:
        monkeypatch.setattr(module, "now", lambda: before.not_valid_before_utc + life * moment)

    at(0.65)
    assert STEP.found(shop) == STEP.wanted(shop)
    at(0.68)
    assert STEP.found(shop) != STEP.wanted(shop)
    STEP.apply(shop)

    assert certificate(systems).serial_number != before.serial_number
    assert not is_revoked(systems, before.serial_number)
    at(0)
    assert STEP.found(shop) == STEP.wanted(shop)


def test_another_host_name_means_another_certificate(
    systems: Any, shop: Tenant, tenant_of: Make
) -> None:
    before = certificate(systems).serial_number
    environments = {
        "staging": {"hostnames": ["buy.apps.lab.infraflows.internal"]},
        "production": {"replicas": 2},
    }
    changed = tenant_of("shop", environments=environments)

    STEP.apply(changed)

    assert STEP.found(changed) == STEP.wanted(changed)
    assert certificate(systems).serial_number != before


def test_removing_revokes_the_certificates(systems: Any, shop: Tenant) -> None:
    serials = [certificate(systems, name).serial_number for name in shop.namespaces]

    STEP.remove(shop)

    assert STEP.found(shop) == {}
    assert [is_revoked(systems, serial) for serial in serials] == [True, True]


def test_a_stage_that_is_no_longer_wanted_loses_its_secrets(shop: Tenant, tenant_of: Make) -> None:
    smaller = tenant_of("shop", ("staging",))
    STEP.apply(smaller)
    assert STEP.found(smaller) == STEP.wanted(smaller)
    assert len(STEP.found(smaller)) == 2


def test_without_a_robot_it_says_which_step_comes_first(systems: Any, tenant_of: Make) -> None:
    tenant = tenant_of("early")
    systems.namespace("early-staging")
    with pytest.raises(NotFound, match="Run the step harbor-project first"):
        STEP.apply(tenant)
    assert STEP.found(tenant) == {}


def test_a_secret_of_somebody_else_is_a_conflict_and_untouched(
    systems: Any, tenant_of: Make
) -> None:
    tenant = prepared(systems, tenant_of("foreign"))
    theirs = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "ingress-tls", "namespace": "foreign-staging"},
        "data": {"mine": base64.b64encode(b"theirs").decode()},
    }
    with systems.api() as api:
        api.apply(theirs)

    with pytest.raises(Conflict, match="foreign-staging/ingress-tls"):
        STEP.apply(tenant)
    assert STEP.found(tenant) == {}
    STEP.remove(tenant)

    assert secret(systems, "ingress-tls", "foreign-staging") == {"mine": b"theirs"}


def test_an_app_of_a_cluster_that_is_gone_has_nothing_there(systems: Any, shop: Tenant) -> None:
    kubeconfig = systems.control_plane.kubeconfig
    systems.admin.secrets.kv.v2.delete_metadata_and_all_versions(
        "clusters/demo/kubeconfig", mount_point="kv"
    )
    try:
        assert STEP.found(shop) == {}
    finally:
        systems.put("clusters/demo/kubeconfig", kubeconfig=kubeconfig)


def test_it_survives_being_killed_after_each_of_its_changes(
    systems: Any, tenant_of: Make, killed_everywhere: Callable[..., int]
) -> None:
    def fresh(number: int) -> Tenant:
        return prepared(systems, tenant_of(f"kill-{number}a"))

    assert killed_everywhere(STEP, fresh) > 3
