"""The infrastructure's Git repository: the single record of what machines and manifests there are.

Promises that a commit either is on the branch or is not, whatever kills the process; that a commit
of files which are already there makes no commit; and that two writers both succeed, one after the
other. The credential is in a private file in memory, never in an argument, an address or an error.
Refuses redirects, which could carry the credential elsewhere, and addresses that hold one.
"""

from __future__ import annotations

import base64
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prefect.blocks.core import Block
from pydantic import Field, field_validator

from blocks.child_process import Ended, run_child
from blocks.documents import document
from blocks.git_turn import turn
from blocks.private_directory import private_directory, write_private
from domain.errors import (
    Conflict,
    LifecycleError,
    NotFound,
    PermanentError,
    Unauthorized,
    Unreachable,
)
from domain.repository_layout import RepositoryLocation, checked_path

PUSH_ATTEMPTS = 8
FULL_DEPTH = 2**31 - 1
"""Git's own sign for the whole history, in a copy that may or may not be shallow."""

GIT_TIMEOUT_SECONDS = 120.0
AUTHOR_NAME = "Infraflows"
AUTHOR_EMAIL = "infraflows@localhost"
SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")

_LOST_RACE = ("non-fast-forward", "fetch first", "cannot lock ref", "failed to update ref")
_NO_BRANCH = ("couldn't find remote ref", "Couldn't find remote ref")
_REFUSED = (
    "Authentication failed",
    "returned error: 401",
    "returned error: 403",
    "terminal prompt",
)
_ABSENT = ("returned error: 404", "not found", "does not appear to be a git repository")


@dataclass(frozen=True)
class CommitResult:
    """The commit that holds what was asked for."""

    sha: str
    is_changed: bool
    """False when the branch already held it and no commit was made."""


