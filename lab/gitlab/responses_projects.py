"""Groups and projects, as the API shows and changes them."""

from __future__ import annotations

from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab import models_projects as projects
from lab.gitlab.calls import NO_CONTENT, Answer, Call
from lab.gitlab.exceptions import BadRequest, Forbidden, Missing
from lab.gitlab.instance import stamp
from lab.hypervisor.store import Document


def show_group(call: Call, group: Document) -> dict[str, Any]:
    """A group."""
    path = projects.full_path(call.gitlab, group["id"])
    return {
        "id": group["id"],
        "web_url": f"{call.gitlab.url}/groups/{path}",
        "name": group["name"],
        "path": group["path"],
        "description": group["description"],
        "visibility": group["visibility"],
        "full_name": " / ".join(
            each["name"] for each in reversed(access.ancestors(call.gitlab, group["id"]))
        ),
        "full_path": path,
        "parent_id": group["parent_id"],
        "created_at": group["created_at"],
        "avatar_url": None,
    }


def groups(call: Call) -> Any:
    """GET /groups."""
    word = call.params.get("search", "").lower()
    found = [
        group
        for group in call.gitlab.tables.namespaces.where(kind="group")
        if group["visibility"] != "private" or access.group_level(call.gitlab, call.user, group)
    ]
    if call.params.get("top_level_only"):
        found = [group for group in found if group["parent_id"] is None]
    return [show_group(call, group) for group in found if word in group["path"].lower()]


def group_get(call: Call) -> Any:
    """GET /groups/:id."""
    return show_group(call, call.group())


def group_create(call: Call) -> Any:
    """POST /groups."""
    parent = call.params.get("parent_id")
    if parent is not None:
        found = call.gitlab.tables.namespaces.get(parent)
        if found is None or not access.group_level(call.gitlab, call.user, found):
            raise Missing("Group")
        access.require_level(access.group_level(call.gitlab, call.user, found), access.OWNER)
    return show_group(call, projects.create_group(call.gitlab, call.user, call.params))


def group_edit(call: Call) -> Any:
    """PUT /groups/:id."""
    group = call.group(access.OWNER)
    path = call.params.get("path") or str(group["path"])
    if projects.is_taken(call.gitlab, group["parent_id"], path, group):
        raise BadRequest({"path": ["has already been taken"]})
    before = {p["id"]: projects.project_path(call.gitlab, p) for p in call.gitlab.tables.projects}
    given = call.given("name", "path", "description", "visibility")
    edited = call.gitlab.tables.namespaces.save({**group, **given})
    for project in call.gitlab.tables.projects:
        old = before[project["id"]]
        if projects.project_path(call.gitlab, project) != old:
            call.gitlab.tables.redirects.add({"project_id": project["id"], "path": old.lower()})
            projects.forget_redirects(call.gitlab, project)
    return show_group(call, edited)


def _below(call: Call, group: Document, *, is_deep: bool) -> list[Document]:
    found = call.gitlab.tables.namespaces.where(kind="group", parent_id=group["id"])
    if is_deep:
        found += [deeper for each in list(found) for deeper in _below(call, each, is_deep=True)]
    return found


def group_delete(call: Call) -> Any:
    """DELETE /groups/:id, with all that is in it."""
    group = call.group(access.OWNER)
    for each in [*_below(call, group, is_deep=True), group]:
        for project in call.gitlab.tables.projects.where(namespace_id=each["id"]):
            projects.delete_project(call.gitlab, project)
        for member in call.gitlab.tables.members.where(source="group", source_id=each["id"]):
            call.gitlab.tables.members.remove(member["id"])
        call.gitlab.tables.namespaces.remove(each["id"])
    return Answer({"message": "202 Accepted"}, 202)


def subgroups(call: Call) -> Any:
    """GET /groups/:id/subgroups."""
    return [show_group(call, each) for each in _below(call, call.group(), is_deep=False)]


