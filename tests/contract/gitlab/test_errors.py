"""How GitLab's failures reach the product."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from blocks.gitlab_server import GitLabServer, GitLabSession
from blocks.gitlab_transport import GitLabTransport, answer_error
from domain.errors import (
    Conflict,
    NotFound,
    PermanentError,
    TemporaryError,
    Unauthorized,
    Unreachable,
)


def test_a_token_that_is_refused_is_named_by_its_place_and_never_told(side: Any) -> None:
    with (
        side.block().session("glpat-canary-of-a-token") as other,
        pytest.raises(Unauthorized, match="the token was refused") as refused,
    ):
        other.version()
    assert "canary" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_without_a_token_nothing_is_sent(side: Any) -> None:
    with pytest.raises(Unauthorized, match="has no token"), side.block().session(""):
        pass


def test_a_server_that_is_not_there_is_a_temporary_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{probe.getsockname()[1]}"
    with (
        GitLabServer(url=url, credential="x").session("token") as gitlab,
        pytest.raises(Unreachable, match="no connection"),
    ):
        gitlab.version()


def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        block = GitLabServer(url=url, credential="x", timeout_seconds=0.3)
        with (
            block.session("token") as gitlab,
            pytest.raises(Unreachable, match="no answer in time"),
        ):
            gitlab.version()


def test_a_certificate_of_another_ca_is_refused(side: Any) -> None:
    block = GitLabServer(url=side.url, credential="x")
    if not side.ca_file:
        pytest.fail("a real GitLab needs GITLAB_CA_FILE for this test")
    with (
        block.session(side.token) as gitlab,
        pytest.raises(PermanentError, match="not signed by the CA"),
    ):
        gitlab.version()


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (401, "401 Unauthorized", Unauthorized),
        (403, "403 Forbidden", Unauthorized),
        (404, "404 Project Not Found", NotFound),
        (409, "Protected branch 'main' already exists", Conflict),
        (400, "You are attempting to update a file `a` that has changed since you", Conflict),
        (400, {"value": ["is invalid"]}, PermanentError),
        (429, "Retry later", TemporaryError),
        (500, "500 Internal Server Error", Unreachable),
        (502, "<html>" + "x" * 5000, Unreachable),
        (302, "", PermanentError),
    ],
)
def test_each_answer_is_one_kind_of_error(status: int, said: Any, kind: type[Exception]) -> None:
    said = f"{said} started editing it" if "attempting" in str(said) else said
    error = answer_error("Unable to do it", status, said)
    assert type(error) is kind
    assert str(error).startswith("Unable to do it: ")
    assert str(error).endswith(".")
    assert len(str(error)) < 400


def test_a_hidden_reason_still_tells_its_kind_and_nothing_else() -> None:
    said = {"key": ["(KEY) has already been taken"], "value": ["canary is invalid"]}
    error = answer_error("Unable to do it", 400, said, is_hidden=True)
    assert type(error) is Conflict
    assert "canary" not in str(error)


class Elsewhere:
    """A server that answers the first request with a redirect to an address of another."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.other = socket.create_server(("127.0.0.1", 0))
        self.other.settimeout(0.5)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.target = f"http://127.0.0.1:{self.other.getsockname()[1]}/stolen"
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.recv(65536)
            head = f"HTTP/1.1 302 Found\r\nLocation: {self.target}\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(head.encode())

    def was_asked(self) -> bool:
        try:
            self.other.accept()[0].close()
        except TimeoutError:
            return False
        return True


def test_the_token_does_not_follow_a_redirect_to_another_server() -> None:
    elsewhere = Elsewhere()
    session = GitLabSession(GitLabTransport(elsewhere.url, "", "token", 5))
    with pytest.raises(PermanentError, match="redirects to another server"):
        session.version()
    assert not elsewhere.was_asked()
