"""Connecting a project with the gateway, and what GitLab delivers; on the simulator."""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from blocks.gitlab_server import GitLabSession
from blocks.openbao import OpenBaoSession
from domain.errors import PermanentError
from tasks.onboarding.project_connection import EVENTS, connect, disconnect, secrets_path

ENVIRONMENT = "trial"


@dataclass
class Receiver:
    """A gateway that answers as it is told to, and keeps what it got."""

    url: str = ""
    status: int = 204
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while len(self.got) < count:
            assert time.monotonic() < deadline, f"{len(self.got)} of {count} deliveries came"
            time.sleep(0.02)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(made.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}/gitlab"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def joined(
    gitlab: GitLabSession, bao: OpenBaoSession, project: int, receiver: Receiver
) -> Callable[[], Any]:
    return lambda: connect(gitlab, bao, ENVIRONMENT, project, receiver.url)


def test_connecting_twice_leaves_one_webhook_and_one_key(
    gitlab: GitLabSession, bao: OpenBaoSession, project: int, joined: Callable[[], Any]
) -> None:
    first = joined()
    key = bao.read(secrets_path(ENVIRONMENT, project))
    assert joined() == first
    assert bao.read(secrets_path(ENVIRONMENT, project)) == key
    assert [hook.events for hook in gitlab.hooks(project)] == [EVENTS]


def test_deliveries_bear_the_key_that_lies_in_openbao(
    gitlab: GitLabSession,
    bao: OpenBaoSession,
    project: int,
    receiver: Receiver,
    joined: Callable[[], Any],
) -> None:
    joined()
    gitlab.commit_files(project, "main", "feat: x", {"x.txt": "x\n"})
    receiver.wait(1)
    headers, body = receiver.got[0]
    text = bao.read(secrets_path(ENVIRONMENT, project))["signing_key"].removeprefix("whsec_")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(base64.b64decode(text), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


def test_a_refused_delivery_is_listed_and_can_be_sent_again(
    gitlab: GitLabSession, project: int, receiver: Receiver, joined: Callable[[], Any]
) -> None:
    hook = joined()
    receiver.status = 503
    gitlab.commit_files(project, "main", "feat: x", {"x.txt": "x\n"})
    receiver.wait(1)
    deadline = time.monotonic() + 20
    while not (failed := gitlab.deliveries(project, hook.hook_id, "server_failure")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (failed[0].status, failed[0].is_accepted) == ("503", False)
    assert failed[0].trigger == "push_hooks"
    assert failed[0].body["project_id"] == project
    receiver.status = 204
    assert gitlab.resend(project, hook.hook_id, failed[0].event_id) == "204"
    accepted = [each for each in gitlab.deliveries(project, hook.hook_id) if each.is_accepted]
    assert [each.delivery_key for each in accepted] == [failed[0].delivery_key]


def test_a_webhook_that_gitlab_disabled_is_enabled_by_a_test_delivery(
    gitlab: GitLabSession, project: int, receiver: Receiver, joined: Callable[[], Any]
) -> None:
    hook = joined()
    receiver.status = 500
    for number in range(4):
        gitlab.commit_files(project, "main", "feat: x", {"x.txt": f"{number}\n"})
        receiver.wait(number + 1)
    deadline = time.monotonic() + 20
    while (state := gitlab.hooks(project)[0]).is_enabled:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert state.state == "temporarily_disabled"
    with pytest.raises(PermanentError):
        gitlab.enable_hook(project, hook.hook_id)
    receiver.status = 204
    gitlab.enable_hook(project, hook.hook_id)
    assert gitlab.hooks(project)[0].is_enabled


def test_disconnecting_leaves_neither_webhook_nor_key(
    gitlab: GitLabSession,
    bao: OpenBaoSession,
    project: int,
    receiver: Receiver,
    joined: Callable[[], Any],
) -> None:
    joined()
    for _again in range(2):
        disconnect(gitlab, bao, ENVIRONMENT, project, receiver.url)
        assert gitlab.hooks(project) == []
        assert not bao.exists(secrets_path(ENVIRONMENT, project))


def test_a_kill_after_any_change_is_finished_by_the_next_run(
    gitlab: GitLabSession,
    bao: OpenBaoSession,
    side: Any,
    receiver: Receiver,
    mortal: Any,
    killed: type[BaseException],
) -> None:
    for act in (connect, disconnect):
        number = 0
        while True:
            number += 1
            project = side.project()
            if act is disconnect:
                connect(gitlab, bao, ENVIRONMENT, project, receiver.url)
            mortal.arm(number)
            try:
                act(gitlab, bao, ENVIRONMENT, project, receiver.url)
            except killed:
                pass
            else:
                mortal.arm(-1)
                break
            mortal.arm(-1)
            act(gitlab, bao, ENVIRONMENT, project, receiver.url)
            hooks = gitlab.hooks(project)
            if act is connect:
                assert [hook.has_signing_token for hook in hooks] == [True]
            else:
                assert hooks == []
                assert not bao.exists(secrets_path(ENVIRONMENT, project))
        assert number > 2


# --- pipelines -------------------------------------------------------------------------------


def _pipeline(*jobs: str) -> str:
    return "stages: [test]\n" + "".join(jobs)


@pytest.fixture(autouse=True)
def simulated(request: pytest.FixtureRequest) -> None:
    """A real GitLab reaches no receiver on this machine's loop-back, and may have no runner."""
    if request.config.getoption("--real-gitlab", default=None):
        pytest.skip("needs the simulator")


JOB = "unit:\n  stage: test\n  script: ['true']\n"
BY_HAND = "release:\n  stage: test\n  when: manual\n  allow_failure: false\n  script: ['true']\n"


def test_a_pipeline_is_waited_for_until_its_end(gitlab: GitLabSession, project: int) -> None:
    files = {".gitlab-ci.yml": _pipeline(JOB)}
    commit = gitlab.commit_files(project, "main", "ci: test", files).sha
    looks: list[Any] = []
    ended = gitlab.wait_for_pipeline(project, commit, 30, looks.append)
    assert (ended.status, ended.ref) == ("success", "main")
    assert looks[-1] == ended
    assert gitlab.pipelines(project, commit) == [ended]


def test_a_pipeline_that_waits_for_a_person_has_ended(gitlab: GitLabSession, project: int) -> None:
    files = {".gitlab-ci.yml": _pipeline(BY_HAND)}
    commit = gitlab.commit_files(project, "main", "ci: test", files).sha
    ended = gitlab.wait_for_pipeline(project, commit, 30)
    assert ended.status == "manual"
