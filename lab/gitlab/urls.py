"""Every route of API v4 that the lab simulates, with what it takes.

Why: one table to read; whatever is not in it is answered with 501 and its name.
"""

from __future__ import annotations

from lab.gitlab import responses_access as access
from lab.gitlab import responses_discussions as discussions
from lab.gitlab import responses_hooks as hooks
from lab.gitlab import responses_merge_requests as merge_requests
from lab.gitlab import responses_notes as notes
from lab.gitlab import responses_pipelines as pipelines
from lab.gitlab import responses_projects as projects
from lab.gitlab import responses_protection as protection
from lab.gitlab import responses_refs as refs
from lab.gitlab import responses_repository as repository
from lab.gitlab.calls import Route, route
from lab.gitlab.exceptions import NotSimulated
from lab.gitlab.models_projects import SETTINGS

_KINDS = {bool: "bool", int: "int", list: "list"}
_SETTINGS = " ".join(
    f"{name}:{_KINDS.get(type(default), 'text')}" for name, default in SETTINGS.items()
)
_LISTED = (
    "search membership:bool owned:bool simple:bool order_by sort topic archived:bool "
    "min_access_level:int"
)
_FLAGS = " ".join(f"{flag}:bool" for flag in hooks.FLAGS)
_HOOK = (
    f"name description token signing_token push_events_branch_filter branch_filter_strategy "
    f"enable_ssl_verification:bool {_FLAGS}"
)
_AUTHOR = "author_name author_email start_branch"
_FILE = f"file_path branch! commit_message! {_AUTHOR} last_commit_id"
_VARIABLE = "variable_type masked:bool protected:bool raw:bool environment_scope description"
_SCOPE = "filter[environment_scope]"
_TOKEN = "name! scopes!:list expires_at"  # noqa: S105 - names of parameters

_P = "/projects/{project}"
_R = f"{_P}/repository"
_COMMIT = f"{_R}/commits/{{sha}}"
_DISCUSSION_NOTE = f"{_COMMIT}/discussions/{{discussion}}/notes/{{note}}"
_MR = f"{_P}/merge_requests/{{iid}}"
_MEMBER = "user_id!:int access_level!:int expires_at"


def _members(base: str) -> list[Route]:
    return [
        route("GET", f"{base}/members", access.members),
        route("GET", f"{base}/members/all", access.members_all),
        route("GET", f"{base}/members/all/{{user}}", access.member_get_all),
        route("GET", f"{base}/members/{{user}}", access.member_get),
        route("POST", f"{base}/members", access.member_add, _MEMBER),
        route(
            "PUT", f"{base}/members/{{user}}", access.member_edit, "access_level!:int expires_at"
        ),
        route("DELETE", f"{base}/members/{{user}}", access.member_remove),
    ]


_ACCESS_ROUTES = [
    route("GET", "/version", access.version),
    route("GET", "/user", access.current_user),
    route("GET", "/users", access.users, "username search"),
    route("GET", "/users/{user}", access.user_get),
    route(
        "POST",
        "/users",
        access.user_create,
        "username! name! email! password force_random_password:bool reset_password:bool "
        "skip_confirmation:bool admin:bool",
    ),
    route("DELETE", "/users/{user}", access.user_delete, "hard_delete:bool"),
    route("POST", "/users/{user}/personal_access_tokens", access.user_token_create, _TOKEN),
    route("GET", "/personal_access_tokens/self", access.own_token),
    route("GET", "/namespaces", access.namespaces, "search"),
    route("GET", "/namespaces/{namespace}", access.namespace_get),
    route("GET", "/groups", projects.groups, "search top_level_only:bool all_available:bool"),
    route(
        "POST", "/groups", projects.group_create, "name! path! description visibility parent_id:int"
    ),
    route("GET", "/groups/{group}", projects.group_get, "with_projects:bool"),
    route("PUT", "/groups/{group}", projects.group_edit, "name path description visibility"),
    route("DELETE", "/groups/{group}", projects.group_delete),
    route("GET", "/groups/{group}/subgroups", projects.subgroups),
    route(
        "GET",
        "/groups/{group}/projects",
        projects.group_projects,
        f"{_LISTED} include_subgroups:bool",
    ),
    *_members("/groups/{group}"),
]

