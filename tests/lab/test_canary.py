"""No secret is written down: not in a log, an artifact, a parameter, a state, a commit or an argv.

Every place is searched for the very values that the runs on the demo's cluster had in their hands,
and for private keys and tokens of any value. Each kind of search is tried first on a planted
canary, so that a search that finds nothing is known to be able to find.
"""

from __future__ import annotations

import contextlib
import secrets
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.driver import Driver
from lab.layout import GIT_REPOSITORY, Layout
from lab.secret_search import (
    ArgumentWatch,
    Find,
    Wanted,
    guest_roots,
    in_database,
    in_files,
    in_repository,
    in_text,
)

pytestmark = pytest.mark.lab

PRIVATE_PLACES_OF_GUESTS = ("etc/rancher/", "var/lib/rancher/", "etc/keepalived/")
TEMPORARY = [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]


@pytest.fixture(scope="module")
def wanted(demo: Any) -> Wanted:
    assert len(demo.secrets) >= 12
    assert all(len(value) >= 8 for value in demo.secrets.values())
    return Wanted(demo.secrets)


@pytest.fixture(scope="module")
def only_values(demo: Any) -> Wanted:
    """For places where keys of others may lie."""
    return Wanted(demo.secrets, has_forms=False)


@pytest.fixture
def canary() -> tuple[str, Wanted]:
    value = f"canary/{secrets.token_urlsafe(16)}"
    return value, Wanted({"the canary": value})


def kept_by_the_lab(layout: Layout) -> list[Path]:
    """Return where the lab itself keeps what it knows: its secrets, OpenBao's, its servers' keys.

    The guests' disks and the database are searched from within.
    """
    return [
        layout.secrets_directory,
        layout.openbao_directory,
        layout.worker_directory,
        layout.ca_directory,
        layout.dns_directory / "tsig.key",
        layout.hypervisor_directory / "guests",
        layout.postgresql_directory,
    ]


@contextlib.contextmanager
def planted_variable(driver: Driver, value: str) -> Iterator[None]:
    name = f"canary_{secrets.token_hex(4)}"
    driver.api("POST", "variables/", {"name": name, "value": value})
    try:
        yield
    finally:
        driver.api("DELETE", f"variables/name/{name}")


def test_a_planted_secret_is_found_in_a_log(canary: tuple[str, Wanted], tmp_path: Path) -> None:
    value, wanted = canary
    log = tmp_path / "worker.log"
    log.write_text(f"line\nconnecting with {value}!\nline\n")
    assert in_files(wanted, [tmp_path]) == {Find("the canary", str(log))}
    assert in_files(wanted, [tmp_path], without=[log]) == set()


@pytest.mark.parametrize("form", ["percent", "base64", "private key", "token"])
def test_a_secret_is_found_in_its_other_forms(
    form: str, canary: tuple[str, Wanted], tmp_path: Path
) -> None:
    import base64
    from urllib.parse import quote

    value, wanted = canary
    text, name = {
        "percent": (f"https://u:{quote(value, safe='')}@host", "the canary"),
        "base64": (base64.b64encode(value.encode()).decode(), "the canary"),
        "private key": ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        "token": (f'"token": "s.{"a1" * 12}"', "a token of OpenBao"),
    }[form]
    (tmp_path / "log").write_text(f"before {text} after")
    assert {find.secret for find in in_files(wanted, [tmp_path])} == {name}


def test_a_planted_secret_is_found_in_the_database(demo: Any, canary: tuple[str, Wanted]) -> None:
    value, wanted = canary
    with planted_variable(demo.driver, value):
        assert {find.secret for find in in_database(wanted, demo.driver.layout)} == {"the canary"}


def test_a_planted_secret_is_found_in_a_commit_that_was_taken_back(
    canary: tuple[str, Wanted], tmp_path: Path
) -> None:
    value, wanted = canary

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, timeout=30)

    git("init", "-q", "-b", "main")
    (tmp_path / "a.yaml").write_text(f"password: {value}\n")
    git("add", "a.yaml")
    git("commit", "-q", "-m", "one")
    (tmp_path / "a.yaml").write_text("password: none\n")
    git("commit", "-q", "-a", "--amend", "-m", "none")
    assert {f.secret for f in in_repository(wanted, tmp_path / ".git")} == {"the canary"}


