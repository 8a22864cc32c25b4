"""Signing keys of webhooks, between the product's own gateway and the lab's GitLab.

What uses the key is GitLab: at each kill it is asked for a delivery, which must be believed.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gitlab.exceptions
import pytest
import uvicorn

from blocks.delivery_store import DeliveryStore
from blocks.delivery_store_engines import SqliteEngine
from blocks.openbao import OpenBaoServer
from blocks.rotation.gitlab_projects import GitLabProjects
from blocks.rotation.gitlab_webhook_signing_key import GitLabWebhookSigningKey
from blocks.rotation.registry import check_secrets
from blocks.webhook_secrets import replacement_path
from blocks.webhook_sender import deliver
from deployments.gateway import intake as intake_module
from deployments.gateway import secret_cache
from deployments.gateway.app import gateway_app
from deployments.gateway.intake import Intake
from deployments.gateway.settings import Limits
from deployments.gateway.systems import OpenBaoSecrets
from domain.errors import NotFound, Unauthorized
from domain.rotation.contract import SecretRef, Values
from domain.webhooks.rate_limit import Rate
from domain.webhooks.signatures import encoded_key
from lab.bare_control_plane import Authority, free_ports
from lab.bare_gitlab import GROUP, PRODUCT, BareGitLab, bare_gitlab

ENVIRONMENT = "trial"
ADMIN_PATH = "infraflows/trial/gitlab"
UNLIMITED = Rate(1e9, 1e9)
FRESH_SECONDS = 0.05
EVENTS = {"push_events": True, "deployment_events": True}


@dataclass
class GatewayThread:
    url: str
    ca_file: str


@pytest.fixture(scope="module")
def gateway(
    openbao_server: OpenBaoServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayThread]:
    """The product's gateway in a thread; it forgets what it read sooner than it else would."""
    directory = tmp_path_factory.mktemp("gateway")
    Authority(directory).issue("server", "gateway", "infraflows")
    (port,) = free_ports(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secret_cache, "FRESH_SECONDS", FRESH_SECONDS)
        patch.setattr(intake_module, "RENEW_AFTER_SECONDS", FRESH_SECONDS)
        store = DeliveryStore(SqliteEngine(directory / "deliveries.db"))
        limits = Limits(project_rate=UNLIMITED, lookup_rate=UNLIMITED)
        reader = OpenBaoSecrets(openbao_server)
        app = gateway_app(Intake(ENVIRONMENT, store, reader, time.time, limits), store)
        files = {"ssl_certfile": directory / "server.crt", "ssl_keyfile": directory / "server.key"}
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", **files)  # type: ignore[arg-type]
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield GatewayThread(f"https://127.0.0.1:{port}", str(directory / "ca.crt"))
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def simulator(
    gateway: GatewayThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BareGitLab]:
    with bare_gitlab(
        tmp_path_factory.mktemp("gitlab"), registry_ca_file=gateway.ca_file
    ) as running:
        yield running


