"""Merge requests: their states, their head, whether they can be merged, and the merge itself.

Promises: a merge is a real merge of the real repository and moves the target by compare-and-swap.
"""

from __future__ import annotations

import functools
from typing import Any

from lab.gitlab import models_hooks as hooks
from lab.gitlab import models_projects as projects
from lab.gitlab import payloads
from lab.gitlab.exceptions import Conflict, Message, Unprocessable
from lab.gitlab.instance import GitLab, stamp
from lab.gitlab.repository import ZERO, Change
from lab.hypervisor.store import Document


def fire(
    gitlab: GitLab,
    project: Document,
    user: Document,
    request: Document,
    action: str,
    changes: dict[str, Any] | None = None,
) -> None:
    """Send the event of a merge request."""
    told = dict(changes or {})
    make = functools.partial(payloads.merge_request, gitlab, project, user, request, action, told)
    hooks.fire(gitlab, project, "merge_requests_events", make)


def create(gitlab: GitLab, project: Document, user: Document, given: dict[str, Any]) -> Document:
    """Open a merge request between two branches of one project."""
    source, target = given["source_branch"], given["target_branch"]
    open_one = gitlab.tables.merge_requests.first(
        project_id=project["id"], source_branch=source, target_branch=target, state="opened"
    )
    if open_one is not None:
        raise Conflict(
            ["Another open merge request already exists for this source branch: "  # type: ignore[arg-type]
             f"!{open_one['iid']}"]
        )  # fmt: skip
    repository = gitlab.repository(project)
    problems = []
    if source == target:
        problems.append("You can't use same project/branch for source and target")
    for branch, kind in ((source, "Source"), (target, "Target")):
        if repository.reference(f"refs/heads/{branch}") is None:
            problems.append(f'{kind} branch "{branch}" does not exist')
    if problems:
        raise Unprocessable({"base": problems})
    request = gitlab.tables.merge_requests.add(
        {
            "project_id": project["id"],
            "iid": 1 + len(gitlab.tables.merge_requests.where(project_id=project["id"])),
            "title": given["title"],
            "description": given.get("description") or "",
            "source_branch": source,
            "target_branch": target,
            "author_id": user["id"],
            "state": "opened",
            "created_at": stamp(),
            "updated_at": stamp(),
            "merged_at": None,
            "closed_at": None,
            "merge_user_id": None,
            "merge_commit_sha": None,
            "squash_commit_sha": None,
            "squash": bool(given.get("squash", False)),
            "should_remove_source_branch": given.get(
                "remove_source_branch", project["remove_source_branch_after_merge"]
            ),
            "draft": given["title"].lower().startswith(("draft:", "[draft]", "(draft)")),
            "sha": None,
            "merge_status": "unchecked",
            "detailed_merge_status": "unchecked",
        }
    )
    request = refresh(gitlab, project, request)
    fire(gitlab, project, user, request, "open")
    _start_pipeline(gitlab, project, user, request)
    return request


def _start_pipeline(gitlab: GitLab, project: Document, user: Document, request: Document) -> None:
    from lab.gitlab import models_pipelines as pipelines

    pipelines.start_for_merge_request(gitlab, project, user, request)


def refresh(gitlab: GitLab, project: Document, request: Document) -> Document:
    """Look anew at the head and whether it can be merged."""
    if request["state"] != "opened":
        return request
    repository = gitlab.repository(project)
    head = repository.reference(f"refs/heads/{request['source_branch']}")
    target = repository.reference(f"refs/heads/{request['target_branch']}")
    if head is None or target is None:
        merge_status, detailed = "cannot_be_merged", "broken_status"
    elif repository.merged_tree(target, head) is None:
        merge_status, detailed = "cannot_be_merged", "conflict"
    elif request["draft"]:
        merge_status, detailed = "can_be_merged", "draft_status"
    else:
        merge_status, detailed = "can_be_merged", _by_pipeline(gitlab, project, head)
    seen = {
        "sha": head or request["sha"],
        "merge_status": merge_status,
        "detailed_merge_status": detailed,
    }
    if {**request, **seen} == request:
        return request
    return gitlab.tables.merge_requests.save({**request, **seen})


