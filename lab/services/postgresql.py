"""PostgreSQL, where the Prefect server of the lab keeps its database, and applications theirs.

The distribution's own binaries, a cluster of our own in the lab's home. Passwords travel on
standard input, never in an argv. Prefect's database is closed to everybody but Prefect.

Two roles look after applications, neither a superuser: one makes databases and their owners, the
other is OpenBao's and makes short-lived users. In PostgreSQL 15 a role with CREATEROLE could still
change any role that is no superuser; from 16 on only those that it was given. A real site keeps
applications in a cluster of their own, as it should.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lab.layout import GATEWAY, NETWORK, POSTGRESQL_PORT, Layout
from lab.services.credentials import DATABASE_ISSUER, DATABASE_PROVISIONER, credential
from lab.services.files import owned_directory, write_if_changed
from lab.services.service import Launch, Service

USER = "postgres"
BINARIES = Path("/usr/lib/postgresql/15/bin")
DATABASE = "prefect"
APPS_DATABASE = "apps"
"""Of the demo applications, whose users are rotated; made by `lab.rotation_demo`."""

_SETTINGS = f"""\
listen_addresses = '{GATEWAY}'
port = {POSTGRESQL_PORT}
unix_socket_directories = '{{sockets}}'
password_encryption = 'scram-sha-256'
max_connections = 100
shared_buffers = '64MB'
log_destination = 'stderr'
logging_collector = off
log_statement = 'none'
"""

_ACCESS = f"""\
# The operating system's postgres user by socket. Prefect's database is Prefect's alone, and Prefect
# goes nowhere else. The empty databases are for the two that look after tenants. Every other
# database is a tenant's: who may connect to which is told by the right CONNECT.
local all postgres peer
host {DATABASE} {DATABASE} {GATEWAY}/32 scram-sha-256
host {DATABASE} all all reject
host all {DATABASE} all reject
host postgres {DATABASE_PROVISIONER},{DATABASE_ISSUER} {GATEWAY}/32 scram-sha-256
host postgres,template0,template1 all all reject
host all all {NETWORK} scram-sha-256
"""


def _data(layout: Layout) -> Path:
    return layout.postgresql_directory / "data"


def _sockets(layout: Layout) -> Path:
    return layout.run_directory / "postgresql"


def prepare(layout: Layout) -> None:
    owned_directory(layout.postgresql_directory, USER)
    owned_directory(_sockets(layout), USER)
    data = _data(layout)
    if not (data / "PG_VERSION").exists():
        _create_cluster(data)
    write_if_changed(
        data / "conf.d" / "lab.conf", _SETTINGS.format(sockets=_sockets(layout)), mode=0o644
    )
    shutil.chown(data / "conf.d", USER, USER)
    write_if_changed(data / "pg_hba.conf", _ACCESS, mode=0o644)
    for pid_file in (
        data / "postmaster.pid",
        _sockets(layout) / f".s.PGSQL.{POSTGRESQL_PORT}.lock",
    ):
        _forget_if_stale(pid_file)


def _create_cluster(data: Path) -> None:
    """Create it aside and rename it: a cluster whose making was cut off is never used."""
    half_made = data.with_name("data.new")
    shutil.rmtree(half_made, ignore_errors=True)
    shutil.rmtree(data, ignore_errors=True)
    _run_as_postgres(
        [
            str(BINARIES / "initdb"),
            f"--pgdata={half_made}",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--auth=reject",
            "--no-sync",
            "--no-instructions",
        ]
    )
    configuration = half_made / "postgresql.conf"
    with configuration.open("a", encoding="utf-8") as file:
        file.write("\ninclude_dir = 'conf.d'\n")
    (half_made / "conf.d").mkdir()
    half_made.rename(data)


def _forget_if_stale(pid_file: Path) -> None:
    """After a kill the file's pid may be another program's, or of a process nobody waited for.

    PostgreSQL would take either for a server that runs, and refuse to start.
    """
    try:
        pid = int(pid_file.read_text(encoding="ascii").split("\n", 1)[0])
        program = Path(f"/proc/{pid}/exe").resolve().name
    except (FileNotFoundError, ValueError):
        program = ""
    if program != "postgres":
        pid_file.unlink(missing_ok=True)


def launch(layout: Layout) -> Launch:
    return Launch(
        command=[str(BINARIES / "postgres"), "-D", str(_data(layout))],
        user=USER,
        directory=layout.postgresql_directory,
        environment={"HOME": str(layout.postgresql_directory)},
    )


def answers(layout: Layout) -> str | None:
    result = subprocess.run(
        [str(BINARIES / "pg_isready"), "-q", "-h", str(_sockets(layout)), "-t", "2"],
        capture_output=True,
        check=False,
        timeout=10,
    )
    return None if result.returncode == 0 else "pg_isready says that it takes no connections"


def settle(layout: Layout) -> None:
    """The role and the database of Prefect, with the password of today."""
    login = credential(layout, "postgresql")
    run_statements(
        layout,
        "postgres",
        f"""
        SELECT 'CREATE ROLE {DATABASE} LOGIN'
         WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{DATABASE}') \\gexec
        ALTER ROLE {DATABASE} PASSWORD '{login["password"]}';
        SELECT 'CREATE DATABASE {DATABASE} OWNER {DATABASE}'
         WHERE NOT EXISTS (SELECT 1 FROM pg_database WHERE datname = '{DATABASE}') \\gexec
        """,  # noqa: S608 - our own names, and a password of URL-safe characters that we made
    )
    run_statements(layout, DATABASE, "CREATE EXTENSION IF NOT EXISTS pg_trgm;")
    run_statements(
        layout,
        "postgres",
        f"REVOKE CONNECT ON DATABASE {DATABASE} FROM PUBLIC;"
        + caretaker(DATABASE_PROVISIONER, "CREATEDB CREATEROLE", credential(layout, "database"))
        + caretaker(DATABASE_ISSUER, "CREATEROLE", credential(layout, "database-issuer")),
    )


def caretaker(name: str, rights: str, login: Mapping[str, str]) -> str:
    """Statements for a role that looks after applications; pg_signal_backend ends sessions."""
    return f"""
    SELECT 'CREATE ROLE {name}'
     WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{name}') \\gexec
    ALTER ROLE {name} LOGIN NOSUPERUSER {rights} PASSWORD '{login["password"]}';
    GRANT pg_signal_backend TO {name};
    """  # noqa: S608 - our own names, and a password of URL-safe characters that we made


def run_statements(layout: Layout, database: str, statements: str) -> None:
    """Run SQL as the server's own administrator; it travels on standard input."""
    _run_as_postgres(
        [
            str(BINARIES / "psql"),
            "--no-psqlrc",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            f"--host={_sockets(layout)}",
            f"--dbname={database}",
            "--file=-",
        ],
        statements,
    )


def _run_as_postgres(command: list[str], standard_input: str = "") -> None:
    result = subprocess.run(
        ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--", *command],
        input=standard_input,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd="/",
        env={
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PGOPTIONS": "-c client_min_messages=warning",
        },
    )
    if result.returncode != 0:
        raise RuntimeError(f"Unable to run {Path(command[0]).name}: {result.stderr.strip()[-500:]}")


SERVICE = Service(
    name="postgresql",
    summary="PostgreSQL 15: Prefect's database, and applications'",
    launch=launch,
    prepare=prepare,
    answers=answers,
    settle=settle,
    is_healthy=answers,
    programs=(str(BINARIES / "postgres"), str(BINARIES / "initdb"), "setpriv"),
    start_timeout_seconds=60,
)
