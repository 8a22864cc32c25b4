"""A GitLab project's facts, settings, branches and files, over its API.

Promises that a commit holds all files or none, that nothing is committed when nothing differs, and
that a writer who came between is seen: each changed file names the commit that it was read at
(`last_commit_id`; GitLab answers 400 "has changed since you started editing it", as to every
failure of its commit service: https://docs.gitlab.com/api/commits/). A protected branch exists
once: making it again is 409, so it is looked at first and a race is a success when it ends as
wanted (https://docs.gitlab.com/api/protected_branches/). A project that was renamed or moved is
found by its id, and by its old path as long as nobody took that (GitLab redirects).
"""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from blocks.git_repository import CommitResult
from blocks.gitlab_transport import GitLabTransport, part
from domain.errors import Conflict, NotFound

COMMIT_ATTEMPTS = 6


@dataclass(frozen=True)
class ProjectFacts:
    """What a project is called now; only the id stays."""

    project_id: int
    path: str
    """With its groups, as `storefront/shop`."""
    default_branch: str
    """`main` while the project has no commit."""
    web_url: str
    http_url: str
    """Where Git reads it over HTTPS."""
    is_archived: bool


@dataclass(frozen=True)
class Protection:
    """Who may push to a branch and merge into it, as access levels; 40 is a maintainer."""

    push_level: int
    merge_level: int
    is_force_push_allowed: bool = False


@dataclass(frozen=True)
class _File:
    text: str
    last_commit: str