def test_a_planted_secret_is_found_in_an_argv(canary: tuple[str, Wanted]) -> None:
    value, wanted = canary
    command = ["python3", "-c", "import time; time.sleep(60)", f"--password={value}"]
    with ArgumentWatch().watching() as watch, subprocess.Popen(command) as process:
        until = time.monotonic() + 30.0
        while time.monotonic() < until:
            if in_text(wanted, "argvs", sorted(watch.seen.copy())):
                break
            time.sleep(0.1)
        process.kill()
    assert in_text(wanted, "argvs", sorted(watch.seen)) == {Find("the canary", "argvs")}


def test_no_secret_is_in_the_prefect_servers_database(demo: Any, wanted: Wanted) -> None:
    # Logs, artifacts, parameters, events, variables and block documents as they are stored.
    assert in_database(wanted, demo.driver.layout) == set()


def test_no_secret_is_in_a_block_once_it_is_decrypted(demo: Any, wanted: Wanted) -> None:
    blocks = demo.driver.api("POST", "block_documents/filter", {"include_secrets": True})
    assert len(blocks) >= 7
    assert in_text(wanted, "blocks", [repr(block).encode() for block in blocks]) == set()


def test_no_secret_is_in_a_file_of_the_lab_but_where_it_belongs(demo: Any, wanted: Wanted) -> None:
    # The logs of every service, Prefect's homes, the ledger, states and what the API stored.
    layout = demo.driver.layout
    kept = kept_by_the_lab(layout)
    assert in_files(wanted, [layout.home, layout.run_directory], without=kept) == set()


def test_the_search_of_the_labs_files_is_able_to_find(demo: Any, only_values: Wanted) -> None:
    layout = demo.driver.layout
    found = {find.secret for find in in_files(only_values, [layout.secrets_directory])}
    assert {"proxmox's token_secret", "git's password", "dns's secret", "state's password"} <= found


def test_no_secret_is_in_any_object_of_the_repository(demo: Any, wanted: Wanted) -> None:
    assert in_repository(wanted, demo.driver.layout.git_directory / GIT_REPOSITORY) == set()


def test_no_secret_is_left_in_a_temporary_directory(demo: Any, only_values: Wanted) -> None:
    since = demo.driver.layout.site_file
    # The tests' own copy of the kubeconfig is what an operator asked for, and nobody else's.
    finds = {
        find
        for find in in_files(only_values, TEMPORARY, changed_after=since)
        if not find.place.endswith("/demo.kubeconfig")
    }
    assert finds == set()


def test_no_secret_was_in_an_argv_during_the_run(demo: Any, wanted: Wanted) -> None:
    programs = b" ".join(argv.split(b"\0")[0] for argv in demo.argvs)
    assert b"tofu" in programs  # the watch saw what it was there to see
    assert any(b"ansible-playbook" in argv for argv in demo.argvs)
    assert in_text(wanted, "argvs during the run", sorted(demo.argvs)) == set()


def test_secrets_in_guests_are_where_they_belong_and_private(
    demo: Any, only_values: Wanted
) -> None:
    roots = guest_roots(demo.driver.layout)
    assert len(roots) == 5
    wrong, held = [], set()
    for name, root in roots.items():
        places = [root, root / "tmp", root / "run", root / "dev/shm"]
        since = demo.driver.layout.site_file
        for find in in_files(only_values, places, changed_after=since):
            path = Path(find.place)
            inner = str(path.relative_to(root))
            held.add(find.secret)
            mode = stat.S_IMODE(path.stat().st_mode)
            if not inner.startswith(PRIVATE_PLACES_OF_GUESTS) or mode & 0o077:
                wrong.append(f"{name}: {find.secret} in {inner} (mode {mode:o})")
    assert wrong == []
    # The tokens and the key have to be there: the search is able to find them.
    assert {"the cluster's server_token", "the administrator's key (base64)"} <= held
    site = {
        f"{system}'s {part}" for system, part in (("proxmox", "token_secret"), ("git", "password"))
    }
    assert not site & held
