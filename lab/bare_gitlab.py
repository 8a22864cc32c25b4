"""The simulated GitLab without the lab, on a loop-back port, for tests of what speaks to a GitLab.

Promises a server of its own in one directory, with an administrator, the product's user, a
developer and one group; it ends with the process that started it. Killed by `kill`, it can be
started again on the same state.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gitlab
import httpx

from lab.bare_control_plane import Authority, free_ports

GROUP = "storefront"
START_SECONDS = 30.0
ROOT, PRODUCT, DEVELOPER = "root", "infraflows", "mira"
_OWNER, _DEVELOPER = 50, 30


@dataclass
class BareGitLab:
    """Where it runs and its users' tokens."""

    directory: Path
    port: int
    is_tls: bool
    registry_ca_file: str = ""
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    options: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Base address, without a slash at the end."""
        return f"{'https' if self.is_tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> str:
        """File of the CA that signed its certificate; empty without TLS."""
        return str(self.directory / "ca.crt") if self.is_tls else ""

    def client(self, user: str = PRODUCT) -> gitlab.Gitlab:
        """A client of python-gitlab with a user's token."""
        verify = self.ca_file or True
        return gitlab.Gitlab(self.url, private_token=self.tokens[user], ssl_verify=verify)

    def git_url(self, path: str, user: str = DEVELOPER) -> str:
        """Address of a project's repository with a user's login in it."""
        scheme, rest = self.url.split("//", 1)
        return f"{scheme}//{user}:{self.tokens[user]}@{rest}/{path}.git"

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "lab.gitlab"]
        command += [f"--directory={self.directory}/state", f"--port={self.port}"]
        command += [f"--accounts={self.directory}/accounts.json", *self.options]
        if self.is_tls:
            command += [f"--cert={self.directory}/server.crt", f"--key={self.directory}/server.key"]
        if self.registry_ca_file or self.is_tls:
            command.append(f"--ca-file={self.registry_ca_file or self.ca_file}")
        with (self.directory / "gitlab.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parents[1],
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self.directory / "gitlab.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Unable to start GitLab: it does not answer.\n{text}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            verify = False  # whether it lives is asked here, not who it is
            return (
                httpx.get(f"{self.url}/-/health", verify=verify, trust_env=False).status_code == 200
            )
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """SIGKILL; the state stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def bare_gitlab(
    directory: Path,
    *,
    is_tls: bool = True,
    job_seconds: float = 0.05,
    registry_ca_file: str = "",
    options: tuple[str, ...] = (),
) -> Iterator[BareGitLab]:
    """Run a GitLab in `directory` with the group `storefront`.

    `root` administrates, `infraflows` owns the group, `mira` develops in it. Its webhooks and its
    runner trust `registry_ca_file`, or the CA of its own certificate.
    """
    server = BareGitLab(directory, free_ports(1)[0], is_tls, registry_ca_file)
    server.options = (f"--job-seconds={job_seconds}", *options)
    server.tokens = {
        name: f"glpat-{secrets.token_urlsafe(20)}" for name in (ROOT, PRODUCT, DEVELOPER)
    }
    accounts = {
        "users": {
            ROOT: {"token": server.tokens[ROOT], "name": "Administrator", "is_admin": True},
            PRODUCT: {"token": server.tokens[PRODUCT], "name": "Infraflows"},
            DEVELOPER: {"token": server.tokens[DEVELOPER], "name": "Mira Sand"},
        },
        "groups": {GROUP: {PRODUCT: _OWNER, DEVELOPER: _DEVELOPER}},
    }
    (directory / "accounts.json").write_text(json.dumps(accounts))
    if is_tls:
        Authority(directory).issue("server", "gitlab", "infraflows")
    server.start()
    try:
        yield server
    finally:
        server.kill()  # at once: it keeps its promises by then, and its state goes with it
