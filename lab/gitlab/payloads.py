"""What a webhook delivery says, field by field as the vendor documents it."""

from __future__ import annotations

from typing import Any

from lab.gitlab import models_projects as projects
from lab.gitlab.instance import GitLab, moment
from lab.gitlab.repository import ZERO, Commit, GitError, Repository
from lab.hypervisor.store import Document

SHOWN_COMMITS = 20


def user_part(user: Document) -> dict[str, Any]:
    """The user who did it."""
    return {
        "id": user["id"],
        "name": user["name"],
        "username": user["username"],
        "avatar_url": None,
        "email": "[REDACTED]",
    }


def project_part(gitlab: GitLab, project: Document) -> dict[str, Any]:
    """The project that it happened in."""
    url = projects.web_url(gitlab, project)
    path = projects.project_path(gitlab, project)
    namespace = gitlab.tables.namespaces.get(project["namespace_id"]) or {"name": ""}
    host = gitlab.url.split("//", 1)[-1].split(":", 1)[0]
    ssh = f"git@{host}:{path}.git"
    return {
        "id": project["id"],
        "name": project["name"],
        "description": project["description"],
        "web_url": url,
        "avatar_url": None,
        "git_ssh_url": ssh,
        "git_http_url": f"{url}.git",
        "namespace": namespace["name"],
        "visibility_level": projects.VISIBILITY_LEVELS[project["visibility"]],
        "path_with_namespace": path,
        "default_branch": project["default_branch"],
        "ci_config_path": project["ci_config_path"],
        "homepage": url,
        "url": ssh,
        "ssh_url": ssh,
        "http_url": f"{url}.git",
    }


def repository_part(gitlab: GitLab, project: Document) -> dict[str, Any]:
    """The older form of the same."""
    part = project_part(gitlab, project)
    return {
        "name": part["name"],
        "url": part["url"],
        "description": part["description"],
        "homepage": part["homepage"],
        "git_http_url": part["git_http_url"],
        "git_ssh_url": part["git_ssh_url"],
        "visibility_level": part["visibility_level"],
    }


def commit_part(gitlab: GitLab, project: Document, commit: Commit) -> dict[str, Any]:
    """One commit."""
    return {
        "id": commit.sha,
        "message": commit.message,
        "title": commit.title,
        "timestamp": commit.committed_at,
        "url": f"{projects.web_url(gitlab, project)}/-/commit/{commit.sha}",
        "author": {"name": commit.author_name, "email": commit.author_email},
    }


def _touched(repository: Repository, commit: Commit) -> dict[str, list[str]]:
    touched: dict[str, list[str]] = {"added": [], "modified": [], "removed": []}
    words = {"A": "added", "D": "removed"}
    names = ("diff-tree", "--root", "--no-commit-id", "--name-status", "-r", "-z", commit.sha)
    parts = iter(repository.run(*names).decode(errors="replace").split("\0")[:-1])
    for letter in parts:
        touched[words.get(letter[0], "modified")].append(next(parts))
    return touched


def pushed_commits(repository: Repository, project: Document, old: str, new: str) -> list[Commit]:
    """The commits that a push of a branch brought, newest first."""
    if new == ZERO:
        return []
    if old != ZERO:
        return repository.log(new, more=[f"^{old}"])
    default = repository.reference(f"refs/heads/{project['default_branch']}")
    if default is None or default == new:
        return repository.log(new)
    return repository.log(new, more=[f"^{default}"])


def push(
    gitlab: GitLab,
    project: Document,
    user: Document,
    change: tuple[str, str, str],
    *,
    is_protected: bool,
) -> dict[str, Any]:
    """A push of one branch."""
    old, new, _ = change
    repository = gitlab.repository(project)
    commits = pushed_commits(repository, project, old, new)
    shown = [
        {**commit_part(gitlab, project, commit), **_touched(repository, commit)}
        for commit in reversed(commits[:SHOWN_COMMITS])
    ]
    return {
        "object_kind": "push",
        "event_name": "push",
        **_ref_fields(gitlab, project, user, change, is_protected=is_protected),
        "checkout_sha": None if new == ZERO else new,
        "commits": shown,
        "total_commits_count": len(commits),
    }


