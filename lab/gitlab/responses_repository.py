"""Files, trees, commits, branches and tags, as the API shows and makes them."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab import models_projects as projects
from lab.gitlab import models_pushes as pushes
from lab.gitlab.calls import NO_CONTENT, Answer, Call
from lab.gitlab.exceptions import BadRequest, Forbidden, Missing, NotSimulated
from lab.gitlab.repository import Blob, Change, Commit, FileChange, GitError, Repository
from lab.hypervisor.store import Document

ACTIONS = ("create", "update", "delete", "move", "chmod")


def show_commit(call: Call, project: Document, commit: Commit) -> dict[str, Any]:
    """A commit."""
    return {
        "id": commit.sha,
        "short_id": commit.sha[:8],
        "created_at": commit.committed_at,
        "parent_ids": commit.parents,
        "title": commit.title,
        "message": commit.message,
        "author_name": commit.author_name,
        "author_email": commit.author_email,
        "authored_date": commit.authored_at,
        "committer_name": commit.committer_name,
        "committer_email": commit.committer_email,
        "committed_date": commit.committed_at,
        "trailers": {},
        "extended_trailers": {},
        "web_url": f"{projects.web_url(call.gitlab, project)}/-/commit/{commit.sha}",
    }


def _open(call: Call, level: int = access.REPORTER) -> tuple[Document, Repository]:
    project = call.project(level)
    return project, call.gitlab.repository(project)


def _commit_at(call: Call, project: Document, reference: str | None, what: str = "Commit") -> str:
    sha = call.gitlab.repository(project).resolve(reference or project["default_branch"])
    if sha is None:
        raise Missing(what)
    return sha


def tree(call: Call) -> Any:
    """GET /projects/:id/repository/tree."""
    project, repository = _open(call)
    if repository.is_empty:
        raise Missing("Tree")
    sha = _commit_at(call, project, call.params.get("ref"), "Tree")
    path = call.params.get("path", "")
    entries = repository.tree(sha, path, is_recursive=call.params.get("recursive", False))
    if path.strip("/") and not entries:
        raise Missing("Tree")
    return entries


def _blob(call: Call, project: Document) -> tuple[str, Blob]:
    sha = _commit_at(call, project, call.params.get("ref"))
    blob = call.gitlab.repository(project).blob(sha, call.path["file"])
    if blob is None:
        raise Missing("File")
    return sha, blob


def file_get(call: Call) -> Any:
    """GET and HEAD /projects/:id/repository/files/:path."""
    project, repository = _open(call)
    sha, blob = _blob(call, project)
    path = call.path["file"]
    facts: dict[str, Any] = {
        "file_name": path.rsplit("/", 1)[-1],
        "file_path": path,
        "size": len(blob.content),
        "encoding": "base64",
        "content_sha256": hashlib.sha256(blob.content).hexdigest(),
        "ref": call.params.get("ref") or project["default_branch"],
        "blob_id": blob.sha,
        "commit_id": sha,
        "last_commit_id": repository.log(sha, path=path, limit=1)[0].sha,
        "execute_filemode": blob.mode == "100755",
    }
    headers = {
        "X-Gitlab-" + "-".join(part.capitalize() for part in key.split("_")): str(value)
        for key, value in facts.items()
    }
    if call.method == "HEAD":
        return Answer(headers=headers, content=b"")
    return Answer({**facts, "content": base64.b64encode(blob.content).decode()}, headers=headers)


def file_raw(call: Call) -> Any:
    """GET /projects/:id/repository/files/:path/raw."""
    project, _ = _open(call)
    return Answer(content=_blob(call, project)[1].content, media_type="text/plain")


def _content(given: dict[str, Any]) -> bytes:
    text = given.get("content") or ""
    encoding = given.get("encoding") or "text"
    if encoding == "base64":
        try:
            return base64.b64decode(text, validate=False)
        except (binascii.Error, ValueError) as error:
            raise BadRequest("Invalid base64 content") from error
    if encoding != "text":
        raise BadRequest("encoding does not have a valid value")
    return str(text).encode()


def _apply(
    repository: Repository,
    base: str | None,
    files: dict[str, tuple[str, bytes] | None],
    given: dict[str, Any],
) -> None:
    """Add one action to the changes of a commit."""
    kind, path = given.get("action"), str(given.get("file_path", "")).strip("/")
    if kind not in ACTIONS:
        raise BadRequest("Unknown action")
    if not path or ".." in path.split("/") or path.split("/")[0] == ".git":
        raise BadRequest("You must provide a file path")

    def held(name: str) -> tuple[str, bytes] | None:
        if name in files:
            return files[name]
        blob = repository.blob(base, name) if base else None
        return (blob.mode, blob.content) if blob else None

    is_executable = given.get("execute_filemode")
    mode = "100755" if is_executable else "100644"
    if kind == "create":
        if held(path) is not None:
            raise BadRequest("A file with this name already exists")
        files[path] = (mode, _content(given))
        return
    before = str(given.get("previous_path", "")).strip("/") if kind == "move" else path
    old = held(before)
    if old is None:
        raise BadRequest("A file with this name doesn't exist")
    last = given.get("last_commit_id")
    if last and base and repository.log(base, path=before, limit=1)[0].sha != last:
        raise BadRequest(
            "You are attempting to update a file that has changed since you started editing it."
        )
    match kind:
        case "delete":
            files[path] = None
        case "chmod":
            files[path] = (mode, old[1])
        case "update":
            files[path] = (old[0] if is_executable is None else mode, _content(given))
        case "move":
            files[before] = None
            files[path] = (old[0], _content(given) if "content" in given else old[1])


def _make_commit(call: Call, project: Document, actions: list[dict[str, Any]], message: str) -> str:
    given, repository = call.params, call.gitlab.repository(project)
    branch = given["branch"]
    if not pushes.may_push(call.gitlab, call.user, project, branch):
        reason = "You are not allowed to push into this branch"
        # The vendor's two ways to write differ here: files answer 400, commits 403.
        raise BadRequest(reason) if "file" in call.path else Forbidden(reason)
    seen = repository.reference(f"refs/heads/{branch}")
    start = given.get("start_branch") or given.get("start_sha")
    base = seen
    if seen is None and start:
        base = repository.resolve(start)
        if base is None:
            raise BadRequest("Invalid reference name")
    elif seen is not None and start and start != branch:
        raise BadRequest(
            f"A branch called '{branch}' already exists. "
            "Switch to that branch in order to make changes"
        )
    elif seen is None and not repository.is_empty:
        raise BadRequest("You can only create or edit files when you are on a branch")
    author = (
        given.get("author_name") or call.user["name"],
        given.get("author_email") or call.user["email"],
    )
    change = Change(message, *author)
    for action in actions:
        _apply(repository, base, change.files, action)
    return pushes.commit(call.gitlab, project, call.user, branch, change, start=base)


def file_write(call: Call, kind: str) -> Any:
    """POST and PUT /projects/:id/repository/files/:path."""
    project = call.project(access.REPORTER)
    action = {**call.params, "action": kind, "file_path": call.path["file"]}
    _make_commit(call, project, [action], call.params["commit_message"])
    shown = {"file_path": call.path["file"], "branch": call.params["branch"]}
    return Answer(shown, 201 if kind == "create" else 200)


def file_create(call: Call) -> Any:
    """POST: the file must not be there."""
    return file_write(call, "create")


def file_update(call: Call) -> Any:
    """PUT: the file must be there."""
    return file_write(call, "update")


def file_delete(call: Call) -> Any:
    """DELETE."""
    file_write(call, "delete")
    return NO_CONTENT


def commit_create(call: Call) -> Any:
    """POST /projects/:id/repository/commits: several files in one commit."""
    project = call.project(access.REPORTER)
    actions = call.params["actions"]
    if not all(isinstance(action, dict) for action in actions):
        raise BadRequest("actions is invalid")
    for action in actions:
        known = {"action", "file_path", "previous_path", "content", "encoding", "last_commit_id",
                 "execute_filemode"}  # fmt: skip
        if unknown := set(action) - known:
            raise NotSimulated(f"Parameter 'actions[{sorted(unknown)[0]}]' of a commit")
    sha = _make_commit(call, project, actions, call.params["commit_message"])
    return _with_stats(call, project, sha)


def _with_stats(call: Call, project: Document, sha: str) -> dict[str, Any]:
    repository = call.gitlab.repository(project)
    added, deleted = repository.line_counts(sha)
    runs = call.gitlab.tables.pipelines.where(project_id=project["id"], sha=sha)
    last = runs[-1] if runs else None
    return {
        **show_commit(call, project, repository.commit(sha)),
        "stats": {"additions": added, "deletions": deleted, "total": added + deleted},
        "status": last["status"] if last else None,
        "project_id": project["id"],
        "last_pipeline": None
        if last is None
        else {
            key: last[key] for key in ("id", "iid", "project_id", "sha", "ref", "status", "source")
        },
    }


def commits(call: Call) -> Any:
    """GET /projects/:id/repository/commits."""
    project, repository = _open(call)
    given = call.params
    if repository.is_empty:
        return []
    sha = _commit_at(call, project, given.get("ref_name"))
    more = [f"--{name}={given[name]}" for name in ("since", "until", "author") if given.get(name)]
    if given.get("first_parent"):
        more.append("--first-parent")
    reference = "--all" if given.get("all") else sha
    if given.get("all"):
        found = repository.log("HEAD", path=given.get("path", ""), more=[*more, reference])
    else:
        found = repository.log(reference, path=given.get("path", ""), more=more)
    return [show_commit(call, project, commit) for commit in found]


def commit_get(call: Call) -> Any:
    """GET /projects/:id/repository/commits/:sha."""
    project, _ = _open(call)
    return _with_stats(call, project, _commit_at(call, project, call.path["sha"]))


def show_diff(change: FileChange) -> dict[str, Any]:
    """One file of a difference."""
    return {
        "diff": change.text,
        "new_path": change.new_path,
        "old_path": change.old_path,
        "a_mode": change.old_mode,
        "b_mode": change.new_mode,
        "new_file": change.letter == "A",
        "renamed_file": change.letter == "R",
        "deleted_file": change.letter == "D",
        "generated_file": False,
    }


def commit_diff(call: Call) -> Any:
    """GET /projects/:id/repository/commits/:sha/diff."""
    project, repository = _open(call)
    commit = repository.commit(_commit_at(call, project, call.path["sha"]))
    parent = commit.parents[0] if commit.parents else None
    return [show_diff(change) for change in repository.differences(parent, commit.sha)]


def commit_refs(call: Call) -> Any:
    """GET /projects/:id/repository/commits/:sha/refs."""
    project, repository = _open(call)
    sha, kind = _commit_at(call, project, call.path["sha"]), call.params.get("type", "all")
    found = []
    for word, prefix in (("branch", "refs/heads"), ("tag", "refs/tags")):
        for name, head in repository.references(prefix).items():
            if kind in (word, "all") and repository.is_ancestor(sha, head):
                found.append({"type": word, "name": name})
    return found


def compare(call: Call) -> Any:
    """GET /projects/:id/repository/compare."""
    project, repository = _open(call)
    old = _commit_at(call, project, call.params["from"], "Ref")
    new = _commit_at(call, project, call.params["to"], "Ref")
    base = old
    if not call.params.get("straight"):
        try:
            base = repository.text("merge-base", old, new)
        except GitError:
            base = old
    found = [
        show_commit(call, project, each) for each in reversed(repository.log(new, more=[f"^{old}"]))
    ]
    return {
        "commit": found[-1] if found else None,
        "commits": found,
        "diffs": [show_diff(change) for change in repository.differences(base, new)],
        "compare_timeout": False,
        "compare_same_ref": old == new,
        "web_url": f"{projects.web_url(call.gitlab, project)}/-/compare/{old}...{new}",
    }


def merge_base(call: Call) -> Any:
    """GET /projects/:id/repository/merge_base."""
    project, repository = _open(call)
    ends = [_commit_at(call, project, each, "Ref") for each in call.params["refs"]]
    try:
        sha = repository.text("merge-base", *ends)
    except GitError as error:
        raise Missing("Merge Base") from error
    return show_commit(call, project, repository.commit(sha))
