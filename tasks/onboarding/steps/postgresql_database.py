"""A database for each stage, owned by a role that nobody logs in with, and users that live an hour.

Promises that an application reaches its own database only, by users that OpenBao makes on demand
and that act as the owner, so that tables outlive them. Whose a database is, is told by the comment
of its owner; whose a role of OpenBao's engine is, by the comment in its first statement.

Holds data: dropping a database loses it. Refuses databases, roles and engine roles of the same
name that bear no mark.
"""

from __future__ import annotations

from typing import Any, ClassVar

from blocks.openbao import OpenBaoSession, openbao
from blocks.openbao_engines import DatabaseEngine
from blocks.postgresql_tenants import FoundDatabase, FoundOwner, TenantDatabases, WantedDatabase
from domain.errors import Conflict
from domain.onboarding.app_spec import Stage
from domain.onboarding.openbao_access import database_role, mark, user_mark
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import PRESENT, Things, digest


class PostgresqlDatabase:
    """Databases, owners, extensions, and OpenBao's roles for short-lived users."""

    name: ClassVar[str] = "postgresql-database"
    system: ClassVar[str] = "postgresql"
    needs: ClassVar[tuple[str, ...]] = ()
    holds_data: ClassVar[bool] = True

    def wanted(self, tenant: Tenant) -> Things:
        """Return database, owner, extensions and engine role of each stage, if any are wanted."""
        wish = tenant.app.database
        if wish is None:
            return {}
        things: dict[str, str] = {}
        for stage in tenant.app.stages:
            name = tenant.database(stage)
            things[f"owner {name}"] = _owner_state(is_plain=True, has_issuer=True)
            things[f"database {name}"] = _database_state(
                mark(tenant.name, stage), wish.connections, is_open=True, is_public=False
            )
            for extension in wish.extensions:
                things[f"extension {name}/{extension}"] = PRESENT
            things[f"engine role {tenant.policy(stage)}"] = digest(database_role(tenant, stage))
        return things

    def found(self, tenant: Tenant) -> Things:
        """Return what bears the application's mark, in every stage."""
        with openbao(tenant.platform.environment).session() as bao:
            return _State(bao, tenant).things()

    def apply(self, tenant: Tenant) -> None:
        """Converge; a database that is no longer wanted is dropped with its users."""
        wanted = self.wanted(tenant)
        with openbao(tenant.platform.environment).session() as bao:
            state = _State(bao, tenant)
            found = state.things()
            if found == wanted:
                return
            stages = tenant.app.stages if tenant.app.database else []
            state.refuse_foreign(stages)
            for stage in stages:
                state.ensure(stage)
            for stage in Stage:
                if stage not in stages:
                    state.remove(stage)

    def remove(self, tenant: Tenant) -> None:
        """End users and sessions, drop databases and roles."""
        with openbao(tenant.platform.environment).session() as bao:
            state = _State(bao, tenant)
            for stage in Stage:
                state.remove(stage)


def _owner_state(*, is_plain: bool, has_issuer: bool) -> str:
    return digest({"is_plain": is_plain, "has_issuer": has_issuer})


def _database_state(comment: str, connections: int, *, is_open: bool, is_public: bool) -> str:
    return digest([comment, connections, is_open, is_public])


class _State:
    """Both systems as one run of the step sees them."""

    def __init__(self, bao: OpenBaoSession, tenant: Tenant) -> None:
        platform = tenant.platform
        self._tenant = tenant
        self._engine = DatabaseEngine(bao, platform.database_mount)
        self._issuer = self._engine.issuer(platform.database_server)
        path = platform.database_credential
        self._server = TenantDatabases(bao.read(path), path)
        self._marks = {mark(tenant.name, stage): stage for stage in Stage}

    def things(self) -> dict[str, str]:
        owners = self._server.owners(list(self._marks))
        found = {f"owner {each.name}": self._state_of_owner(each) for each in owners}
        for database in self._server.databases(owners):
            found[f"database {database.name}"] = self._state_of(database)
            for extension in database.extensions:
                found[f"extension {database.name}/{extension}"] = PRESENT
        for stage in Stage:
            role = self._engine.role(self._tenant.policy(stage))
            if role is not None and self._is_own(role, stage):
                managed = {key: role.get(key) for key in database_role(self._tenant, stage)}
                found[f"engine role {self._tenant.policy(stage)}"] = digest(managed)
        return found

    def _state_of_owner(self, owner: FoundOwner) -> str:
        return _owner_state(is_plain=owner.is_plain, has_issuer=self._issuer in owner.issuers)

    @staticmethod
    def _state_of(database: FoundDatabase) -> str:
        return _database_state(
            database.mark,
            database.connections,
            is_open=database.is_open,
            is_public=database.is_public,
        )

    def _is_own(self, role: dict[str, Any], stage: Stage) -> bool:
        statements = role.get("creation_statements") or [""]
        return str(statements[0]).startswith(f"/* {mark(self._tenant.name, stage)} */")

    def refuse_foreign(self, stages: list[Stage]) -> None:
        """Raise with everything that is in the way, before anything is made."""
        tenant = self._tenant
        foreign = []
        for stage in stages:
            foreign += self._server.problems(tenant.database(stage), mark(tenant.name, stage))
            role = self._engine.role(tenant.policy(stage))
            if role is not None and not self._is_own(role, stage):
                name = f"{tenant.platform.database_mount}/roles/{tenant.policy(stage)}"
                foreign.append(f"OpenBao's {name} is there without the application's mark")
        if foreign:
            raise Conflict(
                f"Unable to give {tenant.name} its databases: {'; '.join(foreign)}. "
                "Rename or drop what is not the application's."
            )

    def ensure(self, stage: Stage) -> None:
        tenant, wish = self._tenant, self._tenant.app.database
        if wish is None:
            return
        self._server.ensure(
            WantedDatabase(
                name=tenant.database(stage),
                mark=mark(tenant.name, stage),
                connections=wish.connections,
                extensions=tuple(wish.extensions),
                issuer=self._issuer,
            )
        )
        self._engine.set_role(tenant.policy(stage), database_role(tenant, stage))

    def remove(self, stage: Stage) -> None:
        """No new users, no old users, no sessions, no database, no owner: in this order."""
        name = self._tenant.policy(stage)
        role = self._engine.role(name)
        if role is not None and not self._is_own(role, stage):
            return
        self._engine.delete_role(name)
        self._engine.revoke_users(name)
        for owner in self._server.owners([mark(self._tenant.name, stage)]):
            self._server.drop(owner, user_mark(self._tenant.name, stage))
