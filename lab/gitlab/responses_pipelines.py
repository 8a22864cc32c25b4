"""Pipelines, jobs, environments and deployments, as the API shows and moves them."""

from __future__ import annotations

from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab import models_pipelines as models
from lab.gitlab import models_projects as projects
from lab.gitlab import runner
from lab.gitlab.calls import NO_CONTENT, Answer, Call
from lab.gitlab.exceptions import BadRequest, Forbidden, Missing
from lab.gitlab.instance import public_user, stamp
from lab.gitlab.responses_repository import show_commit
from lab.hypervisor.store import Document


def _user(call: Call, row: Document) -> dict[str, Any] | None:
    user = call.gitlab.tables.users.get(row["user_id"])
    return public_user(call.gitlab, user) if user else None


def _brief(call: Call, project: Document, run: Document) -> dict[str, Any]:
    kept = ("id", "iid", "project_id", "sha", "ref", "status", "source", "created_at", "updated_at")
    url = f"{projects.web_url(call.gitlab, project)}/-/pipelines/{run['id']}"
    return {**{key: run[key] for key in kept}, "name": run["name"], "web_url": url}


def _show(call: Call, project: Document, run: Document) -> dict[str, Any]:
    kept = ("before_sha", "tag", "yaml_errors", "started_at", "finished_at", "duration")
    return {
        **_brief(call, project, run),
        **{key: run[key] for key in kept},
        "user": _user(call, run),
        "committed_at": None,
        "queued_duration": None,
        "coverage": None,
        "detailed_status": {"text": run["status"], "label": run["status"], "group": run["status"]},
    }


def listing(call: Call) -> Any:
    """GET /projects/:id/pipelines, newest first."""
    project = call.project(access.REPORTER)
    rows = call.gitlab.tables.pipelines.where(project_id=project["id"])
    for name in ("ref", "sha", "status", "source"):
        if name in call.params:
            rows = [row for row in rows if row[name] == call.params[name]]
    if call.params.get("sort", "desc") == "desc":
        rows.reverse()
    return [_brief(call, project, row) for row in rows]


def _pipeline(call: Call, level: int = access.REPORTER) -> tuple[Document, Document]:
    project = call.project(level)
    run = call.gitlab.tables.pipelines.get(call.number("pipeline", "Pipeline"))
    if run is None or run["project_id"] != project["id"]:
        raise Missing("Pipeline")
    return project, run


def get(call: Call) -> Any:
    """GET /projects/:id/pipelines/:pipeline_id."""
    return _show(call, *_pipeline(call))


def latest(call: Call) -> Any:
    """GET /projects/:id/pipelines/latest."""
    project = call.project(access.REPORTER)
    ref = call.params.get("ref") or project["default_branch"]
    rows = call.gitlab.tables.pipelines.where(project_id=project["id"], ref=ref)
    if not rows:
        raise Forbidden  # which is what GitLab answers here
    return _show(call, project, rows[-1])


def create(call: Call) -> Any:
    """POST /projects/:id/pipeline."""
    project = call.project(access.DEVELOPER)
    ref = call.params["ref"]
    repository = call.gitlab.repository(project)
    sha = repository.resolve(ref)
    if sha is None:
        raise BadRequest({"base": ["Reference not found"]})
    is_tag = repository.reference(f"refs/heads/{ref}") is None
    made = models.start(
        call.gitlab, project, call.user, sha=sha, ref=ref, source="api", before=sha, is_tag=is_tag
    )
    if made is None:
        raise BadRequest({"base": ["The resulting pipeline would have been empty. Review the rules "
                                   "configuration for the relevant jobs."]})  # fmt: skip
    if made["yaml_errors"]:
        raise BadRequest({"base": [made["yaml_errors"]]})
    return _show(call, project, made)


def cancel(call: Call) -> Any:
    """POST /projects/:id/pipelines/:pipeline_id/cancel."""
    project, run = _pipeline(call, access.DEVELOPER)
    for job in models.current_jobs(call.gitlab, run):
        if job["status"] not in models.FINISHED:
            models.move_job(call.gitlab, job, "canceled", finished_at=stamp())
    return _show(call, project, call.gitlab.tables.pipelines.get(run["id"]) or run)