_PROJECT_ROUTES = [
    route("GET", "/projects", projects.project_list, _LISTED),
    route(
        "POST",
        "/projects",
        projects.project_create,
        f"name path namespace_id:int default_branch initialize_with_readme:bool {_SETTINGS}",
    ),
    route("GET", _P, projects.project_get, "statistics:bool license:bool"),
    route("PUT", _P, projects.project_edit, f"name path default_branch {_SETTINGS}"),
    route("DELETE", _P, projects.project_delete, "permanently_remove:bool full_path"),
    route("POST", f"{_P}/archive", projects.project_archive),
    route("POST", f"{_P}/unarchive", projects.project_unarchive),
    route("PUT", f"{_P}/transfer", projects.project_transfer, "namespace!"),
    route("GET", f"{_P}/languages", projects.languages),
    *_members(_P),
    route("GET", f"{_P}/access_tokens", access.project_tokens, "state revoked:bool"),
    route("GET", f"{_P}/access_tokens/{{token}}", access.project_token_get),
    route("POST", f"{_P}/access_tokens", access.project_token_create, f"{_TOKEN} access_level:int"),
    route("DELETE", f"{_P}/access_tokens/{{token}}", access.project_token_revoke),
    route(
        "POST",
        f"{_P}/access_tokens/{{token}}/rotate",
        access.project_token_rotate,
        "expires_at",
    ),
    route("GET", f"{_P}/deploy_tokens", protection.deploy_tokens, "active:bool"),
    route("GET", f"{_P}/deploy_tokens/{{token}}", protection.deploy_token_get),
    route("POST", f"{_P}/deploy_tokens", protection.deploy_token_create, f"{_TOKEN} username"),
    route("DELETE", f"{_P}/deploy_tokens/{{token}}", protection.deploy_token_delete),
    route("GET", f"{_P}/variables", protection.variables),
    route("GET", f"{_P}/variables/{{key}}", protection.variable_get, _SCOPE),
    route(
        "POST",
        f"{_P}/variables",
        protection.variable_create,
        f"key! value! masked_and_hidden:bool {_VARIABLE}",
    ),
    route(
        "PUT", f"{_P}/variables/{{key}}", protection.variable_edit, f"value {_VARIABLE} {_SCOPE}"
    ),
    route("DELETE", f"{_P}/variables/{{key}}", protection.variable_delete, _SCOPE),
    route("GET", f"{_P}/protected_branches", protection.branches, "search"),
    route("GET", f"{_P}/protected_branches/{{branch}}", protection.branch_get),
    route(
        "POST",
        f"{_P}/protected_branches",
        protection.branch_protect,
        "name! push_access_level:int merge_access_level:int allow_force_push:bool",
    ),
    route(
        "PATCH",
        f"{_P}/protected_branches/{{branch}}",
        protection.branch_edit,
        "allow_force_push:bool",
    ),
    route("DELETE", f"{_P}/protected_branches/{{branch}}", protection.branch_unprotect),
    route("GET", f"{_P}/protected_tags", protection.tags),
    route("GET", f"{_P}/protected_tags/{{tag}}", protection.tag_get),
    route("POST", f"{_P}/protected_tags", protection.tag_protect, "name! create_access_level:int"),
    route("DELETE", f"{_P}/protected_tags/{{tag}}", protection.tag_unprotect),
    route("GET", f"{_P}/hooks", hooks.listing),
    route("GET", f"{_P}/hooks/{{hook}}", hooks.get),
    route("POST", f"{_P}/hooks", hooks.create, f"url! {_HOOK}"),
    route("PUT", f"{_P}/hooks/{{hook}}", hooks.edit, f"url {_HOOK}"),
    route("DELETE", f"{_P}/hooks/{{hook}}", hooks.delete),
    route("GET", f"{_P}/hooks/{{hook}}/events", hooks.events, "status"),
    route("POST", f"{_P}/hooks/{{hook}}/events/{{event}}/resend", hooks.resend),
    route("POST", f"{_P}/hooks/{{hook}}/test/{{trigger}}", hooks.test),
]

