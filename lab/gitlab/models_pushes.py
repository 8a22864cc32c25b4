"""What moves references, who may, and what follows: events, merge requests, pipelines.

Why: a push over HTTP and a commit by the API must have the same consequences. Promises: a push
that was accepted has its consequences also when the process is killed right after it.
"""

from __future__ import annotations

import fnmatch
import functools
import json
from pathlib import Path
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab import models_hooks as hooks
from lab.gitlab import models_merge_requests as merge_requests
from lab.gitlab import models_pipelines as pipelines
from lab.gitlab import payloads
from lab.gitlab.exceptions import BadRequest
from lab.gitlab.instance import GitLab, stamp
from lab.gitlab.repository import ZERO, Change, RefMoved, Repository
from lab.hypervisor.store import Document

HOOKED_REFS = 3
FORCED = "You are not allowed to force push code to a protected branch on this project."
CLOSED = "You are not allowed to push code to protected branches on this project."

_PRE_RECEIVE = f"""\
#!/bin/sh
# The server says in GITLAB_CLOSED_REFS (patterns, one a line) what this user may not move, and in
# GITLAB_STEADY_REFS which histories nobody rewrites.
set -f
cat >"$GITLAB_PUSH_FILE.offered" # for the case that the server dies before git has answered
while read -r old new ref; do
    IFS='
'
    for pattern in $GITLAB_CLOSED_REFS; do
        case "$ref" in $pattern)
            echo "GitLab: {CLOSED}" >&2
            exit 1 ;;
        esac
    done
    for pattern in $GITLAB_STEADY_REFS; do
        case "$ref" in $pattern)
            if [ "$new" = {ZERO} ]; then
                echo "GitLab: You can only delete protected branches using the web interface." >&2
                exit 1
            fi
            if [ "$old" != {ZERO} ] && ! git merge-base --is-ancestor "$old" "$new"; then
                echo "GitLab: {FORCED}" >&2
                exit 1
            fi ;;
        esac
    done
    IFS=' '
done <"$GITLAB_PUSH_FILE.offered"
"""
_POST_RECEIVE = """\
#!/bin/sh
# Leaves what was pushed for the server, which may be dead by now.
cat >"$GITLAB_PUSH_FILE.lines.new" && mv "$GITLAB_PUSH_FILE.lines.new" "$GITLAB_PUSH_FILE.lines"
"""


def install_hooks(gitlab: GitLab) -> None:
    """Write the hooks that all repositories share."""
    for name, text in (("pre-receive", _PRE_RECEIVE), ("post-receive", _POST_RECEIVE)):
        path = gitlab.hooks_directory / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)


def protection(gitlab: GitLab, project: Document, branch: str) -> list[Document]:
    """The rules that protect a branch."""
    return [
        rule
        for rule in gitlab.tables.protected_branches.where(project_id=project["id"])
        if fnmatch.fnmatchcase(branch, rule["name"])
    ]


def is_protected_ref(gitlab: GitLab, project: Document, ref: str) -> bool:
    """True for protected branches and tags, by full or short name."""
    if ref.startswith("refs/tags/"):
        name = ref.removeprefix("refs/tags/")
        return any(
            fnmatch.fnmatchcase(name, rule["name"])
            for rule in gitlab.tables.protected_tags.where(project_id=project["id"])
        )
    return bool(protection(gitlab, project, ref.removeprefix("refs/heads/")))


def may_push(gitlab: GitLab, user: Document, project: Document, branch: str) -> bool:
    """True when the user may move the branch."""
    level = access.project_level(gitlab, user, project)
    rules = protection(gitlab, project, branch)
    if not rules:
        return level >= access.DEVELOPER
    allowed = [rule["push_access_level"] for rule in rules]
    return any(needed and level >= needed for needed in allowed)


def push_rules(gitlab: GitLab, user: Document, project: Document) -> dict[str, str]:
    """The environment that tells git's hooks what this user may move."""
    level = access.project_level(gitlab, user, project)
    closed, steady = [], []
    for rule in gitlab.tables.protected_branches.where(project_id=project["id"]):
        needed = rule["push_access_level"]
        if not needed or level < needed:
            closed.append(f"refs/heads/{rule['name']}")
        elif not rule["allow_force_push"]:
            steady.append(f"refs/heads/{rule['name']}")
    for rule in gitlab.tables.protected_tags.where(project_id=project["id"]):
        if not rule["create_access_level"] or level < rule["create_access_level"]:
            closed.append(f"refs/tags/{rule['name']}")
    return {"GITLAB_CLOSED_REFS": "\n".join(closed), "GITLAB_STEADY_REFS": "\n".join(steady)}