class GitSession:
    """A private copy of the branch; made by `GitRepository.session` and gone with it."""

    def __init__(self, repository: GitRepository, directory: Path) -> None:
        """Use `directory`, which holds the configuration with the credential."""
        self._repository = repository
        self._directory = directory
        self._copy = directory / "copy"
        self._copy.mkdir(mode=0o700)
        # Nothing of the user's own: a trace or a proxy in the environment would see the credential.
        self._environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(directory),
            "LANG": "C",
            "GIT_CONFIG_GLOBAL": str(directory / "config"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": AUTHOR_NAME,
            "GIT_AUTHOR_EMAIL": AUTHOR_EMAIL,
            "GIT_COMMITTER_NAME": AUTHOR_NAME,
            "GIT_COMMITTER_EMAIL": AUTHOR_EMAIL,
        }
        self._git("init", "--quiet", f"--initial-branch={repository.branch}", ".")
        self._git("remote", "add", "origin", repository.url)

    # --- git ---------------------------------------------------------------------------------

    def _run(self, *arguments: str, stdin: bytes = b"") -> Ended:
        return run_child(
            ["git", *arguments],
            environment=self._environment,
            directory=self._copy,
            timeout_seconds=GIT_TIMEOUT_SECONDS,
            stdin=stdin,
            # Only these start programs of their own, which speak to the server.
            tethered_directory=self._directory if arguments[0] in ("fetch", "push") else None,
        )

    def _git(self, *arguments: str, stdin: bytes = b"") -> str:
        ended = self._run(*arguments, stdin=stdin)
        if ended.exit_code != 0:
            raise self._error(arguments[0], ended)
        return ended.text

    def _error(self, act: str, ended: Ended) -> LifecycleError:
        said = " ".join(ended.complaint.split())
        failed = f"Unable to {act} {self._repository.url}"
        if any(text in said for text in _REFUSED):
            return Unauthorized(
                f"{failed}: the credential was refused. Renew {self._repository.credential} "
                "in OpenBao."
            )
        if any(text in said for text in _ABSENT):
            return NotFound(f"{failed}: there is no such repository. Create it.")
        if "unable to access" in said or "hung up" in said or "returned error: 5" in said:
            return Unreachable(f"{failed}: {said[-200:]}. Check the Git server.")
        return PermanentError(
            f"{failed}: git {act} ended with {ended.exit_code}: {said[-300:]}. Check the server."
        )

    def _fetch(self) -> str | None:
        """Make the copy equal to the branch; return its head, or nothing if there is no branch."""
        branch = f"refs/heads/{self._repository.branch}"
        ended = self._run("fetch", "--quiet", "--no-tags", "--depth=1", "origin", branch)
        if ended.exit_code != 0:
            if any(text in ended.complaint for text in _NO_BRANCH):
                return None
            raise self._error("fetch", ended)
        self._git("reset", "--quiet", "--hard", "FETCH_HEAD")
        return self._git("rev-parse", "HEAD").strip()

    def _fetch_commit(self, revision: str) -> None:
        if not SHA.fullmatch(revision):
            raise PermanentError(
                f"Unable to read at {revision!r}: it is not a full commit id. Give all its digits."
            )
        if self._run("cat-file", "-e", f"{revision}^{{commit}}").exit_code == 0:
            return
        ended = self._run("fetch", "--quiet", "--no-tags", "--depth=1", "origin", revision)
        if ended.exit_code != 0:
            # A server that gives out branches only: the commit is somewhere on ours.
            branch = f"refs/heads/{self._repository.branch}"
            self._git("fetch", "--quiet", "--no-tags", f"--depth={FULL_DEPTH}", "origin", branch)
        if self._run("cat-file", "-e", f"{revision}^{{commit}}").exit_code != 0:
            raise NotFound(
                f"Unable to find commit {revision[:12]} in {self._repository.url}: the branch "
                f"{self._repository.branch} does not have it. Run again to commit it."
            )

    # --- reading -----------------------------------------------------------------------------

    def head(self) -> str:
        """Return the branch's newest commit.

        Raises:
            NotFound: the branch does not exist yet.
        """
        found = self._fetch()
        if found is None:
            raise NotFound(
                f"Unable to find the branch {self._repository.branch} of {self._repository.url}: "
                "it has no commit yet. Commit something first."
            )
        return found

    def list_files(self, directory: str, revision: str | None = None) -> list[str]:
        """Return the paths of all files below a directory; empty when it does not exist."""
        at = revision
        if at is None:
            at = self._fetch()
            if at is None:
                return []
        else:
            self._fetch_commit(at)
        inside = checked_path(directory)
        listed = self._git("ls-tree", "-r", "-z", "--name-only", at, "--", f"{inside}/")
        return [path for path in listed.split("\0") if path]

    def read_file(self, path: str, revision: str | None = None) -> str:
        """Return a file's text.

        Raises:
            NotFound: there is no such file.
        """
        if revision is None:
            revision = self.head()
        else:
            self._fetch_commit(revision)
        ended = self._run("cat-file", "blob", f"{revision}:{checked_path(path)}")
        if ended.exit_code != 0:
            raise NotFound(
                f"Unable to read {path} at {revision[:12]}: there is no such file. Commit it first."
            )
        return ended.output.decode()

    def read_files(self, directory: str, revision: str | None = None) -> dict[str, str]:
        """Return the text of every file below a directory, by path."""
        paths = self.list_files(directory, revision)
        if not paths:
            return {}
        at = revision or "FETCH_HEAD"
        wanted = "".join(f"{at}:{path}\n" for path in paths)
        ended = self._run("cat-file", "--batch", stdin=wanted.encode())
        if ended.exit_code != 0:
            raise self._error("read", ended)
        return dict(zip(paths, _blobs(ended.output), strict=True))

    def versions(self, path: str, at_most: int) -> list[str]:
        """Return the texts that a file has had on the branch, newest first; absences left out."""
        branch = f"refs/heads/{self._repository.branch}"
        self._git("fetch", "--quiet", "--no-tags", f"--depth={FULL_DEPTH}", "origin", branch)
        inside = checked_path(path)
        count = f"--max-count={at_most}"
        said = self._git("log", "--first-parent", "--format=%H", count, "FETCH_HEAD", "--", inside)
        read = [self._run("cat-file", "blob", f"{sha}:{inside}") for sha in said.split()]
        return [ended.output.decode() for ended in read if ended.exit_code == 0]

    def whole_tree(self, revision: str) -> dict[str, str]:
        """Return the text of every file as it was at a commit; what is no text is made one."""
        self._fetch_commit(revision)
        listed = self._git("ls-tree", "-r", "-z", "--name-only", revision)
        paths = [path for path in listed.split("\0") if path]
        wanted = "".join(f"{revision}:{path}\n" for path in paths)
        ended = self._run("cat-file", "--batch", stdin=wanted.encode())
        if ended.exit_code != 0:
            raise self._error("read", ended)
        return dict(zip(paths, _blobs(ended.output, "replace"), strict=True))

    # --- writing -----------------------------------------------------------------------------

    def commit_files(
        self,
        files: Mapping[str, str],
        message: str,
        *,
        replaced_directories: Sequence[str] = (),
        expected: Mapping[str, str] | None = None,
        attempts: int = PUSH_ATTEMPTS,
    ) -> CommitResult:
        """Put files on the branch in one commit; whole directories are replaced by them.

        Whatever lies below `replaced_directories` and is not in `files` is removed. Where the new
        text was made from an old one, `expected` holds the old one by path.

        Raises:
            Conflict: other writers were faster each time, or changed a file of `expected`.
        """
        wanted = {checked_path(path): text for path, text in files.items()}
        replaced = [checked_path(path) for path in replaced_directories]
        for attempt in range(attempts):
            with turn(self._repository.url, self._repository.branch):
                result = self._try_commit(wanted, replaced, message, expected or {})
            if result is not None:
                return result
            # Written anew on the other's commit: whole files, so there is nothing to merge.
            time.sleep(random.uniform(0.05, 0.3) * min(attempt + 1, 8))  # noqa: S311 - jitter, no secret
        raise Conflict(
            f"Unable to push to {self._repository.url}: other writers were faster "
            f"{attempts} times. Run again."
        )

    def _try_commit(
        self,
        wanted: Mapping[str, str],
        replaced: Sequence[str],
        message: str,
        expected: Mapping[str, str],
    ) -> CommitResult | None:
        """Commit on the branch's newest commit and push; nothing when another writer was faster."""
        base = self._fetch()
        self._check_expected(expected)
        sha = self._commit(wanted, replaced, message, base)
        if sha is None:
            return CommitResult(base or "", is_changed=False)
        target = f"{sha}:refs/heads/{self._repository.branch}"
        ended = self._run("push", "--quiet", "origin", target)
        if ended.exit_code == 0:
            return CommitResult(sha, is_changed=True)
        if not any(text in ended.complaint for text in _LOST_RACE):
            raise self._error("push", ended)
        return None

    def _check_expected(self, expected: Mapping[str, str]) -> None:
        for path, text in expected.items():
            file = self._copy / checked_path(path)
            if not file.is_file() or file.read_bytes() != text.encode():
                raise Conflict(
                    f"Unable to change {path}: another writer changed it since it was read. "
                    "Run again."
                )

    def _commit(
        self,
        wanted: Mapping[str, str],
        replaced: Sequence[str],
        message: str,
        base: str | None,
    ) -> str | None:
        """Make a commit on `base` and return it; nothing when nothing differs."""
        for directory in replaced:
            self._git("rm", "-r", "--quiet", "--force", "--ignore-unmatch", "--", f"{directory}/")
        for path, text in wanted.items():
            file = self._copy / path
            if not file.parent.resolve().is_relative_to(self._copy.resolve()):
                raise PermanentError(
                    f"Unable to write {path}: a symbolic link leads out of the repository. "
                    "Remove the link."
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.write_text(text, encoding="utf-8")
        self._git("add", "--all", "--force", ".")
        tree = self._git("write-tree").strip()
        if base and tree == self._git("rev-parse", f"{base}^{{tree}}").strip():
            return None
        if base is None and not wanted:
            return None
        parent = ["-p", base] if base else []
        made = self._git("commit-tree", tree, *parent, "-F", "-", stdin=message.encode())
        return made.strip()


def _blobs(output: bytes, at_no_text: str = "strict") -> Iterator[str]:
    """Split what `git cat-file --batch` wrote into the texts of the files."""
    position = 0
    while position < len(output):
        end = output.index(b"\n", position)
        size = int(output[position:end].split()[-1])
        yield output[end + 1 : end + 1 + size].decode(errors=at_no_text)
        position = end + 1 + size + 1


class GitRepository(Block):
    """Where the infrastructure repository is and how to log in to it."""

    _block_type_name = "Infrastructure Git repository"
    _block_type_slug = "infraflows-git"
    _description = "The repository of inventories and manifests, reached over HTTPS by Git itself."

    url: str = Field(description="Address, as https://git.example.org/infrastructure.git.")
    branch: str = Field(default="main", description="Branch that flows commit to.")
    ca_file: str = Field(default="", description="CA of the server; the system's if empty.")
    credential: str = Field(description="OpenBao path of username and password (or a token).")

    @field_validator("url")
    @classmethod
    def _without_credential(cls, value: str) -> str:
        address = urlsplit(value)
        if address.username or address.password:
            raise ValueError("holds a credential; keep it in OpenBao only")
        return value

    @property
    def location(self) -> RepositoryLocation:
        """What may be told about the repository."""
        return RepositoryLocation(self.url, self.branch)

    @contextmanager
    def session(self, credential: Mapping[str, str]) -> Iterator[GitSession]:
        """Yield access with the values of the credential's OpenBao path."""
        with private_directory("git") as directory:
            write_private(directory / "config", self._configuration(credential))
            yield GitSession(self, directory)

    def _configuration(self, credential: Mapping[str, str]) -> str:
        lines = ["[gc]", "auto = 0", "[advice]", "detachedHead = false", "[core]"]
        lines += ["hooksPath = /dev/null", "quotePath = false", "autocrlf = false"]
        address = urlsplit(self.url)
        if address.scheme in ("http", "https"):
            pair = f"{credential.get('username', '')}:{credential.get('password', '')}"
            encoded = base64.b64encode(pair.encode()).decode()
            server = f"{address.scheme}://{address.netloc}/"
            lines += [f'[http "{server}"]', f'extraHeader = "Authorization: Basic {encoded}"']
            lines += ["[http]", "followRedirects = false", "lowSpeedLimit = 1", "lowSpeedTime = 30"]
            if self.ca_file:
                lines.append(f'sslCAInfo = "{self.ca_file}"')
        return "\n".join(lines) + "\n"


def git_repository(environment: str) -> GitRepository:
    """Return the infrastructure repository of an environment, by its block document.

    Raises:
        NotFound: `infraflows setup` has not been run for this environment.
    """
    return document(GitRepository, environment)