def _ref_fields(
    gitlab: GitLab,
    project: Document,
    user: Document,
    change: tuple[str, str, str],
    *,
    is_protected: bool,
) -> dict[str, Any]:
    old, new, ref = change
    return {
        "before": old,
        "after": new,
        "ref": ref,
        "ref_protected": is_protected,
        "message": None,
        "user_id": user["id"],
        "user_name": user["name"],
        "user_username": user["username"],
        "user_email": None,
        "user_avatar": None,
        "project_id": project["id"],
        "project": project_part(gitlab, project),
        "repository": repository_part(gitlab, project),
        "push_options": {},
    }


def tag_push(
    gitlab: GitLab,
    project: Document,
    user: Document,
    change: tuple[str, str, str],
    *,
    is_protected: bool,
) -> dict[str, Any]:
    """A tag that was made or deleted."""
    repository = gitlab.repository(project)
    name = change[2].removeprefix("refs/tags/")
    sha = None if change[1] == ZERO else repository.resolve(f"refs/tags/{name}")
    commits = [commit_part(gitlab, project, repository.commit(sha))] if sha else []
    return {
        "object_kind": "tag_push",
        "event_name": "tag_push",
        **_ref_fields(gitlab, project, user, change, is_protected=is_protected),
        "message": repository.tag_message(name) if sha else None,
        "checkout_sha": sha,
        "commits": commits,
        "total_commits_count": len(commits),
    }


def merge_request(
    gitlab: GitLab,
    project: Document,
    user: Document,
    request: Document,
    action: str,
    changes: dict[str, Any],
) -> dict[str, Any]:
    """A merge request that was opened, updated, closed or merged."""
    attributes = merge_request_part(gitlab, project, request)
    if "oldrev" in changes:
        attributes["oldrev"] = changes.pop("oldrev")
    return {
        "object_kind": "merge_request",
        "event_type": "merge_request",
        "user": user_part(user),
        "project": project_part(gitlab, project),
        "object_attributes": {**attributes, "action": action},
        "labels": [],
        "changes": changes,
        "repository": {
            key: value
            for key, value in repository_part(gitlab, project).items()
            if key in ("name", "url", "description", "homepage")
        },
    }


def merge_request_part(gitlab: GitLab, project: Document, request: Document) -> dict[str, Any]:
    """The attributes of a merge request."""
    states = {"opened": 1, "closed": 2, "merged": 3}
    sha = request["sha"]
    try:
        last = commit_part(gitlab, project, gitlab.repository(project).commit(sha)) if sha else None
    except GitError:
        last = None
    kept = (
        "id", "iid", "title", "description", "source_branch", "target_branch", "author_id",
        "created_at", "updated_at", "state", "merge_status", "detailed_merge_status", "draft",
    )  # fmt: skip
    return {
        **{key: request[key] for key in kept},
        "source_project_id": project["id"],
        "target_project_id": project["id"],
        "assignee_id": None,
        "assignee_ids": [],
        "reviewer_ids": [],
        "labels": [],
        "milestone_id": None,
        "state_id": states[request["state"]],
        "work_in_progress": request["draft"],
        "blocking_discussions_resolved": True,
        "merge_commit_sha": request["merge_commit_sha"],
        "url": f"{projects.web_url(gitlab, project)}/-/merge_requests/{request['iid']}",
        "source": project_part(gitlab, project),
        "target": project_part(gitlab, project),
        "last_commit": last,
    }


def note(
    gitlab: GitLab, project: Document, user: Document, written: Document, target: dict[str, Any]
) -> dict[str, Any]:
    """A comment on a commit or a merge request; `target` is its own part, by its kind."""
    return {
        "object_kind": "note",
        "event_type": "note",
        "user": user_part(user),
        "project_id": project["id"],
        "project": project_part(gitlab, project),
        "repository": {
            key: value
            for key, value in repository_part(gitlab, project).items()
            if key in ("name", "url", "description", "homepage")
        },
        "object_attributes": {
            "id": written["id"],
            "note": written["body"],
            "noteable_type": written["noteable_type"],
            "noteable_id": written["noteable_id"],
            "author_id": user["id"],
            "commit_id": written["commit_id"],
            "project_id": project["id"],
            "created_at": written["created_at"],
            "updated_at": written["updated_at"],
            "system": False,
            "action": "create",
        },
        **target,
    }


