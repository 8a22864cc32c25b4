"""Git over HTTP by git's own `http-backend`, and the repositories that it serves.

What it promises: a push is what git says it is; the history of the main branch cannot be rewritten
or deleted. What it refuses: to hold a body in memory; it is passed on as it comes.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lab.layout import GIT_BRANCH, GIT_REPOSITORY, GITOPS_REPOSITORY

_CHUNK_BYTES = 64 * 1024
_HEADERS_LIMIT_BYTES = 16 * 1024
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
_FIRST_COMMIT = {
    "GIT_AUTHOR_NAME": "Infraflows lab",
    "GIT_AUTHOR_EMAIL": "lab@lab.infraflows.internal",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "Infraflows lab",
    "GIT_COMMITTER_EMAIL": "lab@lab.infraflows.internal",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


@dataclass(frozen=True)
class _Beginning:
    """The first commit of a repository."""

    subject: str
    readme: str


_BEGINNINGS = {
    GIT_REPOSITORY: _Beginning(
        "docs: begin the infrastructure record",
        """\
# Infrastructure

What runs at this site, as the flows recorded it. The main branch is the single source of truth.
""",
    ),
    GITOPS_REPOSITORY: _Beginning(
        "docs: begin the GitOps record",
        """\
# Applications

What runs on this site's clusters. Argo CD applies what the main branch says; the flows commit it.
""",
    ),
}


def ensure_repository(directory: Path, name: str = GIT_REPOSITORY) -> Path:
    """The bare repository with a first commit on its main branch; made once."""
    repository = directory / name
    if not (repository / "HEAD").exists():
        half_made = directory / f"{name}.new"
        shutil.rmtree(half_made, ignore_errors=True)
        half_made.mkdir(parents=True)
        _git(half_made, "init", "--quiet", "--bare", f"--initial-branch={GIT_BRANCH}", ".")
        shutil.rmtree(repository, ignore_errors=True)
        half_made.rename(repository)
    for key, value in (
        ("http.receivepack", "true"),
        ("receive.denyNonFastForwards", "true"),
        ("receive.denyDeletes", "true"),
        ("core.fsync", "committed"),
        ("gc.auto", "0"),
    ):
        _git(repository, "config", key, value)
    if not (repository / "refs/heads" / GIT_BRANCH).exists() and not _has_branch(repository):
        _commit_readme(repository, _BEGINNINGS[name])
    return repository


def _has_branch(repository: Path) -> bool:
    try:
        _git(repository, "rev-parse", "--verify", "--quiet", f"refs/heads/{GIT_BRANCH}")
    except subprocess.CalledProcessError:
        return False
    return True


def _commit_readme(repository: Path, beginning: _Beginning) -> None:
    blob = _git(repository, "hash-object", "-w", "--stdin", text=beginning.readme)
    tree = _git(repository, "mktree", text=f"100644 blob {blob}\tREADME.md\n")
    commit = _git(repository, "commit-tree", tree, text=f"{beginning.subject}\n")
    _git(repository, "update-ref", f"refs/heads/{GIT_BRANCH}", commit)


def _git(repository: Path, *arguments: str, text: str = "") -> str:
    result = subprocess.run(
        ["git", *arguments],
        cwd=repository,
        input=text,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**_ENVIRONMENT, **_FIRST_COMMIT, "GIT_CONFIG_NOSYSTEM": "1"},
    )
    return result.stdout.strip()


class _WhileReading(StreamingResponse):
    """An answer that begins while the request's body is still read.

    git answers before it has read everything. The ordinary response would take the rest of the body
    from under the reader, to see whether the client is still there.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        await self.stream_response(send)


async def serve_git(
    request: Request, directory: Path, *, user: str, for_hooks: Mapping[str, str] | None = None
) -> Response:
    """One request, answered by `git http-backend` as a CGI program.

    `for_hooks` is what the repository's own hooks find in their environment.
    """
    if request.method not in ("GET", "HEAD", "POST"):
        return PlainTextResponse(
            f"Not simulated by the git server: {request.method}\n", status_code=501
        )
    process = await asyncio.create_subprocess_exec(
        "git",
        "http-backend",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**(for_hooks or {}), **_cgi_environment(request, directory, user)},
        limit=_HEADERS_LIMIT_BYTES,
    )
    feeding = asyncio.create_task(_feed(request, process))
    try:
        status, headers = await _read_headers(process)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        feeding.cancel()
        await _end(process)
        return PlainTextResponse("git http-backend failed\n", status_code=500)
    return _WhileReading(_output(process, feeding), status_code=status, headers=headers)


def _cgi_environment(request: Request, directory: Path, user: str) -> dict[str, str]:
    environment = {
        **_ENVIRONMENT,
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": request.url.query,
        "PATH_INFO": "/" + request.path_params["path"],
        "REMOTE_USER": user,
        "REMOTE_ADDR": request.client.host if request.client else "",
        "GIT_PROJECT_ROOT": str(directory),
        "GIT_HTTP_EXPORT_ALL": "1",
        # Reflogs of received pushes carry a name.
        "GIT_COMMITTER_NAME": user,
        "GIT_COMMITTER_EMAIL": f"{user}@lab.infraflows.internal",
    }
    for header, variable in (
        ("content-type", "CONTENT_TYPE"),
        ("content-length", "CONTENT_LENGTH"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("git-protocol", "GIT_PROTOCOL"),
    ):
        if header in request.headers:
            environment[variable] = request.headers[header]
    return environment


async def _feed(request: Request, process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None  # noqa: S101 - asked for by PIPE
    try:
        async for chunk in request.stream():
            process.stdin.write(chunk)
            await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError, ClientDisconnect):
        return  # git had enough and its answer says why, or the client went away
    finally:
        process.stdin.close()


async def _read_headers(process: asyncio.subprocess.Process) -> tuple[int, dict[str, str]]:
    assert process.stdout is not None  # noqa: S101 - asked for by PIPE
    block = await process.stdout.readuntil(b"\r\n\r\n")
    status, headers = 200, {}
    for line in block.decode("latin-1").strip().split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "status":
            status = int(value.split()[0])
        else:
            headers[name] = value.strip()
    return status, headers


async def _output(
    process: asyncio.subprocess.Process, feeding: asyncio.Task[None]
) -> AsyncIterator[bytes]:
    assert process.stdout is not None  # noqa: S101 - asked for by PIPE
    try:
        while chunk := await process.stdout.read(_CHUNK_BYTES):
            yield chunk
    finally:
        feeding.cancel()
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """A client that went away must not leave a git behind."""
    if process.returncode is None:
        try:
            await asyncio.wait_for(process.wait(), timeout=10)
        except TimeoutError:
            process.kill()
            await process.wait()