_REPOSITORY_ROUTES = [
    route("GET", f"{_R}/tree", repository.tree, "path ref recursive:bool"),
    route("GET", f"{_R}/files/{{file}}", repository.file_get, "ref"),
    route("HEAD", f"{_R}/files/{{file}}", repository.file_get, "ref"),
    route("GET", f"{_R}/files/{{file}}/raw", repository.file_raw, "ref"),
    route(
        "POST",
        f"{_R}/files/{{file}}",
        repository.file_create,
        f"{_FILE} content! encoding execute_filemode:bool",
    ),
    route(
        "PUT",
        f"{_R}/files/{{file}}",
        repository.file_update,
        f"{_FILE} content! encoding execute_filemode:bool",
    ),
    route("DELETE", f"{_R}/files/{{file}}", repository.file_delete, _FILE),
    route(
        "GET",
        f"{_R}/commits",
        repository.commits,
        "ref_name since until path author all:bool first_parent:bool",
    ),
    route(
        "POST",
        f"{_R}/commits",
        repository.commit_create,
        f"branch! commit_message! actions!:list start_sha {_AUTHOR}",
    ),
    route("GET", _COMMIT, repository.commit_get, "stats:bool"),
    route("GET", f"{_COMMIT}/diff", repository.commit_diff),
    route("GET", f"{_COMMIT}/refs", repository.commit_refs, "type"),
    route("GET", f"{_COMMIT}/comments", notes.comments),
    route("POST", f"{_COMMIT}/comments", notes.comment_create, "note!"),
    route("GET", f"{_COMMIT}/discussions", discussions.listing),
    route("POST", f"{_COMMIT}/discussions", discussions.create, "body!"),
    route("GET", _DISCUSSION_NOTE, discussions.note_get),
    route("PUT", _DISCUSSION_NOTE, discussions.note_edit, "body!"),
    route("DELETE", _DISCUSSION_NOTE, discussions.note_delete),
    route("GET", f"{_COMMIT}/statuses", notes.statuses, "name all:bool"),
    route("GET", f"{_COMMIT}/merge_requests", merge_requests.of_commit),
    route(
        "POST",
        f"{_P}/statuses/{{sha}}",
        notes.status_create,
        "state! ref name context target_url description",
    ),
    route("GET", f"{_R}/compare", repository.compare, "from! to! straight:bool"),
    route("GET", f"{_R}/merge_base", repository.merge_base, "refs!:list"),
    route("GET", f"{_R}/branches", refs.branches, "search"),
    route("POST", f"{_R}/branches", refs.branch_create, "branch! ref!"),
    route("GET", f"{_R}/branches/{{branch}}", refs.branch_get),
    route("HEAD", f"{_R}/branches/{{branch}}", refs.branch_get),
    route("DELETE", f"{_R}/branches/{{branch}}", refs.branch_delete),
    route("GET", f"{_R}/tags", refs.tags, "search"),
    route("POST", f"{_R}/tags", refs.tag_create, "tag_name! ref! message"),
    route("GET", f"{_R}/tags/{{tag}}", refs.tag_get),
    route("DELETE", f"{_R}/tags/{{tag}}", refs.tag_delete),
]

