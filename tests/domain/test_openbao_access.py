"""What an application may do in OpenBao, as text and fields."""

from __future__ import annotations

from typing import Any

import pytest

from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.openbao_access import (
    database_role,
    login_role,
    mark,
    policy_text,
    wanted_secrets,
)
from domain.onboarding.tenant import Platform, Tenant


@pytest.fixture
def shop() -> Tenant:
    text = dict.fromkeys(Platform.__dataclass_fields__, "")
    fields: dict[str, Any] = {
        **text,
        "clusters": dict.fromkeys(Stage, "demo"),
        "database_mount": "database",
        "database_server": "apps",
    }
    app = AppSpec.model_validate(
        {
            "name": "shop",
            "team": "storefront",
            "repository": "storefront/shop",
            "owners": ["jo@example.org", "al@example.org"],
            "kind": "python",
            "port": 8080,
            "environments": {"staging": {}, "production": {"replicas": 2}},
            "secrets": [{"path": "payment", "keys": ["B", "A"]}],
            "database": {},
        }
    )
    return Tenant(Platform(**fields), app, 7, {})


def test_a_policy_names_every_path_and_has_no_wildcard(shop: Tenant) -> None:
    assert policy_text(shop, Stage.STAGING).splitlines() == [
        "# infraflows app=shop stage=staging",
        'path "{kv}/data/apps/shop/staging/payment" { capabilities = ["read"] }',
        'path "database/creds/app-shop-staging" { capabilities = ["read"] }',
        'path "sys/leases/renew" { capabilities = ["update"] }',
        'path "auth/token/lookup-self" { capabilities = ["read"] }',
        'path "auth/token/renew-self" { capabilities = ["update"] }',
        'path "auth/token/revoke-self" { capabilities = ["update"] }',
    ]


def test_without_a_database_nothing_of_databases_is_allowed(shop: Tenant) -> None:
    without = Tenant(shop.platform, shop.app.model_copy(update={"database": None}), 7, {})
    assert "database" not in policy_text(without, Stage.STAGING)
    assert "leases" not in policy_text(without, Stage.STAGING)


def test_a_login_is_for_one_account_in_one_namespace(shop: Tenant) -> None:
    role = login_role(shop, Stage.PRODUCTION)
    assert role["bound_service_account_names"] == ["app"]
    assert role["bound_service_account_namespaces"] == ["shop-production"]
    assert role["token_policies"] == ["app-shop-production"]
    assert role["token_no_default_policy"] is True


def test_every_secret_path_says_whose_it_is_and_what_is_expected(shop: Tenant) -> None:
    assert wanted_secrets(shop) == {
        f"apps/shop/{stage}/payment": {
            "infraflows-app": "shop",
            "infraflows-stage": stage,
            "owner": "jo@example.org,al@example.org",
            "keys": "A,B",
        }
        for stage in ("staging", "production")
    }


def test_a_database_role_bears_the_mark_in_its_first_statement(shop: Tenant) -> None:
    role = database_role(shop, Stage.STAGING)
    (creation,) = role["creation_statements"]
    assert creation.startswith(f"/* {mark('shop', Stage.STAGING)} */ CREATE ROLE")
    assert 'IN ROLE "shop_staging"' in creation
    assert role["default_ttl"] < role["max_ttl"]
