"""One bare Git repository, read and written by git itself.

Why: what a client pushes, the API reads, and the other way round. Promises: a commit by the API is
a compare-and-swap of the branch; two writers never lose each other's work. Refuses names that git
would read as options.
"""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ZERO = "0" * 40
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_LITERAL_PATHSPECS": "1",
}
_FIELDS = "%H%x00%P%x00%an%x00%ae%x00%aI%x00%cn%x00%ce%x00%cI%x00%B%x01"


class GitError(Exception):
    """git refused; the text is its own."""


class RefMoved(GitError):
    """The branch is no longer where the writer saw it."""


@dataclass(frozen=True)
class Commit:
    """What git knows of one commit."""

    sha: str
    parents: list[str]
    author_name: str
    author_email: str
    authored_at: str
    committer_name: str
    committer_email: str
    committed_at: str
    message: str

    @property
    def title(self) -> str:
        """First line of the message."""
        return self.message.split("\n", 1)[0]


@dataclass(frozen=True)
class Blob:
    """A file at a commit."""

    sha: str
    mode: str
    content: bytes


@dataclass(frozen=True)
class FileChange:
    """One file in a difference."""

    old_path: str
    new_path: str
    old_mode: str
    new_mode: str
    letter: str
    text: str = ""


@dataclass
class Change:
    """A commit to make: paths with their new mode and content; None deletes."""

    message: str
    author_name: str
    author_email: str
    files: dict[str, tuple[str, bytes] | None] = field(default_factory=dict)


def _stamp(text: str) -> str:
    return dt.datetime.fromisoformat(text).isoformat(timespec="milliseconds")


