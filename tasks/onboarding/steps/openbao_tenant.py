"""What an application may read in OpenBao: a policy, a login and its secret paths for each stage.

Promises least right: a pod of one stage reads the secrets of that stage. A secret path is prepared
with its owner and the keys that are expected; its values are the team's and are never written,
until the path is no longer wanted: then every version of it is destroyed, which is why this step
holds data. The login method of a cluster is shared by all applications and stays when they go.

Refuses policies, logins and paths of the same name that do not bear the application's mark.
"""

from __future__ import annotations

from typing import Any, ClassVar

from blocks.kubernetes_logins import METHOD, ClusterLogin
from blocks.openbao import OpenBaoSession, openbao
from blocks.openbao_access import ApplicationAccess
from domain.errors import Conflict
from domain.onboarding.app_spec import Stage
from domain.onboarding.openbao_access import (
    APP_KEY,
    KV,
    MANAGED_KEYS,
    login_role,
    mark,
    policy_text,
    wanted_secrets,
)
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import Things, differences, digest


class OpenBaoTenant:
    """Policies, Kubernetes logins and secret paths."""

    name: ClassVar[str] = "openbao-tenant"
    system: ClassVar[str] = "openbao"
    needs: ClassVar[tuple[str, ...]] = ()
    holds_data: ClassVar[bool] = True

    def wanted(self, tenant: Tenant) -> Things:
        """Return the policy and the login of each stage, and each secret path."""
        things: dict[str, str] = {}
        for stage in tenant.app.stages:
            things[_policy(tenant, stage)] = digest(policy_text(tenant, stage))
            things[_login(tenant.platform.kubernetes_mount(stage), tenant, stage)] = digest(
                {**login_role(tenant, stage), "is_set_up": True}
            )
        for path, custom in wanted_secrets(tenant).items():
            things[f"secret {path}"] = digest(custom)
        return things

    def found(self, tenant: Tenant) -> Things:
        """Return what bears the application's mark, in every stage and on every cluster."""
        with openbao(tenant.platform.environment).session() as bao:
            return _State(bao, tenant).things()

    def apply(self, tenant: Tenant) -> None:
        """Converge; everything that is somebody else's is told at once, before any change."""
        with openbao(tenant.platform.environment).session() as bao:
            state = _State(bao, tenant)
            wanted = self.wanted(tenant)
            found = state.things()
            state.refuse_foreign({thing for thing in wanted if thing not in found})
            for change in differences(self.name, self.system, found, wanted):
                if change.thing in wanted:
                    state.make(change.thing)
                else:
                    state.delete(change.thing)

    def remove(self, tenant: Tenant) -> None:
        """Delete logins and policies, and destroy the secrets."""
        with openbao(tenant.platform.environment).session() as bao:
            state = _State(bao, tenant)
            # Logins first: nobody may read on while the rest is taken away.
            # A cluster that does not answer is no reason to leave them.
            for thing in sorted(state.things(asks_clusters=False)):
                state.delete(thing)


def _policy(tenant: Tenant, stage: Stage) -> str:
    return f"policy {tenant.policy(stage)}"


def _login(mount: str, tenant: Tenant, stage: Stage) -> str:
    return f"login {mount}/{tenant.policy(stage)}"