def delete(call: Call) -> Any:
    """DELETE /projects/:id/pipelines/:pipeline_id."""
    _, run = _pipeline(call, access.OWNER)
    for job in call.gitlab.tables.jobs.where(pipeline_id=run["id"]):
        call.gitlab.forget_trace(job["id"])
        call.gitlab.tables.jobs.remove(job["id"])
    call.gitlab.tables.pipelines.remove(run["id"])
    return NO_CONTENT


def show_job(call: Call, project: Document, job: Document) -> dict[str, Any]:
    """A job."""
    run = call.gitlab.tables.pipelines.get(job["pipeline_id"]) or {}
    kept = ("id", "name", "stage", "status", "allow_failure", "created_at", "started_at",
            "finished_at", "duration", "queued_duration", "failure_reason")  # fmt: skip
    commit = call.gitlab.repository(project).commit(run["sha"])
    return {
        **{key: job[key] for key in kept},
        "ref": run["ref"],
        "tag": run["tag"],
        "coverage": None,
        "user": _user(call, job),
        "commit": show_commit(call, project, commit),
        "pipeline": _brief(call, project, run),
        "web_url": f"{projects.web_url(call.gitlab, project)}/-/jobs/{job['id']}",
        "artifacts": [],
        "runner": None,
        "tag_list": [],
    }


def _listed(call: Call, project: Document, rows: list[Document]) -> list[dict[str, Any]]:
    if "scope" in call.params:
        rows = [row for row in rows if row["status"] in call.params["scope"]]
    return [show_job(call, project, row) for row in reversed(rows)]


def pipeline_jobs(call: Call) -> Any:
    """GET /projects/:id/pipelines/:pipeline_id/jobs, newest first."""
    project, run = _pipeline(call)
    rows = call.gitlab.tables.jobs.where(pipeline_id=run["id"])
    if not call.params.get("include_retried"):
        rows = [row for row in rows if not row["retried"]]
    return _listed(call, project, rows)


def jobs(call: Call) -> Any:
    """GET /projects/:id/jobs, newest first."""
    project = call.project(access.REPORTER)
    return _listed(call, project, call.gitlab.tables.jobs.where(project_id=project["id"]))


def _job(call: Call, level: int = access.REPORTER) -> tuple[Document, Document]:
    project = call.project(level)
    job = call.gitlab.tables.jobs.get(call.number("job"))
    if job is None or job["project_id"] != project["id"]:
        raise Missing
    return project, job


def job_get(call: Call) -> Any:
    """GET /projects/:id/jobs/:job_id."""
    return show_job(call, *_job(call))


def job_trace(call: Call) -> Any:
    """GET /projects/:id/jobs/:job_id/trace."""
    _, job = _job(call)
    text = "".join(f"{line}\n" for line in call.gitlab.trace(job["id"]))
    return Answer(content=text.encode(), media_type="text/plain")


def job_play(call: Call) -> Any:
    """POST /projects/:id/jobs/:job_id/play."""
    project, job = _job(call, access.DEVELOPER)
    if job["status"] != "manual":
        raise BadRequest("Unplayable Job")
    played = {"user_id": call.user["id"], "created_at": stamp()}
    job = models.move_job(call.gitlab, job, "pending", **played)
    call.gitlab.spawn(runner.drive(call.gitlab, job["pipeline_id"]))
    return Answer(show_job(call, project, job), 200)


def job_retry(call: Call) -> Any:
    """POST /projects/:id/jobs/:job_id/retry."""
    project, job = _job(call, access.DEVELOPER)
    if job["status"] not in ("success", "failed", "canceled") or job["retried"]:
        raise Forbidden("Job is not retryable")
    call.gitlab.tables.jobs.save({**job, "retried": True})
    fresh = {key: value for key, value in job.items() if key != "id"}
    cleared = dict.fromkeys(
        ("started_at", "finished_at", "duration", "queued_duration", "failure_reason")
    )
    made = call.gitlab.tables.jobs.add(
        {**fresh, **cleared, "status": "pending", "created_at": stamp()}
    )
    run = call.gitlab.tables.pipelines.get(job["pipeline_id"])
    for later in models.current_jobs(call.gitlab, run or {"id": 0}):
        if later["status"] == "skipped":
            call.gitlab.tables.jobs.save({**later, "status": "created"})
    models.changed(call.gitlab, run or {})
    call.gitlab.spawn(runner.drive(call.gitlab, job["pipeline_id"]))
    return show_job(call, project, made)


