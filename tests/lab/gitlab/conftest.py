"""One GitLab for all tests of it, a receiver of webhooks, and projects of their own."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab.bare_gitlab import GROUP, BareGitLab, bare_gitlab

PATIENCE_SECONDS = 15.0


@dataclass(frozen=True)
class Delivery:
    """What a webhook's receiver got."""

    headers: dict[str, str]
    body: bytes

    @property
    def payload(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def kind(self) -> str:
        return self.headers["x-gitlab-event"]


@dataclass
class Receiver:
    """A server that answers deliveries as it is told: by a status, or not at all."""

    url: str = ""
    deliveries: list[Delivery] = field(default_factory=list)
    answers: Callable[[int], int] = lambda _: 200
    """Status by the number of the delivery; 0 cuts the connection, a negative one waits so long."""

    def of_kind(self, kind: str) -> list[Delivery]:
        return [delivery for delivery in self.deliveries if delivery.kind == kind]

    def wait(self, count: int, kind: str = "") -> list[Delivery]:
        """Wait for so many deliveries and return them."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = self.of_kind(kind) if kind else list(self.deliveries)
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} of {count} deliveries {kind}"
            time.sleep(0.02)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook receiver."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.deliveries.append(Delivery(headers, body))
            status = receiver.answers(len(receiver.deliveries))
            if status <= 0:
                time.sleep(-status)
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield receiver
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareGitLab]:
    """A GitLab whose timers are short."""
    directory: Path = tmp_path_factory.mktemp("gitlab")
    options = ("--retry-seconds=0.1", "--disable-seconds=0.6", "--delivery-timeout-seconds=0.5")
    with bare_gitlab(directory, options=options) as running:
        yield running


@pytest.fixture
def client(server: BareGitLab) -> Any:
    """The product's client."""
    return server.client()


@pytest.fixture
def make_project(server: BareGitLab) -> Callable[..., Any]:
    """Return how a project of the group is made."""

    def make(user: str = "infraflows", **settings: Any) -> Any:
        client = server.client(user)
        group = client.groups.get(GROUP)
        name = f"shop-{uuid.uuid4().hex[:8]}"
        return client.projects.create({"name": name, "namespace_id": group.id, **settings})

    return make


@pytest.fixture
def project(make_project: Callable[..., Any]) -> Any:
    """A project with a README on its main branch."""
    return make_project(initialize_with_readme=True)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], Any]], Any]:
    """Return how to wait for something to be true."""

    def wait(is_so: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := is_so()):
            assert time.monotonic() < deadline, "it did not become true"
            time.sleep(0.03)
        return found

    return wait
