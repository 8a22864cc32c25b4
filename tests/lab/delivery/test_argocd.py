"""The real Argo CD, with the step's objects, from commits on a real Git server."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.argocd import ArgoCd
from blocks.kubernetes_api import KubernetesApi
from domain.errors import Conflict, NotFound, PermanentError, Unreachable
from domain.manifest_order import ObjectKey
from domain.onboarding.app_spec import Stage
from domain.onboarding.argocd_objects import application, project
from domain.onboarding.things import differences
from lab.bare_argocd import BareArgocd
from tasks.onboarding.steps.argocd import ArgocdStep

SECONDS = 60.0
STEP = ArgocdStep()
ROLE = """\
    apiVersion: rbac.authorization.k8s.io/v1
    kind: Role
    metadata: {name: everything}
    rules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}]
"""
SETTINGS = """\
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: settings}
    data: {colour: blue}
"""


def eventually(is_met: Callable[[], Any], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_met():
        assert time.monotonic() < deadline, f"not seen in {seconds} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def shop(site: Any) -> Any:
    """A tenant of staging and production whose first commits are there."""
    tenant = site.tenant("shop", Stage.STAGING, Stage.PRODUCTION)
    site.commit(tenant, Stage.STAGING, "v1", settings=SETTINGS)
    site.commit(tenant, Stage.PRODUCTION, "v1")
    return tenant


def test_a_commit_arrives_and_what_is_declared_is_found(site: Any, shop: Any) -> None:
    STEP.apply(shop)

    assert differences("argocd", "argocd", STEP.found(shop), STEP.wanted(shop)) == []
    revision = site.commit(shop, Stage.STAGING, "v2", settings=SETTINGS)
    state = site.argocd.wait_until_synced("shop-staging", revision, SECONDS)
    assert (state.sync, state.health, state.revision) == ("Synced", "Healthy", revision)
    assert state.images == ("registry.example.org/team/shop:v2",)


def test_a_second_apply_changes_nothing_and_found_stays_wanted(site: Any, shop: Any) -> None:
    key = site.argocd.application_key("shop-staging")
    before = site.api.get(key)["metadata"]["generation"]

    STEP.apply(shop)

    assert site.api.get(key)["metadata"]["generation"] == before
    assert STEP.found(shop) == STEP.wanted(shop)


def test_a_login_that_was_rotated_is_seen_and_renewed(site: Any, shop: Any, secrets: Any) -> None:
    old = dict(secrets.values["gitops"])
    secrets.values["gitops"] = {**old, "password": "planted-new-password"}
    try:
        assert STEP.found(shop) != STEP.wanted(shop)
        STEP.apply(shop)
        assert STEP.found(shop) == STEP.wanted(shop)
    finally:
        secrets.values["gitops"] = old
    STEP.apply(shop)
    assert STEP.found(shop) == STEP.wanted(shop)


def test_an_application_that_a_killed_run_began_to_delete_is_made_anew(
    site: Any, shop: Any
) -> None:
    key = site.argocd.application_key("shop-production")
    hold = {"metadata": {"finalizers": ["example.org/held"]}}
    site.api.merge(key, hold, "a-person")
    site.api.delete(key, is_foreground=False)
    uid = site.api.get(key)["metadata"]["uid"]
    releasing = threading.Timer(
        1.0, lambda: site.api.merge(key, {"metadata": {"finalizers": []}}, "a-person")
    )
    releasing.start()

    STEP.apply(shop)

    assert site.api.get(key)["metadata"]["uid"] != uid
    assert STEP.found(shop) == STEP.wanted(shop)


def test_drift_is_healed_outside_production(site: Any, shop: Any) -> None:
    key = site.deployment(shop, Stage.STAGING)
    site.api.merge(key, {"spec": {"replicas": 3}}, "a-person")
    site.api.delete(ObjectKey("v1", "ConfigMap", "shop-staging", "settings"))

    eventually(lambda: site.api.get(key)["spec"]["replicas"] == 1, "one replica again")
    eventually(
        lambda: any(
            item["metadata"]["name"] == "settings"
            for item in site.api.list("v1", "ConfigMap", "shop-staging")
        ),
        "the deleted object",
    )


def test_what_leaves_git_is_pruned(site: Any, shop: Any) -> None:
    revision = site.commit(shop, Stage.STAGING, "v2")
    site.argocd.wait_until_synced("shop-staging", revision, SECONDS)

    with pytest.raises(NotFound):
        site.api.get(ObjectKey("v1", "ConfigMap", "shop-staging", "settings"))


def test_a_reverted_commit_brings_the_version_before_back(site: Any, shop: Any) -> None:
    good = site.commit(shop, Stage.STAGING, "v3")
    site.argocd.wait_until_synced("shop-staging", good, SECONDS)
    bad = site.commit(shop, Stage.STAGING, "v4")
    site.argocd.wait_until_synced("shop-staging", bad, SECONDS)

    back = site.revert(shop, Stage.STAGING, good)

    assert site.argocd.wait_until_synced("shop-staging", back, SECONDS).revision == back
    assert site.image(shop, Stage.STAGING).endswith("shop:v3")


def test_production_waits_for_a_person_and_then_takes_the_very_commit(site: Any, shop: Any) -> None:
    approved = site.commit(shop, Stage.PRODUCTION, "v5")
    later = site.commit(shop, Stage.PRODUCTION, "v6")
    site.argocd.refresh("shop-production")
    eventually(lambda: site.argocd.state("shop-production").revision == later, "a comparison")
    with pytest.raises(NotFound):
        site.image(shop, Stage.PRODUCTION)

    state = site.argocd.sync("shop-production", approved, SECONDS)

    assert (state.operation, state.operation_revision) == ("Succeeded", approved)
    assert site.image(shop, Stage.PRODUCTION).endswith("shop:v5")


def test_a_commit_of_another_application_does_not_hold_up_the_wait(site: Any, shop: Any) -> None:
    mine = site.commit(shop, Stage.STAGING, "v7")
    other = site.tenant("other", Stage.STAGING)
    site.commit(other, Stage.STAGING, "v1")

    state = site.argocd.wait_until_synced("shop-staging", mine, SECONDS)

    assert state.revision != mine
    assert site.image(shop, Stage.STAGING).endswith("shop:v7")


def test_a_kind_that_the_project_forbids_is_refused_by_name(site: Any) -> None:
    tenant = site.tenant("greedy", Stage.STAGING)
    revision = site.commit(tenant, Stage.STAGING, "v1", role=ROLE)
    STEP.apply(tenant)

    with pytest.raises((PermanentError, Unreachable), match="Role") as caught:
        site.argocd.wait_until_synced("greedy-staging", revision, 8)
    assert "greedy-staging" in str(caught.value)


def test_an_object_of_another_namespace_is_refused(site: Any) -> None:
    tenant = site.tenant("nosy", Stage.STAGING)
    stranger = SETTINGS.replace("{name: settings}", "{name: settings, namespace: kube-system}")
    file = f"{tenant.overlay_directory(Stage.STAGING)}/settings.yaml"
    with site.gitops.session(site.login) as session:
        text = textwrap.dedent(stranger)
        revision = session.commit_files({file: text}, "chore: a stranger").sha
    STEP.apply(tenant)

    with pytest.raises((PermanentError, Unreachable), match=r"not permitted|not match"):
        site.argocd.wait_until_synced("nosy-staging", revision, 8)
    with pytest.raises(NotFound):
        site.api.get(ObjectKey("v1", "ConfigMap", "kube-system", "settings"))


def test_what_somebody_else_made_is_not_taken_over(site: Any) -> None:
    tenant = site.tenant("taken", Stage.STAGING)
    foreign = application(tenant, Stage.STAGING)
    foreign["metadata"] = {"name": "taken-staging", "namespace": "argocd"}
    site.api.apply(foreign)

    with pytest.raises(Conflict, match="Application argocd/taken-staging"):
        STEP.apply(tenant)
    assert STEP.found(tenant) == {}
    site.api.delete(site.argocd.application_key("taken-staging"), is_foreground=False)


def test_a_stage_that_is_no_longer_wanted_goes_with_all_that_it_ran(site: Any) -> None:
    both = site.tenant("shrinking", Stage.DEVELOPMENT, Stage.STAGING)
    site.commit(both, Stage.DEVELOPMENT, "v1")
    revision = site.commit(both, Stage.STAGING, "v1")
    STEP.apply(both)
    for stage in (Stage.DEVELOPMENT, Stage.STAGING):
        site.argocd.wait_until_synced(f"shrinking-{stage.value}", revision, SECONDS)

    one = site.tenant("shrinking", Stage.STAGING)
    STEP.apply(one)

    assert STEP.found(one) == STEP.wanted(one)
    with pytest.raises(NotFound):
        site.api.get(site.deployment(both, Stage.DEVELOPMENT))
    assert site.image(one, Stage.STAGING).endswith("shrinking:v1")


def test_removal_cascades_and_leaves_nothing(site: Any, shop: Any) -> None:
    STEP.remove(shop)

    assert STEP.found(shop) == {}
    for stage in (Stage.STAGING, Stage.PRODUCTION):
        for key in (
            site.deployment(shop, stage),
            ObjectKey("v1", "Service", shop.scoped(stage), "shop"),
        ):
            with pytest.raises(NotFound):
                site.api.get(key)
    STEP.remove(shop)


def test_programs_speak_as_their_accounts_and_end_with_their_pods(
    programs: BareArgocd, api: KubernetesApi, argocd: ArgoCd
) -> None:
    names = {"argocd-application-controller", "argocd-repo-server", "argocd-server", "argocd-redis"}
    eventually(lambda: set(programs.instance.pids) == names, "all programs")
    server = programs.instance.pids["argocd-server"]
    assert b"argocd-server.kubeconfig" in Path(f"/proc/{server}/environ").read_bytes()
    redis = programs.instance.pids["argocd-redis"]
    assert b"requirepass" not in Path(f"/proc/{redis}/cmdline").read_bytes()

    killed = programs.instance.pids["argocd-repo-server"]
    os.kill(killed, signal.SIGKILL)
    eventually(
        lambda: programs.instance.pids.get("argocd-repo-server", killed) != killed,
        "another process of the same pod",
    )

    key = ObjectKey("apps/v1", "Deployment", "argocd", "argocd-server")
    api.merge(key, {"spec": {"replicas": 0}}, "a-person")
    eventually(lambda: "argocd-server" not in programs.instance.pids, "the end of the server")
    api.merge(key, {"spec": {"replicas": 2}}, "a-person")
    eventually(lambda: "argocd-server" in programs.instance.pids, "a server again")


def test_the_project_names_one_repository_and_the_tenants_namespaces(site: Any) -> None:
    tenant = site.tenant("shop", Stage.STAGING, Stage.PRODUCTION)
    found = project(tenant, tenant.app.stages)["spec"]

    assert found["sourceRepos"] == [tenant.platform.gitops_url]
    assert [d["namespace"] for d in found["destinations"]] == ["shop-staging", "shop-production"]
    assert found["clusterResourceWhitelist"] == []