@pytest.fixture
def make_key(
    site: Any, make_world: Any, gateway: GatewayThread, simulator: BareGitLab
) -> Callable[[], Any]:
    """Return how a connected project is made, with its key as the secret."""
    site.put(ADMIN_PATH, {"token": simulator.tokens[PRODUCT]})
    client = simulator.client(PRODUCT)
    group = client.groups.get(GROUP)
    address = f"{gateway.url}/gitlab"

    def make() -> Any:
        name = f"shop-{secrets.token_hex(4)}"
        project = client.projects.create(
            {"name": name, "namespace_id": group.id, "initialize_with_readme": True}
        )
        secret = SecretRef(
            f"webhooks/{ENVIRONMENT}/gitlab/{project.id}",
            GitLabWebhookSigningKey.kind,
            ENVIRONMENT,
            {
                "url": simulator.url,
                "ca_file": simulator.ca_file,
                "admin_path": ADMIN_PATH,
                "project_id": str(project.id),
                "gateway_url": gateway.url,
                "gateway_ca_file": gateway.ca_file,
            },
        )
        check_secrets([secret])
        key = encoded_key(secrets.token_bytes(32))
        site.put(secret.path, {"signing_key": key, "token": "kept"})
        hook = project.hooks.create(
            {"url": address, "name": "kept", "signing_token": key, **EVENTS}
        )

        def is_believed(values: Values) -> bool:
            time.sleep(2 * FRESH_SECONDS)
            event = {"object_kind": "infraflows_test", "project_id": project.id}
            try:
                deliver(address, gateway.ca_file, values["signing_key"], event, "try a key")
            except Unauthorized:
                return False
            return True

        def gitlab_is_believed() -> bool:
            time.sleep(2 * FRESH_SECONDS)
            try:
                client.http_post(f"/projects/{project.id}/hooks/{hook.id}/test/push_events")
            except gitlab.exceptions.GitlabHttpError:
                return False
            return True

        return make_world(
            secret=secret,
            adapter=GitLabWebhookSigningKey(GitLabProjects(site.session.read), site.session),
            current=lambda: site.get(secret.path),
            works=is_believed,
            times_rotated=lambda: site.times_written(secret.path),
            holds_working=gitlab_is_believed,
        )

    return make


def test_a_key_is_replaced_and_no_delivery_in_between_is_refused(
    make_key: Any, make_probe: Any, matrix: Any, wish: Any, record_property: Any
) -> None:
    world = make_key()
    old = world.current()

    def deliveries(_: int) -> Callable[[], None]:
        def ask() -> None:
            assert world.holds_working(), "GitLab's delivery was refused"

        return ask

    with make_probe(deliveries) as probe:
        state = matrix.rotate(world, wish())
    matrix.assert_rotated_once(world, old, state)
    assert probe.load.failures == []
    assert world.current()["token"] == "kept"
    record_property("load", f"{world.secret.kind}: {probe.load}")


def test_a_key_is_replaced_once_whatever_kills_it(
    make_key: Any, matrix: Any, session: Any, record_property: Any
) -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(make_key())
        return made[-1]

    record_property("edges", matrix.kill_everywhere(make, every=4))
    for world in made:
        with pytest.raises(NotFound):
            session.read(replacement_path(world.secret.path))


def test_after_a_leak_the_old_key_dies_first_and_nothing_is_left_beside(
    make_key: Any, matrix: Any, wish: Any, session: Any
) -> None:
    world = make_key()
    old = world.current()
    state = matrix.rotate(world, wish(is_leak=True))
    matrix.assert_rotated_once(world, old, state)
    assert world.holds_working()
    with pytest.raises(NotFound):
        session.read(replacement_path(world.secret.path))


def test_what_else_the_webhook_is_stays(
    make_key: Any, matrix: Any, wish: Any, simulator: Any
) -> None:
    world = make_key()
    project = simulator.client(PRODUCT).projects.get(world.secret.parameters["project_id"])
    (before,) = project.hooks.list()
    matrix.rotate(world, wish())
    (after,) = project.hooks.list()
    names = ("id", "url", "name", *EVENTS, "merge_requests_events", "enable_ssl_verification")
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]


def test_a_project_that_is_not_connected_is_refused(make_key: Any) -> None:
    world = make_key()
    with pytest.raises(NotFound, match="Connect the project"):
        world.adapter.create(world.secret, 1, None)


def test_keys_are_nowhere_in_an_error(make_key: Any, tmp_path: Path) -> None:
    world = make_key()
    unknown = encoded_key(secrets.token_bytes(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blocks.rotation.gitlab_webhook_signing_key.TEST_SECONDS", 0.0)
        patch.setattr("blocks.rotation.gitlab_webhook_signing_key.TEST_PAUSE_SECONDS", 0.0)
        with pytest.raises(Unauthorized) as caught:
            world.adapter.test(world.secret, {"signing_key": unknown})
    assert unknown not in str(caught.value)
