"""Looks for secrets where none may be: in files, databases, repositories, guests and argvs.

Why it exists: "no secret is ever written down" is a promise about every place at once, and only a
search of the places themselves can keep it. What it promises: places are streamed through grep
and never loaded; a find names the secret and the place, never the value. What it refuses: to put
the values that it looks for into a file or an argv of its own; they travel in memory.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from urllib.parse import quote

from lab.layout import Layout
from lab.services.postgresql import BINARIES, DATABASE, USER

CHUNK_BYTES = 1 << 20
LEAST_LENGTH = 12
"""Shorter values are matched as whole words only: they would be found in any random text."""
SAMPLE_EVERY_SECONDS = 0.1
LOOKS_AT_A_PROCESS = 10
FORMS_WITHOUT_VALUE = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a token of OpenBao": rb"(^|[^A-Za-z0-9._/+-])[bsr]\.[A-Za-z0-9]{24}([^A-Za-z0-9]|$)",
}


class SearchFailed(Exception):
    """A place could not be searched, so nothing is known about it."""


@dataclass(frozen=True, order=True)
class Find:
    """A secret where it may not be."""

    secret: str
    place: str


def forms(value: str) -> set[str]:
    """Return the value as it may be written: plain, percent-encoded, as base64."""
    raw = value.encode()
    return {
        value,
        quote(value, safe=""),
        base64.b64encode(raw).decode().rstrip("="),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
    }


def _pattern(text: str) -> bytes:
    escaped = re.sub(rb"([][\\.^$*+?(){}|])", rb"\\\1", text.encode())
    if len(text) >= LEAST_LENGTH:
        return escaped
    return rb"(^|[^A-Za-z0-9])" + escaped + rb"([^A-Za-z0-9]|$)"


@dataclass(frozen=True)
class Wanted:
    """The secrets that are looked for, by a name that may be told."""

    values: Mapping[str, str] = field(repr=False)
    has_forms: bool = True
    """Whether private keys and tokens of any value are looked for, too."""

    def patterns(self) -> dict[str, list[bytes]]:
        """Return grep's extended patterns by the secret's name."""
        found = {
            name: [_pattern(text) for text in sorted(forms(value))]
            for name, value in self.values.items()
        }
        if self.has_forms:
            found |= {name: [pattern] for name, pattern in FORMS_WITHOUT_VALUE.items()}
        return found

    def name_of(self, match: bytes) -> str:
        """Return which secret a match of grep is."""
        for name, patterns in self.patterns().items():
            if any(re.search(pattern, match) for pattern in patterns):
                return name
        return "an unknown secret"

    @contextmanager
    def file(self) -> Iterator[tuple[str, int]]:
        """Yield a pattern file in anonymous memory: its path for a child, and its descriptor."""
        descriptor = os.memfd_create("patterns")
        try:
            lines = [line for patterns in self.patterns().values() for line in patterns]
            os.write(descriptor, b"\n".join(lines) + b"\n")
            yield f"/proc/self/fd/{descriptor}", descriptor
        finally:
            os.close(descriptor)


_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}


def in_stream(wanted: Wanted, place: str, command: Sequence[str]) -> set[Find]:
    """Return what of the secrets a command prints.

    Raises:
        SearchFailed: the command failed.
    """
    with wanted.file() as (patterns, descriptor):
        writer = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_ENVIRONMENT, cwd="/"
        )
        reader = subprocess.run(
            ["grep", "-a", "-o", "-h", "-E", "-f", patterns],
            stdin=writer.stdout,
            capture_output=True,
            pass_fds=[descriptor],
            env=_ENVIRONMENT,
            check=False,
        )
        _, complaint = writer.communicate()
    if writer.returncode or reader.returncode > 1:
        what = (complaint + reader.stderr).decode(errors="replace").strip()[-500:]
        raise SearchFailed(f"Unable to search {place}: {what}")
    return {Find(wanted.name_of(match), place) for match in reader.stdout.splitlines()}


def in_text(wanted: Wanted, place: str, texts: Sequence[bytes]) -> set[Find]:
    """Return what of the secrets stands in texts that were gathered, as argvs."""
    patterns = [p for found in wanted.patterns().values() for p in found]
    any_of = re.compile(b"|".join(b"(?:" + p + b")" for p in patterns), re.MULTILINE)
    matches = (any_of.search(text) for text in texts)
    return {Find(wanted.name_of(match.group()), place) for match in matches if match}


def in_files(
    wanted: Wanted,
    roots: Sequence[Path],
    *,
    without: Sequence[Path] = (),
    changed_after: Path | None = None,
) -> set[Find]:
    """Return what of the secrets stands in the files under `roots`, on their file systems.

    With `changed_after`, only in files whose inode changed later than that file's content. A file
    that is gone before it is read is no longer a place.
    """
    absent = [str(root) for root in roots if not root.exists()]
    if absent:
        raise SearchFailed(f"Unable to search {', '.join(absent)}: there is no such directory.")
    find = ["find", "-H", *map(str, roots), "-xdev"]  # -H: a guest's root is a link in /proc
    for path in without:
        find += ["-path", str(path), "-prune", "-o"]
    find += ["-type", "f", *(["-cnewer", str(changed_after)] if changed_after else []), "-print0"]
    # -s: files vanish and proc files refuse; -H and -Z: the name of the file before each match.
    with wanted.file() as (patterns, descriptor):
        listed = subprocess.Popen(
            find, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_ENVIRONMENT
        )
        searched = subprocess.run(
            ["xargs", "-0", "-r", "grep", "-s", "-a", "-o", "-H", "-Z", "-E", "-f", patterns],
            stdin=listed.stdout,
            capture_output=True,
            pass_fds=[descriptor],
            env=_ENVIRONMENT,
            check=False,
        )
        listed.wait()
    if searched.stderr:
        raise SearchFailed(f"Unable to search files: {searched.stderr.decode()[-500:]}")
    finds = set()
    for line in searched.stdout.splitlines():
        place, _, match = line.rpartition(b"\0")
        finds.add(Find(wanted.name_of(match), os.fsdecode(place)))
    return finds


def in_database(wanted: Wanted, layout: Layout) -> set[Find]:
    """Return what of the secrets a complete dump of Prefect's database holds."""
    dump = [str(BINARIES / "pg_dump"), f"--host={layout.run_directory}/postgresql", DATABASE]
    drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--"]
    return in_stream(wanted, "the Prefect server's database", [*drop, *dump])


