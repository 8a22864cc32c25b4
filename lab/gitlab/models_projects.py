"""Groups and projects: their paths, and how an old path leads to the new one.

Promises: a project keeps its id and its data when it is renamed or moved; its old path leads to it
until somebody else takes that path.
"""

from __future__ import annotations

import re
import shutil
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab.exceptions import ApiError, BadRequest
from lab.gitlab.instance import GitLab, stamp
from lab.hypervisor.store import Document

PATH_PATTERN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
VISIBILITY_LEVELS = {"private": 0, "internal": 10, "public": 20}

SETTINGS: dict[str, Any] = {
    "description": None,
    "visibility": "private",
    "topics": [],
    "archived": False,
    "issues_access_level": "enabled",
    "merge_requests_access_level": "enabled",
    "builds_access_level": "enabled",
    "wiki_access_level": "enabled",
    "snippets_access_level": "enabled",
    "container_registry_access_level": "enabled",
    "repository_access_level": "enabled",
    "forking_access_level": "enabled",
    "releases_access_level": "enabled",
    "environments_access_level": "enabled",
    "issues_enabled": True,
    "merge_requests_enabled": True,
    "jobs_enabled": True,
    "wiki_enabled": True,
    "snippets_enabled": True,
    "container_registry_enabled": True,
    "packages_enabled": True,
    "shared_runners_enabled": True,
    "lfs_enabled": True,
    "request_access_enabled": True,
    "only_allow_merge_if_pipeline_succeeds": False,
    "allow_merge_on_skipped_pipeline": None,
    "only_allow_merge_if_all_discussions_are_resolved": False,
    "remove_source_branch_after_merge": True,
    "resolve_outdated_diff_discussions": False,
    "printing_merge_request_link_enabled": True,
    "merge_method": "merge",
    "squash_option": "default_off",
    "merge_commit_template": None,
    "squash_commit_template": None,
    "suggestion_commit_message": None,
    "auto_devops_enabled": False,
    "auto_cancel_pending_pipelines": "enabled",
    "build_git_strategy": "fetch",
    "build_timeout": 3600,
    "ci_config_path": "",
    "ci_default_git_depth": 20,
    "ci_forward_deployment_enabled": True,
    "ci_separated_caches": True,
    "public_jobs": True,
    "keep_latest_artifact": True,
    "emails_enabled": True,
    "autoclose_referenced_issues": True,
    "enforce_auth_checks_on_uploads": True,
}
"""Settings that are kept and told; the README says which of them have an effect."""


def full_path(gitlab: GitLab, namespace_id: int | None) -> str:
    """Path of a namespace with those above it."""
    chain = access.ancestors(gitlab, namespace_id)
    return "/".join(each["path"] for each in reversed(chain))


def project_path(gitlab: GitLab, project: Document) -> str:
    """Path of a project with its namespace."""
    return f"{full_path(gitlab, project['namespace_id'])}/{project['path']}"


def web_url(gitlab: GitLab, project: Document) -> str:
    """Address of a project's page."""
    return f"{gitlab.url}/{project_path(gitlab, project)}"


def by_path(gitlab: GitLab, path: str) -> Document | None:
    """The project at a path, without redirects. Case does not matter."""
    wanted = path.strip("/").lower()
    for project in gitlab.tables.projects:
        if project_path(gitlab, project).lower() == wanted:
            return project
    return None


def by_old_path(gitlab: GitLab, path: str) -> Document | None:
    """The project that once was at a path, or lay below a group that was."""
    wanted = path.strip("/").lower()
    for redirect in reversed(list(gitlab.tables.redirects)):
        if redirect["path"] == wanted:
            return gitlab.tables.projects.get(redirect["project_id"])
    return None


class Moved(ApiError):
    """302 to the project's place by id, which is how GitLab answers a GET of an old path."""

    def __init__(self, project: Document) -> None:
        super().__init__(302, {"message": "This resource has been moved"})
        self.project = project


def find_project(gitlab: GitLab, text: str, method: str = "GET") -> Document | None:
    """The project by id or path; an old path is followed, for reading by a redirect."""
    if text.isdigit():
        return gitlab.tables.projects.get(int(text))
    found = by_path(gitlab, text)
    if found is None and (moved := by_old_path(gitlab, text)) is not None:
        if method in ("GET", "HEAD"):
            raise Moved(moved)
        return moved
    return found


def find_group(gitlab: GitLab, text: str) -> Document | None:
    """The group by id or path."""
    if text.isdigit():
        found = gitlab.tables.namespaces.get(int(text))
        return found if found is not None and found["kind"] == "group" else None
    for group in gitlab.tables.namespaces.where(kind="group"):
        if full_path(gitlab, group["id"]).lower() == text.strip("/").lower():
            return group
    return None


