"""Against real repositories: by path, and over HTTP by git's own http-backend."""

from __future__ import annotations

import base64
import http.server
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from blocks.git_repository import GitRepository
from blocks.git_turn import turn
from blocks.private_directory import PREFIX, base_directory
from domain.errors import (
    Conflict,
    InvalidSpec,
    NotFound,
    PermanentError,
    Unauthorized,
    Unreachable,
)

CREDENTIAL = {"username": "infraflows", "password": "planted-git-password"}


def git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    directory = tmp_path / "served" / "infrastructure.git"
    directory.mkdir(parents=True)
    git(directory, "init", "--quiet", "--bare", "--initial-branch=main", ".")
    git(directory, "config", "http.receivepack", "true")
    return directory


@pytest.fixture
def repository(bare: Path) -> GitRepository:
    return GitRepository(url=f"file://{bare}", credential="infraflows/lab/git")


class _Backend(http.server.BaseHTTPRequestHandler):
    """Hands requests with the right credential to `git http-backend`."""

    root: Path
    redirect_to: str = ""
    knows_protocol_2: bool = True

    def _answer(self) -> None:
        body = self._body()
        if self.redirect_to:
            self.send_response(302)
            self.send_header("Location", self.redirect_to + self.path)
            self.end_headers()
            return
        pair = f"{CREDENTIAL['username']}:{CREDENTIAL['password']}".encode()
        if self.headers.get("Authorization") != f"Basic {base64.b64encode(pair).decode()}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "infraflows",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", "") if self.knows_protocol_2 else "",
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=environment, capture_output=True, check=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = _answer  # noqa: N815 - the library's names

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def http_server(bare: Path) -> Iterator[tuple[str, type[_Backend]]]:
    handler = type("Backend", (_Backend,), {"root": bare.parent})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


def test_the_first_commit_makes_the_branch(repository: GitRepository, bare: Path) -> None:
    with repository.session(CREDENTIAL) as work:
        with pytest.raises(NotFound, match="no commit yet"):
            work.head()
        made = work.commit_files({"clusters/demo/inventory.yaml": "a: 1\n"}, "inventory: demo")

    assert made.is_changed
    assert git(bare, "rev-parse", "main") == made.sha
    assert git(bare, "show", "main:clusters/demo/inventory.yaml") == "a: 1"
    assert git(bare, "log", "-1", "--format=%an <%ae> %s", "main").startswith("Infraflows <")


def test_what_is_already_there_makes_no_commit(repository: GitRepository, bare: Path) -> None:
    with repository.session(CREDENTIAL) as work:
        first = work.commit_files({"a": "1", "b": "2"}, "first")
    with repository.session(CREDENTIAL) as work:
        second = work.commit_files({"a": "1"}, "second")

    assert (second.sha, second.is_changed) == (first.sha, False)
    assert git(bare, "rev-list", "--count", "main") == "1"


def test_a_directory_is_replaced_whole_and_the_rest_is_left(
    repository: GitRepository, bare: Path
) -> None:
    with repository.session(CREDENTIAL) as work:
        work.commit_files({"c/demo/old": "1", "c/demo/kept": "1", "c/other/x": "1"}, "first")
        work.commit_files({"c/demo/kept": "2"}, "second", replaced_directories=["c/demo"])

        assert work.read_files("c") == {"c/demo/kept": "2", "c/other/x": "1"}
        assert work.list_files("c/demo") == ["c/demo/kept"]


def test_removing_an_absent_directory_makes_no_commit(repository: GitRepository) -> None:
    with repository.session(CREDENTIAL) as work:
        assert not work.commit_files({}, "x", replaced_directories=["c/ghost"]).is_changed
        first = work.commit_files({"a": "1"}, "first")
        again = work.commit_files({}, "x", replaced_directories=["c/ghost"])

    assert (again.sha, again.is_changed) == (first.sha, False)


def test_files_are_read_as_they_were_at_a_commit(repository: GitRepository) -> None:
    with repository.session(CREDENTIAL) as work:
        first = work.commit_files({"c/a": "ä\nold"}, "first")
        work.commit_files({"c/a": "new", "c/b": ""}, "second")
    with repository.session(CREDENTIAL) as work:
        assert work.read_files("c", first.sha) == {"c/a": "ä\nold"}
        assert work.read_file("c/a", first.sha) == "ä\nold"
        assert work.read_files("c") == {"c/a": "new", "c/b": ""}
        with pytest.raises(NotFound, match="no such file"):
            work.read_file("c/ghost")


