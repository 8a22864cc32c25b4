"""OpenBao's own credentials, rotated against a real OpenBao under load and through kills."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Callable
from typing import Any

import hvac.exceptions
import pytest

from blocks.openbao import OpenBaoServer
from blocks.rotation.openbao_approle import AppRoleSecretId
from blocks.rotation.openbao_token import PeriodicToken
from blocks.rotation.openbao_unseal import UnsealKeys
from domain.errors import InvalidSpec, PolicyViolation
from domain.rotation.contract import SecretRef, Values
from domain.rotation.state import Step

READ_EVERY = 5


def refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (hvac.exceptions.InvalidRequest, hvac.exceptions.Forbidden):
        return True
    return False


# ------------------------------------------------------------------------- AppRole secret ids


def make_approle(site: Any, make_world: Any, **parameters: str) -> Any:
    role = site.name("app")
    site.admin.auth.approle.create_or_update_approle(role, token_ttl="10m")
    role_id = site.admin.auth.approle.read_role_id(role)["data"]["role_id"]
    secret_id = secrets.token_hex(16)
    site.admin.write(f"auth/approle/role/{role}/custom-secret-id", secret_id=secret_id)
    secret = site.ref(AppRoleSecretId.kind, role=role, **{"quiet_seconds": "0", **parameters})
    site.put(secret.path, {"role_id": role_id, "secret_id": secret_id})

    def log_in(values: Values) -> None:
        client = site.bao.client("")
        client.auth.approle.login(values["role_id"], values["secret_id"])
        client.auth.token.revoke_self()

    return make_world(
        secret=secret,
        adapter=AppRoleSecretId(site.session),
        current=lambda: site.get(secret.path),
        works=lambda values: not refused(lambda: log_in(values)),
        times_rotated=lambda: site.times_written(secret.path),
        consume=lambda: log_in(site.get(secret.path)),
    )


def approle_consumer(site: Any, world: Any) -> Callable[[int], Callable[[], None]]:
    def make(number: int) -> Callable[[], None]:
        reader, sent, held = site.bao.client(), 0, {}
        role = site.bao.client("")

        def request() -> None:
            nonlocal sent, held
            if sent % READ_EVERY == 0:
                answer = reader.secrets.kv.v2.read_secret_version(
                    world.secret.path, mount_point="kv", raise_on_deleted_version=True
                )
                held = answer["data"]["data"]
            sent += 1
            role.auth.approle.login(held["role_id"], held["secret_id"], use_token=False)

        return request

    return make


def test_a_secret_id_is_rotated_under_load_without_a_failed_login(
    site: Any, make_world: Any, make_probe: Any, matrix: Any, wish: Any, record_property: Any
) -> None:
    world = make_approle(site, make_world, quiet_seconds="1")
    old = world.current()
    with make_probe(approle_consumer(site, world)) as probe:
        state = matrix.rotate(world, wish())
    matrix.assert_rotated_once(world, old, state)
    assert probe.load.failures == []
    record_property("load", f"{world.secret.kind}: {probe.load}")


def test_a_secret_id_is_rotated_once_whatever_kills_it(
    site: Any, make_world: Any, matrix: Any, record_property: Any
) -> None:
    edges = matrix.kill_everywhere(lambda: make_approle(site, make_world))
    record_property("edges", edges)


def test_no_secret_id_is_left_that_nobody_knows(site: Any, make_world: Any, matrix: Any) -> None:
    world = make_approle(site, make_world)
    names = matrix.edges_of(lambda: make_approle(site, make_world))
    matrix.kill_at(world, names.index("after AppRoleSecretId.set"))
    role = world.secret.parameters["role"]
    listed = site.admin.auth.approle.list_secret_id_accessors(role)["data"]["keys"]
    assert len(listed) == 1


def test_the_secret_id_that_the_run_logged_in_with_is_refused(
    site: Any, make_world: Any, matrix: Any, wish: Any, openbao_server: OpenBaoServer
) -> None:
    world = make_approle(site, make_world)
    own = {**world.current(), "secret_id": openbao_server.own_secret_id()}
    secret = SecretRef(world.secret.path, world.secret.kind, "trial", {"role": "rotator"})
    site.put(secret.path, own)
    world.secret, world.consume = secret, None
    with pytest.raises(PolicyViolation, match="authenticated with it"):
        matrix.rotate(world, wish())
    assert site.get(secret.path) == own
    with pytest.raises(PolicyViolation, match="authenticated with it"):
        world.adapter.create(secret, 1, own)
    with pytest.raises(PolicyViolation, match="authenticated with it"):
        world.adapter.revoke(secret, own)


def test_logins_are_told_apart_without_an_audit_log_too(
    site: Any, make_world: Any, openbao_server: OpenBaoServer, wish: Any, matrix: Any
) -> None:
    world = make_approle(site, make_world, quiet_seconds="600")
    old = world.current()
    site.bao.client("").auth.approle.login(old["role_id"], old["secret_id"])
    silent = openbao_server.model_copy(update={"audit_file": ""})
    with silent.session() as session:
        adapter = AppRoleSecretId(session)
        new = adapter.create(world.secret, 1, old)
        adapter.set(world.secret, new, old)
        site.put(world.secret.path, new)
        assert [seen.is_on_new for seen in adapter.observe(world.secret, new, old)] == [False]
        site.bao.client("").auth.approle.login(new["role_id"], new["secret_id"])
        at_once = SecretRef(
            world.secret.path,
            world.secret.kind,
            "trial",
            {**world.secret.parameters, "quiet_seconds": "0"},
        )
        assert [seen.is_on_new for seen in adapter.observe(at_once, new, old)] == [True]


def test_a_secret_id_that_nobody_uses_is_waited_for_by_nobody(
    site: Any, make_world: Any, matrix: Any, wish: Any
) -> None:
    world = make_approle(site, make_world)
    world.consume = None
    assert matrix.rotate(world, wish()).step is Step.DONE


# --------------------------------------------------------------------------- periodic tokens


def make_token(site: Any, make_world: Any, **parameters: str) -> Any:
    base = site.name("app")
    roles = [f"{base}-a", f"{base}-b"]
    for role in roles:
        site.admin.write(
            f"auth/token/roles/{role}",
            allowed_policies="default",
            token_period="1h",
            orphan=True,
            renewable=True,
        )
    made = site.admin.write(f"auth/token/create/{roles[0]}")["auth"]
    secret = site.ref(
        PeriodicToken.kind, token_roles=",".join(roles), **{"quiet_seconds": "0", **parameters}
    )
    site.put(secret.path, {"token": made["client_token"], "accessor": made["accessor"]})

    def look_up(values: Values) -> None:
        site.bao.client(values["token"]).auth.token.lookup_self()

    return make_world(
        secret=secret,
        adapter=PeriodicToken(site.session),
        current=lambda: site.get(secret.path),
        works=lambda values: not refused(lambda: look_up(values)),
        times_rotated=lambda: site.times_written(secret.path),
        consume=lambda: site.bao.client(world_token(site, secret)).auth.token.renew_self(),
    )


def world_token(site: Any, secret: SecretRef) -> str:
    return str(site.get(secret.path)["token"])


def token_consumer(site: Any, world: Any) -> Callable[[int], Callable[[], None]]:
    def make(number: int) -> Callable[[], None]:
        reader, sent = site.bao.client(), 0
        holder = site.bao.client("")

        def request() -> None:
            nonlocal sent
            if sent % READ_EVERY == 0:
                answer = reader.secrets.kv.v2.read_secret_version(
                    world.secret.path, mount_point="kv", raise_on_deleted_version=True
                )
                holder.token = answer["data"]["data"]["token"]
            sent += 1
            if sent % READ_EVERY == 0:
                holder.auth.token.renew_self()
            else:
                holder.auth.token.lookup_self()

        return request

    return make


def test_a_periodic_token_is_rotated_under_load_without_a_failed_request(
    site: Any, make_world: Any, make_probe: Any, matrix: Any, wish: Any, record_property: Any
) -> None:
    world = make_token(site, make_world, quiet_seconds="1")
    old = world.current()
    with make_probe(token_consumer(site, world)) as probe:
        state = matrix.rotate(world, wish())
    matrix.assert_rotated_once(world, old, state)
    assert probe.load.failures == []
    record_property("load", f"{world.secret.kind}: {probe.load}")


def test_a_periodic_token_is_rotated_once_whatever_kills_it(
    site: Any, make_world: Any, matrix: Any, record_property: Any
) -> None:
    edges = matrix.kill_everywhere(lambda: make_token(site, make_world))
    record_property("edges", edges)


def test_no_token_is_left_that_nobody_knows(site: Any, make_world: Any, matrix: Any) -> None:
    world = make_token(site, make_world)
    names = matrix.edges_of(lambda: make_token(site, make_world))
    matrix.kill_at(world, names.index("after PeriodicToken.create"))
    alive = 0
    for role in world.secret.parameters["token_roles"].split(","):
        listed = site.admin.list(f"sys/leases/lookup/auth/token/create/{role}")
        alive += len(listed["data"]["keys"]) if listed else 0
    assert alive == 1


def test_a_second_rotation_never_revokes_the_token_in_use(
    site: Any, make_world: Any, matrix: Any, wish: Any
) -> None:
    world = make_token(site, make_world)
    matrix.rotate(world, wish())
    first = world.current()
    state = matrix.rotate(world, wish("second"))
    assert (state.step, state.generation) == (Step.DONE, 2)
    assert world.works(world.current())
    assert not world.works(first)


def test_the_token_that_the_run_holds_is_refused(
    site: Any, make_world: Any, matrix: Any, wish: Any
) -> None:
    world = make_token(site, make_world)
    own = {"token": site.session.token, "accessor": "unknown"}
    site.put(world.secret.path, own)
    world.consume = None
    with pytest.raises(PolicyViolation, match="authenticated with it"):
        matrix.rotate(world, wish())
    with pytest.raises(PolicyViolation, match="authenticated with it"):
        world.adapter.revoke(world.secret, own)
    assert site.session.own_accessors()


# ------------------------------------------------------------------------------ unseal shares


@pytest.fixture
def shares_directory(site: Any) -> Any:
    directory = site.directory / f"shares-{uuid.uuid4().hex[:8]}"
    directory.mkdir(mode=0o700)
    return directory


def are_accepted(site: Any, shares: list[str]) -> bool:
    """Ask by an attempt at a new root token, which is cancelled or revoked."""
    client = site.bao.client()
    client.sys.cancel_root_generation()
    started = client.sys.start_root_token_generation(otp=None, pgp_key=None)
    started = started.get("data", started)
    try:
        for share in shares[: site.bao.threshold]:
            client.sys.generate_root(key=share, nonce=started["nonce"])
    except (hvac.exceptions.InvalidRequest, hvac.exceptions.InternalServerError):
        client.sys.cancel_root_generation()
        return False
    return True


def make_shares(site: Any, make_world: Any, directory: Any) -> Any:
    secret = site.ref(UnsealKeys.kind, shares_directory=str(directory))
    site.put(
        secret.path,
        {"shares": json.dumps(site.bao.shares), "threshold": str(site.bao.threshold)},
    )
    file = directory / f"{secret.secret_id}.json"

    def works(values: Values) -> bool:
        accepted = are_accepted(site, json.loads(values["shares"]))
        if accepted:
            # The server is shared by all tests: the next one begins with what unseals it now.
            site.bao.shares = tuple(json.loads(values["shares"]))
        return accepted

    def holds_working() -> bool:
        held = [site.get(secret.path)]
        if file.exists():
            held += json.loads(file.read_text()).values()
        return any(works(values) for values in held)

    return make_world(
        secret=secret,
        adapter=UnsealKeys(site.session, {secret.secret_id: "a trial"}),
        current=lambda: site.get(secret.path),
        works=works,
        times_rotated=lambda: site.times_written(secret.path),
        has_overlap=False,
        holds_working=holds_working,
    )


def test_shares_are_rekeyed_while_openbao_serves_every_request(
    site: Any,
    make_world: Any,
    make_probe: Any,
    matrix: Any,
    wish: Any,
    shares_directory: Any,
    record_property: Any,
) -> None:
    world = make_shares(site, make_world, shares_directory)
    old = world.current()

    def make(number: int) -> Callable[[], None]:
        reader = site.bao.client()
        return lambda: reader.secrets.kv.v2.read_secret_version(
            world.secret.path, mount_point="kv", raise_on_deleted_version=True
        )

    with make_probe(make) as probe:
        state = matrix.rotate(world, wish())
    matrix.assert_rotated_once(world, old, state)
    assert probe.load.failures == []
    kept = json.loads((shares_directory / f"{world.secret.secret_id}.json").read_text())
    assert kept == {"current": world.current()}
    record_property("load", f"{world.secret.kind}: {probe.load}")


def test_an_old_share_does_not_unseal_a_sealed_openbao(
    site: Any, make_world: Any, matrix: Any, wish: Any, shares_directory: Any
) -> None:
    world = make_shares(site, make_world, shares_directory)
    old = json.loads(world.current()["shares"])
    matrix.rotate(world, wish())
    new = json.loads(world.current()["shares"])
    site.bao.shares = tuple(new)
    site.admin.sys.seal()
    try:
        with pytest.raises((hvac.exceptions.InvalidRequest, hvac.exceptions.InternalServerError)):
            site.bao.unseal(old[: site.bao.threshold])
    finally:
        assert site.bao.unseal(new[: site.bao.threshold])
        site.bao.wait_until_active()


def test_shares_are_rekeyed_once_whatever_kills_it(
    site: Any, make_world: Any, matrix: Any, shares_directory: Any, record_property: Any
) -> None:
    edges = matrix.kill_everywhere(lambda: make_shares(site, make_world, shares_directory))
    record_property("edges", edges)


def test_shares_are_not_rekeyed_without_approval_or_a_place_outside(
    site: Any, make_world: Any, shares_directory: Any
) -> None:
    world = make_shares(site, make_world, shares_directory)
    with pytest.raises(PolicyViolation, match="nobody approved"):
        UnsealKeys(site.session, {}).create(world.secret, 1, world.current())
    shares_directory.chmod(0o755)
    with pytest.raises(InvalidSpec, match="mode 0700"):
        world.adapter.create(world.secret, 1, world.current())