def _by_pipeline(gitlab: GitLab, project: Document, head: str) -> str:
    if not project["only_allow_merge_if_pipeline_succeeds"]:
        return "mergeable"
    runs = gitlab.tables.pipelines.where(project_id=project["id"], sha=head)
    if runs and runs[-1]["status"] in ("success", "manual"):
        return "mergeable"
    return "ci_still_running" if runs and runs[-1]["finished_at"] is None else "ci_must_pass"


def branch_moved(
    gitlab: GitLab, project: Document, user: Document, change: tuple[str, str, str]
) -> None:
    """A push of a source branch updates its merge requests."""
    old, new, ref = change
    branch = ref.removeprefix("refs/heads/")
    for request in gitlab.tables.merge_requests.where(
        project_id=project["id"], source_branch=branch, state="opened"
    ):
        if new == ZERO:
            refresh(gitlab, project, request)
            continue
        request = refresh(gitlab, project, {**request, "updated_at": stamp()})
        fire(gitlab, project, user, request, "update", {"oldrev": old})
        _start_pipeline(gitlab, project, user, request)


def base_sha(gitlab: GitLab, project: Document, request: Document) -> str | None:
    """Where source and target parted."""
    repository = gitlab.repository(project)
    target = request.get("target_sha") or f"refs/heads/{request['target_branch']}"
    if not request["sha"] or repository.reference(target) is None:
        return None
    return repository.text("merge-base", target, request["sha"])


def merge(
    gitlab: GitLab, project: Document, user: Document, request: Document, given: dict[str, Any]
) -> Document:
    """Merge, by a merge commit or a fast-forward as the project says."""
    from lab.gitlab import models_pushes as pushes

    request = refresh(gitlab, project, request)
    if given.get("sha") and given["sha"] != request["sha"]:
        raise Conflict(f"SHA does not match HEAD of source branch: {request['sha']}")
    if request["state"] != "opened" or request["draft"]:
        raise Message(405, "405 Method Not Allowed")
    if request["detailed_merge_status"] == "conflict":
        raise Unprocessable("Branch cannot be merged")
    if request["detailed_merge_status"] != "mergeable":
        raise Message(405, "405 Method Not Allowed")
    repository = gitlab.repository(project)
    target_ref = f"refs/heads/{request['target_branch']}"
    target = repository.reference(target_ref) or ZERO
    merged_sha, squashed = _merged(gitlab, project, user, request, given, target)
    request = gitlab.tables.merge_requests.save(
        {
            **request,
            "state": "merged",
            "merged_at": stamp(),
            "updated_at": stamp(),
            "merge_user_id": user["id"],
            "merge_commit_sha": merged_sha
            if merged_sha not in (request["sha"], squashed)
            else None,
            "squash_commit_sha": squashed,
            "target_sha": target,
            "detailed_merge_status": "not_open",
        }
    )
    pushes.push(gitlab, project, user, (target, merged_sha, target_ref))
    fire(gitlab, project, user, request, "merge")
    if given.get("should_remove_source_branch", request["should_remove_source_branch"]):
        source = f"refs/heads/{request['source_branch']}"
        is_protected = pushes.is_protected_ref(gitlab, project, source)
        if not is_protected and (head := repository.reference(source)):
            pushes.push(gitlab, project, user, (head, ZERO, source))
    return request


def _merged(
    gitlab: GitLab,
    project: Document,
    user: Document,
    request: Document,
    given: dict[str, Any],
    target: str,
) -> tuple[str, str | None]:
    """The commit that the target moves to, and the squashed one if there is one."""
    repository = gitlab.repository(project)
    head, squashed = request["sha"], None
    tree = repository.merged_tree(target, head)
    if tree is None:
        raise Unprocessable("Branch cannot be merged")
    who = (user["name"], user["email"])
    if given.get("squash", request["squash"]):
        message = given.get("squash_commit_message") or f"{request['title']}"
        head = squashed = repository.commit_tree(tree, [target], Change(message, *who), who)
    if project["merge_method"] == "ff":
        if not repository.is_ancestor(target, head):
            raise Message(405, "405 Method Not Allowed")
        return head, squashed
    path = projects.project_path(gitlab, project)
    source, branch = request["source_branch"], request["target_branch"]
    message = given.get("merge_commit_message") or (
        f"Merge branch '{source}' into '{branch}'\n\n{request['title']}\n\n"
        f"See merge request {path}!{request['iid']}"
    )
    return repository.commit_tree(tree, [target, head], Change(message, *who), who), squashed