class _State:
    """OpenBao as one run of the step sees it."""

    def __init__(self, bao: OpenBaoSession, tenant: Tenant) -> None:
        self._bao = bao
        self._access = ApplicationAccess(bao)
        self._tenant = tenant

    # --- what there is -----------------------------------------------------------------------

    def things(self, *, asks_clusters: bool = True) -> dict[str, str]:
        return self._policies() | self._logins(asks_clusters) | self._secrets()

    def _policies(self) -> dict[str, str]:
        found = {}
        for stage in Stage:
            text = self._access.policy(self._tenant.policy(stage))
            if text is not None and self._is_marked(text, stage):
                plain = text.replace(f'"{self._access.kv_mount}/data/', f'"{KV}/data/')
                found[_policy(self._tenant, stage)] = digest(plain)
        return found

    def _is_marked(self, policy: str, stage: Stage) -> bool:
        return policy.partition("\n")[0] == f"# {mark(self._tenant.name, stage)}"

    def _logins(self, asks_clusters: bool) -> dict[str, str]:
        found = {}
        for mount, method in self._access.methods().items():
            if method.get("type") != METHOD:
                continue
            roles = {
                stage: role
                for stage in Stage
                if (role := self._access.role(mount, self._tenant.policy(stage))) is not None
                and self._is_own(role, stage)
            }
            cluster = self._cluster(mount) if roles and asks_clusters else None
            is_set_up = cluster is not None and cluster.is_set_up()
            for stage, role in roles.items():
                managed = {key: role.get(key) for key in login_role(self._tenant, stage)}
                managed["is_set_up"] = is_set_up
                found[_login(mount, self._tenant, stage)] = digest(managed)
        return found

    def _is_own(self, role: dict[str, Any], stage: Stage) -> bool:
        """A role has no room for a mark: it is ours by where or by what it lets in."""
        namespaces = role.get("bound_service_account_namespaces") or []
        policies = role.get("token_policies") or []
        tenant = self._tenant
        return tenant.scoped(stage) in namespaces or tenant.policy(stage) in policies

    def _cluster(self, mount: str) -> ClusterLogin | None:
        """Return the cluster of a mount; None when applications do not land there any more."""
        platform = self._tenant.platform
        for stage, name in platform.clusters.items():
            if platform.kubernetes_mount(stage) == mount:
                return ClusterLogin(self._bao, mount, name, platform.kubeconfig_path(stage))
        return None

    def _secrets(self) -> dict[str, str]:
        found = {}
        for stage in Stage:
            for path in self._access.paths_under(f"{self._tenant.secrets_root}/{stage.value}"):
                custom = self._access.described(path) or {}
                if custom.get(APP_KEY) == self._tenant.name:
                    managed = {key: custom[key] for key in MANAGED_KEYS if key in custom}
                    found[f"secret {path}"] = digest(managed)
        return found

    # --- what is not ours --------------------------------------------------------------------

    def refuse_foreign(self, absent: set[str]) -> None:
        """Raise when a thing that is to be made is there already, without our mark."""
        foreign = []
        for thing in sorted(absent):
            kind, _, name = thing.partition(" ")
            mount, _, role = name.rpartition("/")
            if kind == "policy" and self._access.policy(name) is not None:
                foreign.append(f"{thing} is there without the application's mark")
            if kind == "login":
                cluster = self._cluster(mount)
                problem = cluster.problem() if cluster else ""
                foreign += [problem] if problem else []
                if self._access.role(mount, role) is not None:
                    foreign.append(f"{thing} is there and lets others in")
            if kind == "secret" and self._access.described(name) is not None:
                foreign.append(f"{thing} is there without the custom metadata {APP_KEY}")
        if foreign:
            raise Conflict(
                f"Unable to give {self._tenant.name} its place in OpenBao: {'; '.join(foreign)}. "
                "Move them away, or mark them if they are the application's."
            )

    # --- changing ----------------------------------------------------------------------------

    def make(self, thing: str) -> None:
        kind, _, name = thing.partition(" ")
        if kind == "policy":
            text = policy_text(self._tenant, self._stage(name))
            self._access.set_policy(name, text.replace(KV, self._access.kv_mount))
        elif kind == "login":
            mount, _, role = name.rpartition("/")
            cluster = self._cluster(mount)
            if cluster and not cluster.is_set_up():
                cluster.set_up()
            self._access.set_role(mount, role, login_role(self._tenant, self._stage(role)))
        else:
            before = self._access.described(name) or {}
            others = {key: value for key, value in before.items() if key not in MANAGED_KEYS}
            self._access.describe_path(name, others | wanted_secrets(self._tenant)[name])

    def delete(self, thing: str) -> None:
        kind, _, name = thing.partition(" ")
        if kind == "policy":
            self._access.delete_policy(name)
        elif kind == "login":
            mount, _, role = name.rpartition("/")
            self._access.delete_role(mount, role)
        else:
            self._access.destroy_path(name)

    def _stage(self, policy: str) -> Stage:
        return next(stage for stage in Stage if self._tenant.policy(stage) == policy)