def path_from(name: str) -> str:
    """The path that GitLab derives from a name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.").lower()


def _check_path(path: str) -> None:
    if not PATH_PATTERN.fullmatch(path) or path.endswith((".git", ".atom", ".")):
        text = (
            "can contain only letters, digits, '_', '-' and '.'. Cannot start with '-', end in "
            "'.git' or end in '.atom'"
        )
        raise BadRequest({"path": [text]})


def is_taken(gitlab: GitLab, namespace_id: int | None, path: str, but: Document | None) -> bool:
    """True when another project or group has this path."""
    projects = [
        each
        for each in gitlab.tables.projects
        if each["namespace_id"] == namespace_id and each["path"].lower() == path.lower()
    ]
    groups = [
        each
        for each in gitlab.tables.namespaces
        if each["parent_id"] == namespace_id and each["path"].lower() == path.lower()
    ]
    return any(each is not but for each in projects + groups)


def create_project(
    gitlab: GitLab, creator: Document, namespace: Document, given: dict[str, Any]
) -> Document:
    """A new project with an empty repository."""
    name = given.get("name") or given["path"]
    path = given.get("path") or path_from(name)
    _check_path(path)
    if is_taken(gitlab, namespace["id"], path, None):
        raise BadRequest(
            {
                "project_namespace.name": ["has already been taken"],
                "name": ["has already been taken"],
                "path": ["has already been taken"],
            }
        )
    _check_settings(given)
    project = gitlab.tables.projects.add(
        {
            **SETTINGS,
            **{key: value for key, value in given.items() if key in SETTINGS},
            "name": name,
            "path": path,
            "namespace_id": namespace["id"],
            "creator_id": creator["id"],
            "default_branch": given.get("default_branch") or "main",
            "created_at": stamp(),
            "last_activity_at": stamp(),
        }
    )
    forget_redirects(gitlab, project)
    gitlab.repository(project).create(project["default_branch"], gitlab.hooks_directory)
    if access.project_level(gitlab, creator, project) < access.OWNER:
        access_level = access.MAINTAINER
        add_member(gitlab, "project", project["id"], creator, access_level)
    return project


def _check_settings(given: dict[str, Any]) -> None:
    if given.get("visibility", "private") not in VISIBILITY_LEVELS:
        raise BadRequest({"visibility_level": ["is not included in the list"]})
    if given.get("merge_method", "merge") not in ("merge", "rebase_merge", "ff"):
        raise BadRequest({"merge_method": ["is not included in the list"]})


def edit_project(gitlab: GitLab, project: Document, given: dict[str, Any]) -> Document:
    """Change settings; a new path leaves a redirect behind."""
    path = given.get("path") or project["path"]
    _check_path(path)
    _check_settings(given)
    if path != project["path"] and is_taken(gitlab, project["namespace_id"], path, project):
        raise BadRequest({"path": ["has already been taken"]})
    kept = (*SETTINGS, "name", "default_branch")
    changes = {key: value for key, value in given.items() if key in kept}
    branch = changes.get("default_branch")
    if branch and branch != project["default_branch"]:
        repository = gitlab.repository(project)
        if repository.reference(f"refs/heads/{branch}") is None and repository.references(
            "refs/heads"
        ):
            raise BadRequest(
                {
                    "base": [
                        "Could not set the default branch. Do you have a branch named "
                        f"'{branch}' in your repository?"
                    ]
                }
            )
        repository.run("symbolic-ref", "HEAD", f"refs/heads/{branch}")
    return move_project(gitlab, {**project, **changes}, project["namespace_id"], path)


def move_project(gitlab: GitLab, project: Document, namespace_id: int, path: str) -> Document:
    """Give a project another place; where it was leads to it."""
    stored = gitlab.tables.projects.get(project["id"]) or project
    if (namespace_id, path) != (stored["namespace_id"], stored["path"]):
        gitlab.tables.redirects.add(
            {"project_id": project["id"], "path": project_path(gitlab, stored).lower()}
        )
    moved = {**project, "namespace_id": namespace_id, "path": path, "last_activity_at": stamp()}
    gitlab.tables.projects.save(moved)
    forget_redirects(gitlab, moved)
    return moved


def forget_redirects(gitlab: GitLab, project: Document) -> None:
    """A path that is in use leads nowhere else."""
    taken = project_path(gitlab, project).lower()
    for redirect in gitlab.tables.redirects.where(path=taken):
        gitlab.tables.redirects.remove(redirect["id"])


def delete_project(gitlab: GitLab, project: Document) -> None:
    """Delete a project and all that ends with it."""
    for job in gitlab.tables.jobs.where(project_id=project["id"]):
        gitlab.forget_trace(job["id"])
    for table in gitlab.tables.of_a_project:
        for row in table.where(project_id=project["id"]):
            table.remove(row["id"])
    for member in gitlab.tables.members.where(source="project", source_id=project["id"]):
        gitlab.tables.members.remove(member["id"])
    for token in gitlab.tables.tokens.where(project_id=project["id"]):
        gitlab.tables.tokens.remove(token["id"])
    gitlab.tables.projects.remove(project["id"])
    shutil.rmtree(gitlab.repository(project).directory, ignore_errors=True)


def create_group(gitlab: GitLab, creator: Document, given: dict[str, Any]) -> Document:
    """A new group; its creator owns it."""
    parent = given.get("parent_id")
    _check_path(given["path"])
    if is_taken(gitlab, parent, given["path"], None):
        raise BadRequest('Failed to save group {:path=>["has already been taken"]}')
    group = gitlab.tables.namespaces.add(
        {
            "kind": "group",
            "name": given["name"],
            "path": given["path"],
            "parent_id": parent,
            "visibility": given.get("visibility", "private"),
            "description": given.get("description", ""),
            "created_at": stamp(),
        }
    )
    add_member(gitlab, "group", group["id"], creator, access.OWNER)
    return group


def add_member(
    gitlab: GitLab,
    source: str,
    source_id: int,
    user: Document,
    level: int,
    expires_at: str | None = None,
) -> Document:
    """Give a user a role in a group or a project, or change it."""
    held = gitlab.tables.members.first(source=source, source_id=source_id, user_id=user["id"])
    if held is not None:
        return gitlab.tables.members.save({**held, "access_level": level, "expires_at": expires_at})
    return gitlab.tables.members.add(
        {
            "source": source,
            "source_id": source_id,
            "user_id": user["id"],
            "access_level": level,
            "expires_at": expires_at,
            "created_at": stamp(),
        }
    )