class Repository:
    """A bare repository in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(
        self,
        *arguments: str,
        given: bytes = b"",
        extra: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run git in the repository."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.directory,
            input=given,
            capture_output=True,
            timeout=120,
            check=False,
            env={**_ENVIRONMENT, **(extra or {})},
        )
        if done.returncode != 0:
            raise GitError(done.stderr.decode(errors="replace").strip() or "git failed")
        return done.stdout

    def text(self, *arguments: str) -> str:
        """Run git and return what it says, without the last line end."""
        return self.run(*arguments).decode(errors="replace").rstrip("\n")

    def create(self, branch: str, hooks: Path) -> None:
        """Make the repository; a half-made one is begun anew."""
        if (self.directory / "HEAD").exists():
            return
        half_made = self.directory.with_suffix(".new")
        shutil.rmtree(half_made, ignore_errors=True)
        half_made.mkdir(parents=True)
        begun = Repository(half_made)
        begun.run("init", "--quiet", "--bare", "--template=", f"--initial-branch={branch}", ".")
        config = (
            "[http]\n\treceivepack = true\n[core]\n\tfsync = committed\n"
            f"\thooksPath = {hooks}\n[gc]\n\tauto = 0\n[uploadpack]\n\tallowFilter = true\n"
            "[receive]\n\tadvertisePushOptions = true\n"
        )
        with (half_made / "config").open("a", encoding="utf-8") as file:
            file.write(config)
        half_made.rename(self.directory)

    def resolve(self, reference: str) -> str | None:
        """The commit that a branch, tag or hash names, or None."""
        if not reference or reference.startswith("-"):
            return None
        for candidate in (f"refs/heads/{reference}", f"refs/tags/{reference}", reference):
            try:
                return self.text("rev-parse", "--verify", "--quiet", f"{candidate}^{{commit}}")
            except GitError:
                continue
        return None

    def reference(self, name: str) -> str | None:
        """What a full reference points to, or None."""
        try:
            return self.text("rev-parse", "--verify", "--quiet", name)
        except GitError:
            return None

    @property
    def is_empty(self) -> bool:
        """True while there is no branch; looked up without starting git."""
        heads = self.directory / "refs" / "heads"
        if any(path.is_file() for path in heads.rglob("*")):
            return False
        packed = self.directory / "packed-refs"
        return not (packed.exists() and " refs/heads/" in packed.read_text(encoding="utf-8"))

    def references(self, prefix: str) -> dict[str, str]:
        """Short names below a prefix, with the commits that they point to."""
        pattern = "--format=%(refname)%00%(objectname)%00%(*objectname)"
        found = {}
        for line in self.text("for-each-ref", pattern, prefix).splitlines():
            name, direct, peeled = line.split("\0")
            found[name.removeprefix(f"{prefix}/")] = peeled or direct
        return found

    def tag_message(self, name: str) -> str:
        """The message of an annotated tag; empty for a light one."""
        kind = self.text("for-each-ref", "--format=%(objecttype)", f"refs/tags/{name}")
        if kind != "tag":
            return ""
        return self.text("for-each-ref", "--format=%(contents)", f"refs/tags/{name}").rstrip("\n")

    def log(
        self, reference: str, *, path: str = "", limit: int = 0, more: Sequence[str] = ()
    ) -> list[Commit]:
        """Commits from a reference backwards, or of a range."""
        command = ["log", f"--format={_FIELDS}", *more]
        if limit:
            command.append(f"--max-count={limit}")
        command += ["--end-of-options", reference, "--", *([path] if path else [])]
        return [
            _commit(record)
            for record in self.run(*command).decode(errors="replace").split("\x01")[:-1]
        ]

    def commit(self, sha: str) -> Commit:
        """One commit."""
        return self.log(sha, limit=1)[0]

    def is_ancestor(self, older: str, newer: str) -> bool:
        """True when one commit is in the history of the other."""
        try:
            self.run("merge-base", "--is-ancestor", older, newer)
        except GitError:
            return False
        return True

    def blob(self, reference: str, path: str) -> Blob | None:
        """A file at a commit, or None."""
        listed = self.text("ls-tree", "-z", reference, "--", path).rstrip("\0")
        if not listed or "\0" in listed:
            return None
        meta, name = listed.split("\t", 1)
        mode, kind, sha = meta.split(" ")
        if kind != "blob" or name != path:
            return None
        return Blob(sha, mode, self.run("cat-file", "blob", sha))

    def tree(self, reference: str, path: str, *, is_recursive: bool) -> list[dict[str, str]]:
        """Entries of a directory, as the API shows them."""
        where = [f"{path.strip('/')}/"] if path.strip("/") else []
        command = ["ls-tree", "-z", *(["-r", "-t"] if is_recursive else []), reference, "--"]
        entries = []
        for line in self.run(*command, *where).decode(errors="replace").split("\0")[:-1]:
            meta, name = line.split("\t", 1)
            mode, kind, sha = meta.split(" ")
            entries.append(
                {"id": sha, "name": Path(name).name, "type": kind, "path": name, "mode": mode}
            )
        return sorted(entries, key=lambda entry: (entry["type"] != "tree", entry["path"]))

    def differences(self, old: str | None, new: str) -> list[FileChange]:
        """What changed from one commit (None: from nothing) to another, file by file."""
        ends = [old, new] if old else ["4b825dc642cb6eb9a060e54bf8d69288fbee4904", new]
        raw = self.run("diff-tree", "-r", "-M", "-z", "--raw", *ends).decode(errors="replace")
        parts = iter(raw.split("\0")[:-1])
        found = []
        for meta in parts:
            old_mode, new_mode, _, _, letter = meta.lstrip(":").split(" ")
            first = next(parts)
            second = next(parts) if letter[0] in "RC" else first
            command = ["diff-tree", "-r", "-M", "-p", "--no-color", *ends, "--", first]
            patch = self.run(*command, *([second] if second != first else []))
            found.append(
                FileChange(
                    first,
                    second,
                    old_mode,
                    new_mode,
                    letter[0],
                    _hunks(patch.decode(errors="replace")),
                )
            )
        return found

    def line_counts(self, sha: str) -> tuple[int, int]:
        """Added and deleted lines of a commit."""
        added = deleted = 0
        for line in self.text("show", "--format=", "--numstat", "--first-parent", sha).splitlines():
            plus, minus, _ = line.split("\t", 2)
            added += int(plus) if plus != "-" else 0
            deleted += int(minus) if minus != "-" else 0
        return added, deleted

    def write_commit(self, parent: str | None, change: Change, committer: tuple[str, str]) -> str:
        """Make a commit object on top of a parent; no reference is moved."""
        with tempfile.TemporaryDirectory(prefix="index-", dir=self.directory) as scratch:
            extra = {"GIT_INDEX_FILE": f"{scratch}/index"}
            if parent:
                self.run("read-tree", parent, extra=extra)
            blobs = iter(self._write_blobs(Path(scratch), change))
            lines = [
                f"0 {ZERO}\t{path}\0" if entry is None else f"{entry[0]} {next(blobs)}\t{path}\0"
                for path, entry in change.files.items()
            ]
            given = "".join(lines).encode()
            self.run("update-index", "-z", "--index-info", given=given, extra=extra)
            tree = self.run("write-tree", extra=extra).decode().strip()
        return self.commit_tree(tree, [parent] if parent else [], change, committer)

    def _write_blobs(self, scratch: Path, change: Change) -> list[str]:
        """Store the contents of a change with one git; returns their hashes in order."""
        contents = [entry[1] for entry in change.files.values() if entry is not None]
        for number, content in enumerate(contents):
            (scratch / str(number)).write_bytes(content)
        names = "".join(f"{scratch}/{number}\n" for number in range(len(contents)))
        command = ("hash-object", "-w", "--no-filters", "--stdin-paths")
        return self.run(*command, given=names.encode()).decode().split() if contents else []

    def commit_tree(
        self, tree: str, parents: Sequence[str], change: Change, committer: tuple[str, str]
    ) -> str:
        """Make a commit object of a tree."""
        extra = {
            "GIT_AUTHOR_NAME": change.author_name,
            "GIT_AUTHOR_EMAIL": change.author_email,
            "GIT_COMMITTER_NAME": committer[0],
            "GIT_COMMITTER_EMAIL": committer[1],
        }
        command = ["commit-tree", tree, *(part for parent in parents for part in ("-p", parent))]
        return self.run(*command, given=change.message.encode(), extra=extra).decode().strip()

    def merged_tree(self, target: str, source: str) -> str | None:
        """The tree of both together, or None when they conflict."""
        try:
            return self.text("merge-tree", "--write-tree", target, source).splitlines()[0]
        except GitError:
            return None

    def move(self, name: str, new: str, old: str) -> None:
        """Move a reference from where it was seen (zeros: not there); zeros as new delete it."""
        try:
            if new == ZERO:
                self.run("update-ref", "-d", name, old)
            else:
                self.run("update-ref", name, new, old)
        except GitError as error:
            raise RefMoved(str(error)) from error


def _commit(record: str) -> Commit:
    sha, parents, name, email, authored, c_name, c_email, committed, message = record.split("\0")
    return Commit(
        sha.strip(),
        parents.split(),
        name,
        email,
        _stamp(authored),
        c_name,
        c_email,
        _stamp(committed),
        message,
    )


def _hunks(patch: str) -> str:
    """A patch without git's header."""
    start = patch.find("\n@@")
    return "" if start < 0 else patch[start + 1 :]