class RepositoryCalls:
    """The part of a session that deals with projects and their files."""

    def __init__(self, http: GitLabTransport) -> None:
        """Take the transport of a session."""
        self.http = http

    # --- the project -------------------------------------------------------------------------

    def project(self, project: int | str) -> ProjectFacts:
        """Return a project by its id, or by its path or a former path.

        Raises:
            NotFound: there is none, or the token's user is no member.
        """
        found = self.http.get(f"read the project {project}", f"/projects/{part(project)}")
        return ProjectFacts(
            project_id=int(found["id"]),
            path=str(found["path_with_namespace"]),
            default_branch=str(found.get("default_branch") or "main"),
            web_url=str(found["web_url"]),
            http_url=str(found.get("http_url_to_repo") or f"{found['web_url']}.git"),
            is_archived=bool(found.get("archived")),
        )

    def settings(self, project_id: int, *names: str) -> dict[str, Any]:
        """Return these settings of a project; one that this GitLab does not have is left out."""
        found = self.http.get(f"read the settings of {project_id}", f"/projects/{project_id}")
        return {name: found[name] for name in names if name in found}

    def change_settings(self, project_id: int, settings: Mapping[str, Any]) -> None:
        """Set these settings and read them back.

        Raises:
            Conflict: GitLab took them and shows others.
        """
        act = f"change the settings of {project_id}"
        self.http.put(act, f"/projects/{project_id}", settings)
        after = self.settings(project_id, *settings)
        wrong = sorted(name for name, value in settings.items() if after.get(name) != value)
        if wrong:
            raise Conflict(
                f"Unable to {act}: {', '.join(wrong)} read back otherwise. Look whether the group "
                "or the instance enforces another value."
            )

    # --- branches ----------------------------------------------------------------------------

    def head(self, project_id: int, branch: str) -> str:
        """Return the newest commit of a branch.

        Raises:
            NotFound: there is no such branch.
        """
        found = self.http.get(
            f"read the branch {branch} of {project_id}",
            f"/projects/{project_id}/repository/branches/{part(branch)}",
        )
        return str(found["commit"]["id"])

    def branches_with(self, project_id: int, commit: str) -> list[str]:
        """Return the branches that hold a commit; none when there is no such commit."""
        try:
            found = self.http.list_all(
                f"list the branches with {commit[:12]} of {project_id}",
                f"/projects/{project_id}/repository/commits/{part(commit)}/refs",
                type="branch",
            )
        except NotFound:
            return []
        return [str(each["name"]) for each in found]

    def protections(self, project_id: int) -> dict[str, Protection]:
        """Return the protected branches by name or pattern."""
        found = self.http.list_all(
            f"list the protected branches of {project_id}",
            f"/projects/{project_id}/protected_branches",
        )
        return {str(each["name"]): _protection(each) for each in found}

    def protect(self, project_id: int, branch: str, wanted: Protection) -> None:
        """Make a branch protected exactly so; a protection that differs is replaced."""
        act = f"protect the branch {branch} of {project_id}"
        path = f"/projects/{project_id}/protected_branches"
        present = self.protections(project_id).get(branch)
        if present == wanted:
            return
        if present is not None:
            # The levels of an existing protection cannot be changed in every edition: made anew.
            self.unprotect(project_id, branch)
        body = {
            "name": branch,
            "push_access_level": wanted.push_level,
            "merge_access_level": wanted.merge_level,
            "allow_force_push": wanted.is_force_push_allowed,
        }
        # If another writer was first, what it wrote is looked at.
        with suppress(Conflict):
            self.http.post(act, path, body)
        if self.protections(project_id).get(branch) != wanted:
            raise Conflict(
                f"Unable to {act}: other levels read back than were written. Look whether the "
                "group protects it too."
            )

    def unprotect(self, project_id: int, branch: str) -> bool:
        """Take a branch's protection away; false when there was none."""
        return self.http.delete(
            f"unprotect the branch {branch} of {project_id}",
            f"/projects/{project_id}/protected_branches/{part(branch)}",
        )

    def tag_protections(self, project_id: int) -> dict[str, int]:
        """Return who may make tags of each protected pattern, as an access level."""
        found = self.http.list_all(
            f"list the protected tags of {project_id}", f"/projects/{project_id}/protected_tags"
        )
        return {str(each["name"]): _level(each, "create_access_levels") for each in found}

    def protect_tags(self, project_id: int, pattern: str, create_level: int) -> None:
        """Make tags of a pattern protected exactly so; a protection that differs is replaced."""
        act = f"protect the tags {pattern} of {project_id}"
        present = self.tag_protections(project_id).get(pattern)
        if present == create_level:
            return
        if present is not None:
            self.unprotect_tags(project_id, pattern)
        body = {"name": pattern, "create_access_level": create_level}
        # If another writer was first, what it wrote is looked at.
        with suppress(Conflict):
            self.http.post(act, f"/projects/{project_id}/protected_tags", body)
        if self.tag_protections(project_id).get(pattern) != create_level:
            raise Conflict(
                f"Unable to {act}: another level read back than was written. Look who else "
                "changes it, then run again."
            )

    def unprotect_tags(self, project_id: int, pattern: str) -> bool:
        """Take a pattern's protection away; false when there was none."""
        return self.http.delete(
            f"unprotect the tags {pattern} of {project_id}",
            f"/projects/{project_id}/protected_tags/{part(pattern)}",
        )

    # --- files -------------------------------------------------------------------------------

    def file(self, project_id: int, path: str, ref: str) -> str:
        """Return a file's text at a branch, tag or commit.

        Raises:
            NotFound: there is no such file or ref.
        """
        return self._file(project_id, path, ref).text

    def file_or_none(self, project_id: int, path: str, ref: str) -> str | None:
        """Return a file's text, or nothing when there is no such file or branch."""
        try:
            return self.file(project_id, path, ref)
        except NotFound:
            return None

    def _file(self, project_id: int, path: str, ref: str) -> _File:
        found = self.http.get(
            f"read {path} at {ref[:40]} of {project_id}",
            f"/projects/{project_id}/repository/files/{part(path)}",
            ref=ref,
        )
        text = base64.b64decode(str(found["content"])).decode(errors="replace")
        return _File(text, str(found.get("last_commit_id") or ""))

    def commit_files(
        self, project_id: int, branch: str, message: str, files: Mapping[str, str | None]
    ) -> CommitResult:
        """Make files have these texts, or not be there (None), in one commit if anything differs.

        Raises:
            Conflict: other writers were faster each time.
        """
        last: Conflict | None = None
        for attempt in range(COMMIT_ATTEMPTS):
            head, actions = self._difference(project_id, branch, files)
            if not actions:
                return CommitResult(head, is_changed=False)
            body = {"branch": branch, "commit_message": message, "actions": actions}
            try:
                made = self.http.post(
                    f"commit to {branch} of {project_id}",
                    f"/projects/{project_id}/repository/commits",
                    body,
                )
            except Conflict as error:
                last = error
                time.sleep(random.uniform(0.05, 0.2) * (attempt + 1))  # noqa: S311 - jitter
                continue
            return CommitResult(str(made["id"]), is_changed=True)
        raise Conflict(
            f"Unable to commit to {branch} of {project_id}: other writers were faster "
            f"{COMMIT_ATTEMPTS} times. Run again."
        ) from last

    def _difference(
        self, project_id: int, branch: str, files: Mapping[str, str | None]
    ) -> tuple[str, list[dict[str, str]]]:
        """Return the branch's head and what a commit on it must do."""
        try:
            head = self.head(project_id, branch)
        except NotFound:
            head = ""
        actions = []
        for path, text in files.items():
            present = None
            if head:
                try:
                    present = self._file(project_id, path, head)
                except NotFound:
                    present = None
            if (action := _action(path, text, present)) is not None:
                actions.append(action)
        return head, actions


def _action(path: str, text: str | None, present: _File | None) -> dict[str, str] | None:
    if text is None:
        if present is None:
            return None
        return {"action": "delete", "file_path": path, **_read_at(present)}
    content = {
        "file_path": path,
        "encoding": "base64",
        "content": base64.b64encode(text.encode()).decode(),
    }
    if present is None:
        return {"action": "create", **content}
    if present.text == text:
        return None
    return {"action": "update", **content, **_read_at(present)}


def _read_at(present: _File) -> dict[str, str]:
    return {"last_commit_id": present.last_commit} if present.last_commit else {}


def _level(found: Mapping[str, Any], name: str) -> int:
    # An entry may name a user or a group instead of a level; those count as no level.
    levels = [each.get("access_level") for each in found.get(name) or []]
    return min((int(each) for each in levels if each is not None), default=-1)


def _protection(found: Mapping[str, Any]) -> Protection:
    return Protection(
        push_level=_level(found, "push_access_levels"),
        merge_level=_level(found, "merge_access_levels"),
        is_force_push_allowed=bool(found.get("allow_force_push")),
    )
