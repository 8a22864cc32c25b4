"""Real NGINX and OpenSSH servers without a lab, for tests of what lies on hosts.

Why it exists: which certificate is served after a reload can only be told by a real server.
Promises servers on loop-back ports of their own, configured in one directory, that end with the
process that started them. Refuses the system's own services: those are never touched.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.bare_control_plane import free_ports

START_SECONDS = 60.0
PATIENCE_SECONDS = 10.0

_NGINX = """\
worker_processes 2;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
user root;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {directory}/tmp;
  proxy_temp_path {directory}/tmp;
  fastcgi_temp_path {directory}/tmp;
  uwsgi_temp_path {directory}/tmp;
  scgi_temp_path {directory}/tmp;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    location / {{ {location} }}
  }}
}}
"""
_SSHD = """\
ListenAddress 127.0.0.1:{port}
PidFile {directory}/sshd.pid
HostKey {directory}/host/current/key
HostCertificate {directory}/host/current/key-cert.pub
TrustedUserCAKeys {directory}/trusted.pub
AuthorizedKeysFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PermitRootLogin prohibit-password
StrictModes no
MaxStartups 200
PerSourceMaxStartups none
LogLevel ERROR
"""


def _start(command: Sequence[str], directory: Path, log: str) -> subprocess.Popen[bytes]:
    with (directory / log).open("ab") as output:
        # setpriv: the process must not outlive a test run that is killed.
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=directory,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(directory)},
        )


@contextmanager
def _running(
    command: Sequence[str], directory: Path, log: str, answers: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    process = _start(command, directory, log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                text = (directory / log).read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Unable to start {command[0]}: it does not answer.\n{text}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class BareNginx:
    """A real NGINX with TLS."""

    directory: Path
    port: int

    @property
    def configuration(self) -> Path:
        """Its configuration file."""
        return self.directory / "nginx.conf"

    @property
    def check(self) -> str:
        """The command that looks whether it would start."""
        return f"nginx -q -t -c {self.configuration} -e {self.directory}/nginx-error.log"

    @property
    def reload(self) -> str:
        """The command that has it read its files anew."""
        return f"nginx -q -s reload -c {self.configuration} -e {self.directory}/nginx-error.log"


@contextmanager
def bare_nginx(
    directory: Path, certificate: Path, key: Path, location: str = 'return 200 "served";'
) -> Iterator[BareNginx]:
    """Run NGINX in `directory` with these files and this content of `location /`."""
    server = BareNginx(directory, free_ports(1)[0])
    (directory / "tmp").mkdir(exist_ok=True)
    server.configuration.write_text(
        _NGINX.format(
            directory=directory,
            port=server.port,
            certificate=certificate,
            key=key,
            location=location,
        )
    )
    error_log = f"{directory}/nginx-error.log"
    command = ["nginx", "-c", str(server.configuration), "-e", error_log]
    with _running(command, directory, "nginx.log", lambda: (directory / "nginx.pid").exists()):
        yield server


@dataclass(frozen=True)
class BareSshd:
    """A real OpenSSH server that knows certificates only."""

    directory: Path
    port: int

    @property
    def host_directory(self) -> Path:
        """Where the versions of its host key lie."""
        return self.directory / "host"

    @property
    def trusted_file(self) -> Path:
        """The file of the user CAs that it trusts."""
        return self.directory / "trusted.pub"

    @property
    def check(self) -> str:
        """The command that looks whether it would start."""
        return f"{sshd_program()} -t -f {self.directory}/sshd_config"

    @property
    def reload(self) -> str:
        """The command that has it read its files anew."""
        return f"pkill -HUP --pidfile {self.directory}/sshd.pid"


def sshd_program() -> str:
    """Return the server's absolute path: it starts itself anew by that."""
    found = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if found is None:
        raise RuntimeError("Unable to find sshd: it is not installed. Install openssh-server.")
    return found


@contextmanager
def bare_sshd(server: BareSshd) -> Iterator[BareSshd]:
    """Run sshd; its host key and the trusted CAs are there already."""
    Path("/run/sshd").mkdir(exist_ok=True)
    directory = server.directory
    (directory / "sshd_config").write_text(_SSHD.format(directory=directory, port=server.port))
    command = [sshd_program(), "-D", "-e", "-f", str(directory / "sshd_config")]
    with _running(command, directory, "sshd.log", lambda: (directory / "sshd.pid").exists()):
        yield server


def new_sshd(directory: Path) -> BareSshd:
    """Return where a server will be, so that its files can be made before it starts."""
    return BareSshd(directory, free_ports(1)[0])
