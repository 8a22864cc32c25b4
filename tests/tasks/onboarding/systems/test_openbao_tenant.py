"""What an application's pods may read in OpenBao, proved with tokens of a real API server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import hvac.exceptions
import pytest

from blocks.kubernetes_logins import NAMESPACE, TOKEN_SECRET
from domain.errors import Conflict
from domain.manifest_order import ObjectKey
from domain.onboarding.tenant import Tenant
from tasks.onboarding.steps.openbao_tenant import OpenBaoTenant
from tasks.onboarding.steps.postgresql_database import PostgresqlDatabase

STEP = OpenBaoTenant()
TOKEN_SECRET_KEY = ObjectKey("v1", "Secret", NAMESPACE, TOKEN_SECRET)
Make = Callable[..., Tenant]


@pytest.fixture
def shop(systems: Any, tenant_of: Make) -> Any:
    tenant = tenant_of("shop", ("staging", "production"))
    for namespace in tenant.namespaces:
        systems.namespace(namespace)
    STEP.apply(tenant)
    yield tenant
    STEP.remove(tenant)


def read(systems: Any, token: str, path: str) -> dict[str, str]:
    answer = systems.bao.client(token).secrets.kv.v2.read_secret_version(
        path, mount_point="kv", raise_on_deleted_version=True
    )
    return dict(answer["data"]["data"])


def test_it_makes_what_is_wanted_and_a_second_time_nothing(
    shop: Tenant, changes_of: Callable[..., list[str]]
) -> None:
    assert STEP.found(shop) == STEP.wanted(shop)
    assert changes_of(lambda: STEP.apply(shop)) == []


def test_a_pod_reads_its_own_secret_and_no_other(
    systems: Any, shop: Tenant, tenant_of: Make
) -> None:
    other = tenant_of("bakery")
    STEP.apply(other)
    systems.put("apps/shop/staging/payment", API_KEY="of staging")
    systems.put("apps/shop/production/payment", API_KEY="of production")
    systems.put("apps/bakery/staging/payment", API_KEY="of the bakery")

    token = systems.login_of_pod("shop-staging", "app-shop-staging")

    assert read(systems, token, "apps/shop/staging/payment") == {"API_KEY": "of staging"}
    refused = [
        "apps/shop/production/payment",
        "apps/bakery/staging/payment",
        "apps/shop/harbor-pull",
    ]
    for path in (*refused, "infraflows/lab/database"):
        with pytest.raises(hvac.exceptions.Forbidden):
            read(systems, token, path)
    with pytest.raises(hvac.exceptions.Forbidden):
        systems.bao.client(token).secrets.kv.v2.create_or_update_secret(
            "apps/shop/staging/payment", {"API_KEY": "x"}, mount_point="kv"
        )
    STEP.remove(other)


def test_a_pod_of_one_stage_cannot_log_in_as_another(systems: Any, shop: Tenant) -> None:
    with pytest.raises(hvac.exceptions.VaultError):
        systems.login_of_pod("shop-staging", "app-shop-production")


def test_a_pod_gets_and_renews_a_user_of_its_own_database_only(systems: Any, shop: Tenant) -> None:
    databases = PostgresqlDatabase()
    databases.apply(shop)
    pod = systems.bao.client(systems.login_of_pod("shop-staging", "app-shop-staging"))

    user = pod.read("database/creds/app-shop-staging")
    renewed = pod.sys.renew_lease(user["lease_id"], increment=600)

    assert renewed["lease_duration"] > 0
    login = user["data"]
    systems.postgresql.connect(login["username"], login["password"], "shop_staging").close()
    with pytest.raises(hvac.exceptions.Forbidden):
        pod.read("database/creds/app-shop-production")
    databases.remove(shop)


def test_a_login_dies_with_its_service_account(systems: Any, shop: Tenant) -> None:
    token = systems.service_account_token("shop-production", "app")
    account = ObjectKey("v1", "ServiceAccount", "shop-production", "app")
    login = systems.bao.client("").auth.kubernetes.login
    role, mount = "app-shop-production", "kubernetes-demo"

    with systems.api() as api:
        api.delete(account, is_foreground=False)
        api.wait_until_gone(account, 20)

    # The API server learns of it a moment later.
    deadline = time.monotonic() + 30
    while True:
        try:
            login(role, token, use_token=False, mount_point=mount)
        except hvac.exceptions.VaultError:
            return
        assert time.monotonic() < deadline, "a login of a deleted account is accepted"
        time.sleep(0.2)


def test_values_that_are_there_are_kept_when_owners_and_keys_change(
    systems: Any, shop: Tenant, tenant_of: Make
) -> None:
    systems.put("apps/shop/staging/payment", API_KEY="kept")
    changed = tenant_of(
        "shop",
        ("staging", "production"),
        owners=["al@example.org"],
        secrets=[{"path": "payment", "keys": ["API_KEY", "MERCHANT"]}],
    )

    STEP.apply(changed)

    metadata = systems.admin.secrets.kv.v2.read_secret_metadata(
        "apps/shop/staging/payment", mount_point="kv"
    )["data"]
    assert metadata["custom_metadata"] == {
        "infraflows-app": "shop",
        "infraflows-stage": "staging",
        "owner": "al@example.org",
        "keys": "API_KEY,MERCHANT",
    }
    assert metadata["current_version"] == 1
    admin = systems.bao.root_token
    assert read(systems, admin, "apps/shop/staging/payment") == {"API_KEY": "kept"}


def test_what_is_no_longer_wanted_is_destroyed(systems: Any, shop: Tenant, tenant_of: Make) -> None:
    systems.put("apps/shop/production/payment", API_KEY="old")
    smaller = tenant_of("shop", ("staging",), secrets=[])

    STEP.apply(smaller)

    assert STEP.found(smaller) == STEP.wanted(smaller)
    assert systems.admin.sys.list_policies()["data"]["policies"].count("app-shop-production") == 0
    with pytest.raises(hvac.exceptions.InvalidPath):
        systems.admin.secrets.kv.v2.read_secret_metadata(
            "apps/shop/production/payment", mount_point="kv"
        )


@pytest.mark.parametrize("changed", ["policy", "login", "metadata", "cluster"])
def test_an_unmanaged_change_is_seen_and_taken_back(
    systems: Any, shop: Tenant, changed: str
) -> None:
    admin = systems.admin
    if changed == "policy":
        text = admin.sys.read_policy("app-shop-staging")["data"]["rules"]
        admin.sys.create_or_update_policy("app-shop-staging", text + 'path "kv/*" {}\n')
    elif changed == "login":
        path = "auth/kubernetes-demo/role/app-shop-staging"
        admin.write(path, bound_service_account_namespaces=["*"])
    elif changed == "metadata":
        body = {"custom_metadata": {"infraflows-app": "shop", "keys": "X"}}
        admin.adapter.post("/v1/kv/metadata/apps/shop/staging/payment", json=body)
    else:
        settings = admin.read("auth/kubernetes-demo/config")["data"]
        admin.write(
            "auth/kubernetes-demo/config",
            kubernetes_host="https://127.0.0.1:1",
            kubernetes_ca_cert=settings["kubernetes_ca_cert"],
            disable_local_ca_jwt=True,
        )

    assert STEP.found(shop) != STEP.wanted(shop)
    STEP.apply(shop)
    assert STEP.found(shop) == STEP.wanted(shop)


def test_a_cluster_whose_reviewer_was_replaced_is_set_up_anew(systems: Any, shop: Tenant) -> None:
    with systems.api() as api:
        api.delete(TOKEN_SECRET_KEY)

    assert STEP.found(shop) != STEP.wanted(shop)
    STEP.apply(shop)
    assert STEP.found(shop) == STEP.wanted(shop)
    assert systems.login_of_pod("shop-staging", "app-shop-staging")


def test_an_application_is_removed_although_its_cluster_does_not_answer(
    systems: Any, shop: Tenant
) -> None:
    kubeconfig = systems.control_plane.kubeconfig
    port = f"https://127.0.0.1:{systems.control_plane.port}"
    dead = kubeconfig.replace(port, "https://127.0.0.1:1")
    systems.put("clusters/demo/kubeconfig", kubeconfig=dead)
    try:
        STEP.remove(shop)
        assert STEP.found(shop) == {}
    finally:
        systems.put("clusters/demo/kubeconfig", kubeconfig=kubeconfig)


@pytest.mark.parametrize("kind", ["policy", "login", "secret"])
def test_what_is_somebody_elses_is_a_conflict_and_untouched(
    systems: Any, shop: Tenant, tenant_of: Make, kind: str
) -> None:
    tenant = tenant_of("foreign")
    admin = systems.admin
    if kind == "policy":
        admin.sys.create_or_update_policy("app-foreign-staging", 'path "x" {}')
    elif kind == "login":
        role = {"bound_service_account_names": ["x"], "bound_service_account_namespaces": ["y"]}
        admin.write("auth/kubernetes-demo/role/app-foreign-staging", **role)
    else:
        systems.put("apps/foreign/staging/payment", API_KEY="theirs")

    with pytest.raises(Conflict, match=kind):
        STEP.apply(tenant)
    assert STEP.found(tenant) == {}
    STEP.remove(tenant)

    if kind == "policy":
        assert admin.sys.read_policy("app-foreign-staging")["data"]["rules"] == 'path "x" {}'
        admin.sys.delete_policy("app-foreign-staging")
    elif kind == "login":
        path = "auth/kubernetes-demo/role/app-foreign-staging"
        assert admin.read(path)["data"]["bound_service_account_namespaces"] == ["y"]
        admin.delete(path)
    else:
        path = "apps/foreign/staging/payment"
        assert read(systems, systems.bao.root_token, path) == {"API_KEY": "theirs"}
        admin.secrets.kv.v2.delete_metadata_and_all_versions(path, mount_point="kv")


def test_it_survives_being_killed_after_each_of_its_changes(
    systems: Any, tenant_of: Make, killed_everywhere: Callable[..., int]
) -> None:
    def fresh(number: int) -> Tenant:
        # The cluster's login is set up anew as well.
        systems.admin.sys.disable_auth_method("kubernetes-demo")
        with systems.api() as api:
            api.delete(TOKEN_SECRET_KEY)
        return tenant_of(f"kill-{number}a")

    assert killed_everywhere(STEP, fresh) > 10