def push(gitlab: GitLab, project: Document, user: Document, change: tuple[str, str, str]) -> None:
    """Move one reference as the server, with all that follows."""
    old, new, ref = change
    note = gitlab.note_push(project, user, [f"{old} {new} {ref}"])
    try:
        gitlab.repository(project).move(ref, new, old)
    except RefMoved as error:
        note.unlink(missing_ok=True)
        name = ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
        raise BadRequest(f"Could not update {name}. Please refresh and try again.") from error
    received(gitlab, project, user, [change])
    note.unlink(missing_ok=True)


def commit(
    gitlab: GitLab,
    project: Document,
    user: Document,
    branch: str,
    change: Change,
    *,
    start: str | None = None,
) -> str:
    """Make a commit on a branch, which begins at `start` when it is new."""
    repository = gitlab.repository(project)
    ref = f"refs/heads/{branch}"
    seen = repository.reference(ref)
    parent = seen or start
    sha = repository.write_commit(parent, change, (user["name"], user["email"]))
    push(gitlab, project, user, (seen or ZERO, sha, ref))
    return sha


def received(
    gitlab: GitLab, project: Document, user: Document, changes: list[tuple[str, str, str]]
) -> None:
    """All that follows from references that moved."""
    project = gitlab.tables.projects.save({**project, "last_activity_at": stamp()})
    branches = [change for change in changes if change[2].startswith("refs/heads/")]
    tags = [change for change in changes if change[2].startswith("refs/tags/")]
    for change in branches:
        project = _settle_default_branch(gitlab, project, change)
    for kind, moved in (("push_events", branches), ("tag_push_events", tags)):
        for change in moved if len(moved) <= HOOKED_REFS else []:
            is_protected = is_protected_ref(gitlab, project, change[2])
            told = payloads.push if kind == "push_events" else payloads.tag_push
            make = functools.partial(told, gitlab, project, user, change, is_protected=is_protected)
            hooks.fire(gitlab, project, kind, make, change[2])
    for change in branches:
        merge_requests.branch_moved(gitlab, project, user, change)
    for change in [*branches, *tags]:
        if change[1] != ZERO:
            pipelines.start_for_push(gitlab, project, user, change)


def _settle_default_branch(
    gitlab: GitLab, project: Document, change: tuple[str, str, str]
) -> Document:
    """The first branch becomes the default one and is protected."""
    old, _, ref = change
    branch = ref.removeprefix("refs/heads/")
    repository = gitlab.repository(project)
    if old != ZERO or set(repository.references("refs/heads")) != {branch}:
        return project
    if project["default_branch"] != branch:
        project = gitlab.tables.projects.save({**project, "default_branch": branch})
        repository.run("symbolic-ref", "HEAD", ref)
    if not protection(gitlab, project, branch):
        gitlab.tables.protected_branches.add(
            {
                "project_id": project["id"],
                "name": branch,
                "push_access_level": access.MAINTAINER,
                "merge_access_level": access.MAINTAINER,
                "allow_force_push": False,
            }
        )
    return project


def take_received(gitlab: GitLab, note: Path) -> None:
    """Draw the consequences of a push over HTTP; what git refused left no lines."""
    lines = note.with_name(f"{note.name}.lines")
    if lines.exists():
        told = json.loads(note.read_text(encoding="utf-8"))
        _take(gitlab, told, lines.read_text().splitlines())
    for left in (note, *note.parent.glob(f"{note.name}.*")):
        left.unlink(missing_ok=True)


def resume(gitlab: GitLab) -> None:
    """Draw the consequences of pushes that a dead process had begun, where they were done."""
    for note in gitlab.pushes.glob("*.json"):
        told = json.loads(note.read_text(encoding="utf-8"))
        offered = note.with_name(f"{note.name}.offered")
        lines = told["lines"]
        if not lines and offered.exists():
            lines = offered.read_text().splitlines()
        project = gitlab.tables.projects.get(told["project"])
        if project is not None:
            repository = gitlab.repository(project)
            done = [line for line in lines if _was_done(repository, *line.split(" ", 2))]
            _take(gitlab, told, done)
        note.unlink(missing_ok=True)
    for rest in gitlab.pushes.iterdir():
        rest.unlink(missing_ok=True)


def _was_done(repository: Repository, _: str, new: str, ref: str) -> bool:
    return (repository.reference(ref) or ZERO) == new


def _take(gitlab: GitLab, told: dict[str, Any], lines: list[str]) -> None:
    project = gitlab.tables.projects.get(told["project"])
    user = gitlab.tables.users.get(told["user"])
    if project is None or user is None or not lines:
        return
    changes = []
    for line in lines:
        old, new, ref = line.split(" ", 2)
        changes.append((old, new, ref))
    received(gitlab, project, user, changes)