def test_a_commit_that_the_branch_does_not_have_is_not_found(repository: GitRepository) -> None:
    with repository.session(CREDENTIAL) as work:
        work.commit_files({"a": "1"}, "first")
        work.commit_files({"a": "2"}, "second")
    with repository.session(CREDENTIAL) as work:
        with pytest.raises((NotFound, PermanentError), match=r"dddddddddddd|ended with"):
            work.list_files("c", "d" * 40)
        with pytest.raises(PermanentError, match="not a full commit id"):
            work.list_files("c", "main")


def test_writers_at_the_same_time_all_succeed(repository: GitRepository, bare: Path) -> None:
    def write(number: int) -> bool:
        with repository.session(CREDENTIAL) as work:
            made = work.commit_files({f"c/{number}": str(number)}, f"writer {number}")
            return made.is_changed

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write, range(4)))

    names = git(bare, "ls-tree", "-r", "--name-only", "main").split()
    assert names == ["c/0", "c/1", "c/2", "c/3"]
    assert git(bare, "rev-list", "--count", "--merges", "main") == "0"


@pytest.mark.parametrize("path", ["../x", "/x", ".git/config"])
def test_nothing_is_written_outside_the_repository(repository: GitRepository, path: str) -> None:
    with (
        repository.session(CREDENTIAL) as work,
        pytest.raises(InvalidSpec, match="leaves the repository"),
    ):
        work.commit_files({path: "x"}, "x")


def test_a_symbolic_link_in_the_repository_leads_nowhere(
    repository: GitRepository, bare: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "--quiet", str(bare), str(copy))
    (copy / "clusters").symlink_to(tmp_path)
    git(copy, "add", ".")
    git(copy, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "link")
    git(copy, "push", "-q", "origin", "HEAD:main")

    with (
        repository.session(CREDENTIAL) as work,
        pytest.raises(PermanentError, match="symbolic link"),
    ):
        work.commit_files({"clusters/planted": "x"}, "x")
    assert not (tmp_path / "planted").exists()


def test_it_works_over_http_with_the_credential(
    http_server: tuple[str, type[_Backend]], bare: Path
) -> None:
    url = f"{http_server[0]}/infrastructure.git"
    repository = GitRepository(url=url, credential="infraflows/lab/git")

    with repository.session(CREDENTIAL) as work:
        first = work.commit_files({"a": "1"}, "first")
        work.commit_files({"a": "2"}, "second")
    with repository.session(CREDENTIAL) as work:
        assert work.read_file("a", first.sha) == "1"

    assert git(bare, "show", "main:a") == "2"


def test_an_older_commit_is_found_on_a_server_that_gives_out_branches_only(
    http_server: tuple[str, type[_Backend]],
) -> None:
    url, handler = http_server
    handler.knows_protocol_2 = False
    repository = GitRepository(url=f"{url}/infrastructure.git", credential="c")

    with repository.session(CREDENTIAL) as work:
        first = work.commit_files({"c/a": "1"}, "first")
        work.commit_files({"c/a": "2"}, "second")
    with repository.session(CREDENTIAL) as work:
        assert work.read_files("c", first.sha) == {"c/a": "1"}
        with pytest.raises(NotFound, match="does not have it"):
            work.read_files("c", "d" * 40)


def test_a_wrong_credential_is_unauthorized_and_never_repeated(
    http_server: tuple[str, type[_Backend]],
) -> None:
    url = f"{http_server[0]}/infrastructure.git"
    repository = GitRepository(url=url, credential="infraflows/lab/git")

    with (
        pytest.raises(Unauthorized, match="Renew infraflows/lab/git") as caught,
        repository.session({"username": "x", "password": "planted-wrong"}) as work,
    ):
        work.head()
    assert "planted" not in str(caught.value)


def test_a_redirect_is_not_followed(http_server: tuple[str, type[_Backend]]) -> None:
    url, handler = http_server
    handler.redirect_to = "http://127.0.0.1:9"
    repository = GitRepository(url=f"{url}/infrastructure.git", credential="c")

    with pytest.raises((PermanentError, Unreachable)), repository.session(CREDENTIAL) as work:
        work.head()


def test_a_server_that_is_away_is_unreachable() -> None:
    repository = GitRepository(url="http://127.0.0.1:9/infrastructure.git", credential="c")

    with (
        pytest.raises(Unreachable, match="Check the Git server"),
        repository.session(CREDENTIAL) as work,
    ):
        work.head()