def group_projects(call: Call) -> Any:
    """GET /groups/:id/projects."""
    group = call.group()
    wanted = {group["id"]}
    if call.params.get("include_subgroups"):
        wanted |= {each["id"] for each in _below(call, group, is_deep=True)}
    found = [p for p in call.gitlab.tables.projects if p["namespace_id"] in wanted]
    return _listed(call, found)


def show_project(call: Call, project: Document) -> dict[str, Any]:
    """A project."""
    gitlab = call.gitlab
    path, url = projects.project_path(gitlab, project), projects.web_url(gitlab, project)
    namespace = gitlab.tables.namespaces.get(project["namespace_id"]) or {}
    host = gitlab.url.split("//", 1)[-1].split(":", 1)[0]
    is_empty = gitlab.repository(project).is_empty
    return {
        "id": project["id"],
        "name": project["name"],
        "name_with_namespace": f"{namespace['name']} / {project['name']}",
        "path": project["path"],
        "path_with_namespace": path,
        "created_at": project["created_at"],
        "last_activity_at": project["last_activity_at"],
        "default_branch": None if is_empty else project["default_branch"],
        "empty_repo": is_empty,
        "tag_list": project["topics"],
        "ssh_url_to_repo": f"git@{host}:{path}.git",
        "http_url_to_repo": f"{url}.git",
        "web_url": url,
        "readme_url": None,
        "forks_count": 0,
        "star_count": 0,
        "avatar_url": None,
        "creator_id": project["creator_id"],
        "marked_for_deletion_on": None,
        "namespace": {
            "id": namespace["id"],
            "name": namespace["name"],
            "path": namespace["path"],
            "kind": namespace["kind"],
            "full_path": projects.full_path(gitlab, namespace["id"]),
            "parent_id": namespace["parent_id"],
            "avatar_url": None,
            "web_url": f"{gitlab.url}/groups/{projects.full_path(gitlab, namespace['id'])}",
        },
        **{key: project[key] for key in projects.SETTINGS},
        "permissions": _permissions(call, project),
    }


def _permissions(call: Call, project: Document) -> dict[str, Any]:
    chain = access.ancestors(call.gitlab, project["namespace_id"])
    own = access.member_level(call.gitlab, call.user, [("project", project["id"])])
    group = access.member_level(call.gitlab, call.user, [("group", each["id"]) for each in chain])
    return {
        "project_access": {"access_level": own, "notification_level": 3} if own else None,
        "group_access": {"access_level": group, "notification_level": 3} if group else None,
    }


def _listed(call: Call, found: list[Document]) -> list[dict[str, Any]]:
    given = call.params
    found = [project for project in found if access.can_read(call.gitlab, call.user, project)]
    if given.get("membership") or given.get("min_access_level"):
        least = given.get("min_access_level", access.GUEST)
        # An administrator is no member by being one.
        as_member = {**call.user, "is_admin": False}
        found = [p for p in found if access.project_level(call.gitlab, as_member, p) >= least]
    if given.get("owned"):
        as_member = {**call.user, "is_admin": False}
        found = [
            p for p in found if access.project_level(call.gitlab, as_member, p) >= access.OWNER
        ]
    if "search" in given:
        word = given["search"].lower()
        found = [p for p in found if word in p["name"].lower() or word in p["path"].lower()]
    if "topic" in given:
        wanted = {each.strip() for each in given["topic"].split(",")}
        found = [p for p in found if wanted <= set(p["topics"])]
    if "archived" in given:
        found = [p for p in found if p["archived"] == given["archived"]]
    key = given.get("order_by", "created_at")
    key = key if key in ("id", "name", "path", "created_at", "last_activity_at") else "id"
    found.sort(key=lambda p: (p[key], p["id"]), reverse=given.get("sort", "desc") == "desc")
    if given.get("simple"):
        return [_simple(show_project(call, project)) for project in found]
    return [show_project(call, project) for project in found]