def legacy_time(text: str | None) -> str | None:
    """A moment as pipeline events write it."""
    return None if text is None else moment(text).strftime("%Y-%m-%d %H:%M:%S UTC")


def pipeline(gitlab: GitLab, project: Document, user: Document, run: Document) -> dict[str, Any]:
    """A pipeline whose status changed."""
    commit = gitlab.repository(project).commit(run["sha"])
    kept = ("id", "iid", "name", "ref", "tag", "sha", "before_sha", "source", "status", "duration")
    request = gitlab.tables.merge_requests.get(run["merge_request_id"] or 0)
    return {
        "object_kind": "pipeline",
        "object_attributes": {
            **{key: run[key] for key in kept},
            "detailed_status": "passed" if run["status"] == "success" else run["status"],
            "stages": run["stages"],
            "created_at": legacy_time(run["created_at"]),
            "finished_at": legacy_time(run["finished_at"]),
            "variables": [],
            "url": f"{projects.web_url(gitlab, project)}/-/pipelines/{run['id']}",
        },
        "merge_request": _pipeline_request(gitlab, project, request) if request else None,
        "user": user_part(user),
        "project": project_part(gitlab, project),
        "commit": commit_part(gitlab, project, commit),
        "builds": [
            _build(user, job) for job in reversed(gitlab.tables.jobs.where(pipeline_id=run["id"]))
        ],
    }


def _pipeline_request(gitlab: GitLab, project: Document, request: Document) -> dict[str, Any]:
    part = merge_request_part(gitlab, project, request)
    kept = ("id", "iid", "title", "source_branch", "source_project_id", "target_branch")
    more = ("target_project_id", "state", "merge_status", "detailed_merge_status", "url")
    return {key: part[key] for key in (*kept, *more)}


def _build(user: Document, job: Document) -> dict[str, Any]:
    environment = None
    if job["environment"]:
        environment = {
            "name": job["environment"],
            "action": job["environment_action"],
            "deployment_tier": job["environment_tier"] or environment_tier(job["environment"]),
        }
    return {
        "id": job["id"],
        "stage": job["stage"],
        "name": job["name"],
        "status": job["status"],
        "created_at": legacy_time(job["created_at"]),
        "started_at": legacy_time(job["started_at"]),
        "finished_at": legacy_time(job["finished_at"]),
        "duration": job["duration"],
        "queued_duration": job["queued_duration"],
        "failure_reason": job["failure_reason"],
        "when": job["when"],
        "manual": job["when"] == "manual",
        "allow_failure": job["allow_failure"],
        "user": user_part(user),
        "runner": None,
        "artifacts_file": {"filename": None, "size": None},
        "environment": environment,
    }


def environment_tier(name: str) -> str:
    """The tier that GitLab derives from an environment's name."""
    lowered = name.lower()
    for tier, words in (
        ("production", ("prod", "live")),
        ("staging", ("stag", "model", "pre", "demo", "non-prod")),
        ("testing", ("test", "tst", "int", "ac", "qa", "qc", "control", "quality")),
        ("development", ("dev", "review", "trunk")),
    ):
        if any(lowered.startswith(word) for word in words):
            return tier
    return "other"


def deployment(gitlab: GitLab, project: Document, user: Document, made: Document) -> dict[str, Any]:
    """A deployment that started, succeeded, failed or was cancelled."""
    url = projects.web_url(gitlab, project)
    commit = gitlab.repository(project).commit(made["sha"])
    environment = gitlab.tables.environments.get(made["environment_id"]) or {}
    return {
        "object_kind": "deployment",
        "status": made["status"],
        "status_changed_at": moment(made["updated_at"]).strftime("%Y-%m-%d %H:%M:%S +0000"),
        "deployment_id": made["id"],
        "deployable_id": made["job_id"],
        "deployable_url": f"{url}/-/jobs/{made['job_id']}",
        "environment": environment.get("name"),
        "environment_tier": environment.get("tier"),
        "environment_slug": environment.get("slug"),
        "environment_external_url": environment.get("external_url"),
        "project": project_part(gitlab, project),
        "ref": made["ref"],
        "short_sha": made["sha"][:8],
        "user": user_part(user),
        "user_url": f"{gitlab.url}/{user['username']}",
        "commit_url": f"{url}/-/commit/{made['sha']}",
        "commit_title": commit.title,
    }