def job_cancel(call: Call) -> Any:
    """POST /projects/:id/jobs/:job_id/cancel."""
    project, job = _job(call, access.DEVELOPER)
    if job["status"] not in models.FINISHED:
        job = models.move_job(call.gitlab, job, "canceled", finished_at=stamp())
    return show_job(call, project, job)


def _show_environment(call: Call, project: Document, row: Document) -> dict[str, Any]:
    kept = ("id", "name", "slug", "external_url", "state", "tier", "created_at", "updated_at")
    made = call.gitlab.tables.deployments.where(environment_id=row["id"])
    last = _show_deployment(call, project, made[-1]) if made else None
    return {**{key: row[key] for key in kept}, "description": None, "last_deployment": last}


def environments(call: Call) -> Any:
    """GET /projects/:id/environments."""
    project = call.project(access.REPORTER)
    rows = call.gitlab.tables.environments.where(project_id=project["id"])
    for name, field in (("name", "name"), ("states", "state")):
        if name in call.params:
            rows = [row for row in rows if row[field] == call.params[name]]
    return [_show_environment(call, project, row) for row in rows]


def _environment(call: Call, level: int) -> tuple[Document, Document]:
    project = call.project(level)
    row = call.gitlab.tables.environments.get(call.number("environment", "Environment"))
    if row is None or row["project_id"] != project["id"]:
        raise Missing("Environment")
    return project, row


def environment_get(call: Call) -> Any:
    """GET /projects/:id/environments/:environment_id."""
    return _show_environment(call, *_environment(call, access.REPORTER))


def environment_stop(call: Call) -> Any:
    """POST /projects/:id/environments/:environment_id/stop."""
    project, row = _environment(call, access.DEVELOPER)
    stopped = call.gitlab.tables.environments.save(
        {**row, "state": "stopped", "updated_at": stamp()}
    )
    return Answer(_show_environment(call, project, stopped), 200)


def environment_delete(call: Call) -> Any:
    """DELETE /projects/:id/environments/:environment_id; it must be stopped."""
    _, row = _environment(call, access.DEVELOPER)
    if row["state"] != "stopped":
        raise Forbidden
    call.gitlab.tables.environments.remove(row["id"])
    return NO_CONTENT


def _show_deployment(call: Call, project: Document, row: Document) -> dict[str, Any]:
    kept = ("id", "iid", "ref", "sha", "status", "created_at", "updated_at", "finished_at")
    environment = call.gitlab.tables.environments.get(row["environment_id"]) or {}
    job = call.gitlab.tables.jobs.get(row["job_id"])
    return {
        **{key: row[key] for key in kept},
        "user": _user(call, row),
        "environment": {
            key: environment.get(key) for key in ("id", "name", "slug", "external_url")
        },
        "deployable": show_job(call, project, job) if job else None,
    }


def deployments(call: Call) -> Any:
    """GET /projects/:id/deployments."""
    project = call.project(access.REPORTER)
    rows = call.gitlab.tables.deployments.where(project_id=project["id"])
    if "status" in call.params:
        rows = [row for row in rows if row["status"] == call.params["status"]]
    shown = [_show_deployment(call, project, row) for row in rows]
    if "environment" in call.params:
        shown = [row for row in shown if row["environment"]["name"] == call.params["environment"]]
    if call.params.get("sort", "asc") == "desc":
        shown.reverse()
    return shown


def deployment_get(call: Call) -> Any:
    """GET /projects/:id/deployments/:deployment_id."""
    project = call.project(access.REPORTER)
    row = call.gitlab.tables.deployments.get(call.number("deployment", "Deployment"))
    if row is None or row["project_id"] != project["id"]:
        raise Missing("Deployment")
    return _show_deployment(call, project, row)