def _simple(shown: dict[str, Any]) -> dict[str, Any]:
    kept = ("id", "description", "name", "name_with_namespace", "path", "path_with_namespace",
            "created_at", "default_branch", "tag_list", "topics", "ssh_url_to_repo",
            "http_url_to_repo", "web_url", "last_activity_at", "namespace")  # fmt: skip
    return {key: shown[key] for key in kept}


def project_list(call: Call) -> Any:
    """GET /projects."""
    return _listed(call, list(call.gitlab.tables.projects))


def project_get(call: Call) -> Any:
    """GET /projects/:id."""
    return show_project(call, call.project())


def project_create(call: Call) -> Any:
    """POST /projects."""
    given = dict(call.params)
    if not given.get("name") and not given.get("path"):
        raise BadRequest({"name": ["can't be blank"], "path": ["can't be blank"]})
    namespace_id = given.pop("namespace_id", None)
    if namespace_id is None:
        namespace = call.gitlab.tables.namespaces.first(kind="user", user_id=call.user["id"])
    else:
        namespace = call.gitlab.tables.namespaces.get(namespace_id)
    if namespace is None:
        raise BadRequest({"namespace": ["is not valid"]})
    held = access.group_level(call.gitlab, call.user, namespace)
    if held < access.DEVELOPER:
        raise BadRequest({"namespace": ["is not valid"]}) if held == 0 else Forbidden()
    with_readme = given.pop("initialize_with_readme", False)
    project = projects.create_project(call.gitlab, call.user, namespace, given)
    if with_readme:
        _first_commit(call, project)
    return show_project(call, call.gitlab.tables.projects.get(project["id"]) or project)


def _first_commit(call: Call, project: Document) -> None:
    from lab.gitlab import models_pushes as pushes
    from lab.gitlab.repository import Change

    change = Change("Initial commit", call.user["name"], call.user["email"])
    text = f"# {project['name']}\n\n{project['description'] or ''}".rstrip() + "\n"
    change.files["README.md"] = ("100644", text.encode())
    pushes.commit(call.gitlab, project, call.user, project["default_branch"], change)


def project_edit(call: Call) -> Any:
    """PUT /projects/:id."""
    project = call.project(access.MAINTAINER)
    return show_project(call, projects.edit_project(call.gitlab, project, dict(call.params)))


def _archive(call: Call, *, is_archived: bool) -> Any:
    project = call.project(access.OWNER)
    return show_project(
        call, call.gitlab.tables.projects.save({**project, "archived": is_archived})
    )


def project_archive(call: Call) -> Any:
    """POST /projects/:id/archive."""
    return _archive(call, is_archived=True)


def project_unarchive(call: Call) -> Any:
    """POST /projects/:id/unarchive."""
    return _archive(call, is_archived=False)


def project_transfer(call: Call) -> Any:
    """PUT /projects/:id/transfer."""
    project = call.project(access.OWNER)
    wanted = str(call.params["namespace"])
    for namespace in call.gitlab.tables.namespaces:
        if wanted in (str(namespace["id"]), projects.full_path(call.gitlab, namespace["id"])):
            break
    else:
        raise Missing("Namespace")
    if access.group_level(call.gitlab, call.user, namespace) < access.MAINTAINER:
        raise BadRequest("Transfer failed, please contact an admin.")
    if projects.is_taken(call.gitlab, namespace["id"], project["path"], project):
        raise BadRequest("Project with same name or path in target namespace already exists")
    return show_project(
        call, projects.move_project(call.gitlab, project, namespace["id"], project["path"])
    )


def project_delete(call: Call) -> Any:
    """DELETE /projects/:id, at once."""
    projects.delete_project(call.gitlab, call.project(access.OWNER))
    return Answer({"message": "202 Accepted"}, 202)


def languages(call: Call) -> Any:
    """GET /projects/:id/languages: nothing is counted."""
    call.project()
    return {}


def touch(call: Call, project: Document) -> None:
    """Remember that something happened in the project."""
    call.gitlab.tables.projects.save({**project, "last_activity_at": stamp()})


__all__ = ["NO_CONTENT", "show_group", "show_project"]