_MERGE_REQUEST_ROUTES = [
    route(
        "GET",
        f"{_P}/merge_requests",
        merge_requests.listing,
        "state source_branch target_branch iids:list search order_by sort scope "
        "updated_after updated_before",
    ),
    route(
        "POST",
        f"{_P}/merge_requests",
        merge_requests.create,
        "source_branch! target_branch! title! description remove_source_branch:bool squash:bool "
        "target_project_id:int",
    ),
    route("GET", _MR, merge_requests.get),
    route(
        "PUT",
        _MR,
        merge_requests.edit,
        "title description target_branch state_event remove_source_branch:bool squash:bool",
    ),
    route("DELETE", _MR, merge_requests.delete),
    route(
        "PUT",
        f"{_MR}/merge",
        merge_requests.merge,
        "sha merge_commit_message squash:bool squash_commit_message "
        "should_remove_source_branch:bool",
    ),
    route("GET", f"{_MR}/changes", merge_requests.changes),
    route("GET", f"{_MR}/diffs", merge_requests.diffs),
    route("GET", f"{_MR}/commits", merge_requests.commits),
    route("GET", f"{_MR}/pipelines", merge_requests.pipelines),
    route("GET", f"{_MR}/notes", notes.notes, "order_by sort"),
    route("POST", f"{_MR}/notes", notes.note_create, "body!"),
    route("GET", f"{_MR}/notes/{{note}}", notes.note_get),
    route("PUT", f"{_MR}/notes/{{note}}", notes.note_edit, "body!"),
    route("DELETE", f"{_MR}/notes/{{note}}", notes.note_delete),
]

_PIPELINE_ROUTES = [
    route("GET", f"{_P}/pipelines", pipelines.listing, "ref sha status source order_by sort"),
    route("POST", f"{_P}/pipeline", pipelines.create, "ref!"),
    route("GET", f"{_P}/pipelines/latest", pipelines.latest, "ref"),
    route("GET", f"{_P}/pipelines/{{pipeline}}", pipelines.get),
    route("DELETE", f"{_P}/pipelines/{{pipeline}}", pipelines.delete),
    route("POST", f"{_P}/pipelines/{{pipeline}}/cancel", pipelines.cancel),
    route(
        "GET",
        f"{_P}/pipelines/{{pipeline}}/jobs",
        pipelines.pipeline_jobs,
        "scope:list include_retried:bool",
    ),
    route("GET", f"{_P}/jobs", pipelines.jobs, "scope:list"),
    route("GET", f"{_P}/jobs/{{job}}", pipelines.job_get),
    route("GET", f"{_P}/jobs/{{job}}/trace", pipelines.job_trace),
    route("POST", f"{_P}/jobs/{{job}}/play", pipelines.job_play),
    route("POST", f"{_P}/jobs/{{job}}/retry", pipelines.job_retry),
    route("POST", f"{_P}/jobs/{{job}}/cancel", pipelines.job_cancel),
    route("GET", f"{_P}/environments", pipelines.environments, "name states"),
    route("GET", f"{_P}/environments/{{environment}}", pipelines.environment_get),
    route(
        "POST", f"{_P}/environments/{{environment}}/stop", pipelines.environment_stop, "force:bool"
    ),
    route("DELETE", f"{_P}/environments/{{environment}}", pipelines.environment_delete),
    route("GET", f"{_P}/deployments", pipelines.deployments, "environment status order_by sort"),
    route("GET", f"{_P}/deployments/{{deployment}}", pipelines.deployment_get),
]

ROUTES = [
    *_ACCESS_ROUTES,
    *_PROJECT_ROUTES,
    *_REPOSITORY_ROUTES,
    *_MERGE_REQUEST_ROUTES,
    *_PIPELINE_ROUTES,
]


def _fits(known: str, segments: list[str]) -> dict[str, str] | None:
    parts = known.strip("/").split("/")
    if len(parts) != len(segments):
        return None
    names = {}
    for part, segment in zip(parts, segments, strict=True):
        if part.startswith("{"):
            names[part[1:-1]] = segment
        elif part != segment:
            return None
    return names


def find(method: str, segments: list[str]) -> tuple[Route, dict[str, str]]:
    """The route of a request's decoded path segments and the names in them, or 501."""
    for known in ROUTES:
        if known.method == method and (names := _fits(known.path, segments)) is not None:
            return known, names
    raise NotSimulated(f"{method} /api/v4/{'/'.join(segments)}")
