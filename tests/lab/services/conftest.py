"""A site server on a free port, and a lab layout that touches nothing outside a test's folder."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from lab.layout import Layout
from lab.services.git_http import ensure_repository
from lab.services.site_server import application

LOGIN = {"username": "infraflows", "password": "a-password-of-the-test"}


@dataclass(frozen=True)
class Site:
    url: str
    directory: Path
    login: tuple[str, str]


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)  # pytest's are closed to other users, which the lab refuses
    monkeypatch.setattr(Layout, "run_directory", property(lambda _: tmp_path / "run"))
    return Layout(instance="unit-tests", home=tmp_path / "home", ui_port=4299)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "rke2" / "v1").mkdir(parents=True)
    ensure_repository(tmp_path / "git")
    app = application(
        git_directory=tmp_path / "git",
        git_login=LOGIN,
        state_directory=tmp_path / "state",
        state_login=LOGIN,
        artifacts_directory=tmp_path / "rke2",
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    port = listener.getsockname()[1]
    yield Site(f"http://127.0.0.1:{port}", tmp_path, (LOGIN["username"], LOGIN["password"]))
    server.should_exit = True
    thread.join(timeout=10)
    listener.close()