def in_repository(wanted: Wanted, repository: Path) -> set[Find]:
    """Return what of the secrets any object of a Git repository holds, reachable or not."""
    git = ["git", "-c", "safe.directory=*", f"--git-dir={repository}", "cat-file"]
    everything = [*git, "--batch-all-objects", "--unordered", "--batch"]
    return in_stream(wanted, f"the repository {repository.name}", everything)


def guest_roots(layout: Layout) -> dict[str, Path]:
    """Return the root directory of each running guest of the lab, by its host name."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = f":/{layout.namespace}/" in (process / "cgroup").read_text()
            status = (process / "status").read_text()
            if is_ours and re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE):
                root = process / "root"
                found[(root / "etc/hostname").read_text().strip()] = root
        except OSError:
            continue
    return found


class ArgumentWatch:
    """Collects the argv of every process of the machine while a body runs.

    A process is read in its first looks only: it is started with one argv and takes another when
    it becomes the program that was called; after that nothing changes, and reading costs time.
    """

    def __init__(self) -> None:
        """Nothing is seen yet."""
        self.seen: set[bytes] = set()
        self._looks: dict[str, int] = {}
        self._is_over = Event()

    def _watch(self) -> None:
        while not self._is_over.wait(SAMPLE_EVERY_SECONDS):
            self.look()

    def look(self) -> None:
        """Take one sample."""
        alive = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names only
        self._looks = {pid: self._looks.get(pid, 0) + 1 for pid in alive}
        for pid, looks in self._looks.items():
            if looks <= LOOKS_AT_A_PROCESS:
                with suppress(OSError):  # it ended meanwhile
                    self.seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())

    @contextmanager
    def watching(self) -> Iterator[ArgumentWatch]:
        """Sample in the background for the body."""
        thread = Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            thread.join()
