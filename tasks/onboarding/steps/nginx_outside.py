"""Server blocks of an application on the NGINX outside the clusters.

Promises that a certificate of the outside names is there with its key (mode 0600) and is renewed
when a third of its life is left, that NGINX has looked at every change before it reads it, and that
certificates are revoked when the application goes. There is nothing to do where a platform has no
such host. Refuses host names that other server blocks of the host answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from blocks.openbao import OpenBaoSession, openbao
from blocks.openbao_engines import CertificateEngine, certificate_facts, now
from blocks.outside_nginx import OutsideNginx, OutsideStage, SiteVersion, outside_host
from domain.errors import Conflict
from domain.onboarding.app_spec import Stage
from domain.onboarding.outside_site import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    SITE,
    OutsidePlaces,
    outside_names,
    site_text,
)
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import Things, digest

RENEWED_WITH_LEFT = 1 / 3
PLACES = OutsidePlaces()
END_OF_CERTIFICATE = "-----END CERTIFICATE-----\n"


class NginxOutside:
    """What the host outside answers for an application."""

    name: ClassVar[str] = "nginx-outside"
    system: ClassVar[str] = "nginx"
    needs: ClassVar[tuple[str, ...]] = ("dns",)
    holds_data: ClassVar[bool] = False

    def wanted(self, tenant: Tenant) -> Things:
        """Return the server blocks of every stage that has outside names."""
        if not tenant.platform.outside_address:
            return {}
        return {
            _thing(stage.value): _state(
                site_text(tenant, stage, PLACES), outside_names(tenant, stage), is_good=True
            )
            for stage in tenant.app.stages
            if outside_names(tenant, stage)
        }

    def found(self, tenant: Tenant) -> Things:
        """Return the stages that have files on the host."""
        if not tenant.platform.outside_address:
            return {}
        with _opened(tenant) as (_, nginx):
            return _things(nginx.stages(tenant.name).values())

    def apply(self, tenant: Tenant) -> None:
        """Serve what differs, then forget what is not wanted."""
        if not tenant.platform.outside_address:
            return
        wanted = self.wanted(tenant)
        with _opened(tenant) as (bao, nginx):
            stages = nginx.stages(tenant.name)
            found = _things(stages.values())
            if found == wanted:
                return
            _refuse_taken(tenant, nginx)
            for stage in tenant.app.stages:
                thing = _thing(stage.value)
                if thing in wanted and found.get(thing) != wanted[thing]:
                    _serve(tenant, stage, bao, nginx, stages.get(stage.value))
            if dropped := [s for n, s in stages.items() if _thing(n) not in wanted]:
                _drop(tenant, bao, nginx, dropped)

    def remove(self, tenant: Tenant) -> None:
        """Have NGINX forget the application, revoke its certificates, remove its files."""
        if not tenant.platform.outside_address:
            return
        with _opened(tenant) as (bao, nginx):
            _drop(tenant, bao, nginx, list(nginx.stages(tenant.name).values()))


@contextmanager
def _opened(tenant: Tenant) -> Iterator[tuple[OpenBaoSession, OutsideNginx]]:
    platform = tenant.platform
    with (
        openbao(platform.environment).session() as bao,
        outside_host(bao, platform.environment, platform.outside_address) as host,
    ):
        yield bao, OutsideNginx(host, PLACES)


def _thing(stage: str) -> str:
    return f"server blocks {stage}"


def _state(text: str, names: list[str], *, is_good: bool) -> str:
    return digest({"text": text, "names": sorted(names), "is_good": is_good})


def _things(stages: Iterable[OutsideStage]) -> dict[str, str]:
    return {_thing(stage.name): _state_of(stage) for stage in stages}


def _state_of(stage: OutsideStage) -> str:
    version = stage.versions.get(stage.current)
    if version is None:
        return _state("", [], is_good=False)
    facts = certificate_facts(version.chain, version.key)
    is_read = stage.reloaded == stage.current
    is_alone = len(stage.versions) == 1
    return _state(
        version.text,
        list(facts.names) if facts else [],
        is_good=is_read and is_alone and version.is_key_private and _is_good(version),
    )


def _is_good(version: SiteVersion) -> bool:
    facts = certificate_facts(version.chain, version.key)
    return facts is not None and facts.is_whole and facts.has_left(now()) > RENEWED_WITH_LEFT


def _refuse_taken(tenant: Tenant, nginx: OutsideNginx) -> None:
    names = [name for stage in tenant.app.stages for name in outside_names(tenant, stage)]
    if taken := nginx.names_elsewhere(tenant.name, names):
        raise Conflict(
            f"Unable to answer for {tenant.name} on {nginx.host.name}: other server blocks there "
            f"answer {', '.join(taken)} already. Choose other names, or remove those blocks."
        )


def _engine(tenant: Tenant, bao: OpenBaoSession) -> CertificateEngine:
    return CertificateEngine(bao, tenant.platform.pki_mount, tenant.platform.pki_role)


def _serve(
    tenant: Tenant,
    stage: Stage,
    bao: OpenBaoSession,
    nginx: OutsideNginx,
    there: OutsideStage | None,
) -> None:
    names, text = outside_names(tenant, stage), site_text(tenant, stage, PLACES)
    held = there.versions.get(there.current) if there else None
    facts = certificate_facts(held.chain, held.key) if held else None
    if held and facts and list(facts.names) == names and _is_good(held):
        chain, key = held.chain.decode(), held.key.decode()
    else:
        issued = _engine(tenant, bao).issue(names)
        chain, key = issued.chain, issued.key
    authority = chain.partition(END_OF_CERTIFICATE)[2]
    version = digest({"text": text, "chain": chain})
    files = {CERTIFICATE: chain, KEY: key, AUTHORITY: authority, SITE: text}
    nginx.serve(tenant.name, stage.value, version, files)


def _drop(
    tenant: Tenant, bao: OpenBaoSession, nginx: OutsideNginx, stages: list[OutsideStage]
) -> None:
    names = [stage.name for stage in stages]
    if stages:
        nginx.withdraw(tenant.name, names)
    engine = _engine(tenant, bao)
    for stage in stages:
        for version in stage.versions.values():
            facts = certificate_facts(version.chain, version.key)
            if facts is not None:
                engine.revoke(facts.serial)
    # Also without stages: a kill may have left the directory that they were in.
    nginx.forget(tenant.name, names)