def test_an_address_with_a_credential_is_refused() -> None:
    with pytest.raises(ValueError, match="holds a credential"):
        GitRepository(url="https://me:planted@git.example.org/x.git", credential="c")


def test_git_and_the_credential_are_gone_when_the_worker_is_killed(
    http_server: tuple[str, type[_Backend]], tmp_path: Path
) -> None:
    url, handler = http_server
    stuck = threading.Event()
    release = threading.Event()

    def wait(self: _Backend) -> None:
        stuck.set()
        release.wait(30)

    handler.do_GET = wait  # type: ignore[method-assign]
    script = textwrap.dedent(
        f"""
        from blocks.git_repository import GitRepository
        repository = GitRepository(url="{url}/infrastructure.git", credential="c")
        with repository.session({CREDENTIAL!r}) as work:
            work.head()
        """
    )
    worker = subprocess.Popen([sys.executable, "-c", script])
    try:
        assert stuck.wait(30)
        marker = f"{PREFIX}git-{worker.pid}-"
        children = _processes_with(marker)
        assert children
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        deadline = time.monotonic() + 10
        while _processes_with(marker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _processes_with(marker) == []
    finally:
        release.set()
        worker.kill()
    # Whoever opens the next private directory removes what the dead one left.
    with GitRepository(url=f"file://{tmp_path}", credential="c").session(CREDENTIAL):
        pass
    assert not list(base_directory().glob(f"{marker}*"))


def _processes_with(marker: str) -> list[int]:
    """Return git's processes that run with the private directory of that worker."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes()
            name = (directory / "comm").read_text().strip()
        except OSError:
            continue
        if marker.encode() in environment and name.startswith("git"):
            found.append(int(directory.name))
    return found


def test_writers_of_other_machines_who_take_no_turns_still_all_succeed(
    repository: GitRepository, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blocks.git_repository.turn", lambda _url, _branch: nullcontext())

    def write(number: int) -> bool:
        with repository.session(CREDENTIAL) as work:
            return work.commit_files({f"c/{number}": str(number)}, f"writer {number}").is_changed

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(write, range(3)))
    assert git(bare, "rev-list", "--count", "main") == "3"


def test_a_file_that_another_writer_changed_is_not_overwritten(repository: GitRepository) -> None:
    with repository.session(CREDENTIAL) as work:
        work.commit_files({"a": "1\n"}, "first")
        with pytest.raises(Conflict, match="another writer changed it"):
            work.commit_files({"a": "3\n"}, "third", expected={"a": "2\n"})
        assert work.commit_files({"a": "2\n"}, "second", expected={"a": "1\n"}).is_changed


def test_the_versions_of_a_file_are_told_newest_first(repository: GitRepository) -> None:
    with repository.session(CREDENTIAL) as work:
        for number in range(3):
            work.commit_files({"a": f"{number}\n"}, f"a {number}")
            work.commit_files({"b": f"{number}\n"}, f"b {number}")
    with repository.session(CREDENTIAL) as work:
        assert work.versions("a", 10) == ["2\n", "1\n", "0\n"]
        assert work.versions("a", 2) == ["2\n", "1\n"]
        assert work.versions("absent", 10) == []


def test_the_turn_of_a_killed_writer_passes_on(tmp_path: Path) -> None:
    script = "import time; from blocks.git_turn import turn\n"
    script += f"with turn({str(tmp_path)!r}, 'main'): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with turn(str(tmp_path), "main") as is_held:
        assert is_held
    assert time.monotonic() - began < 5.0


def test_a_turn_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blocks.git_turn.WAIT_SECONDS", 0.1)
    with turn(str(tmp_path), "main"), turn(str(tmp_path), "main") as is_held:
        assert not is_held


def test_only_one_at_a_time_holds_a_turn_and_nothing_is_left(tmp_path: Path) -> None:
    holders: list[int] = []
    most: list[int] = []

    def hold(number: int) -> bool:
        with turn(str(tmp_path), "main") as is_held:
            holders.append(number)
            most.append(len(holders))
            time.sleep(0.01)
            holders.remove(number)
        return is_held

    before = {path.name for path in base_directory().glob("infraflows-turn-*")}
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(hold, range(24)))
    assert max(most) == 1
    assert {path.name for path in base_directory().glob("infraflows-turn-*")} <= before
