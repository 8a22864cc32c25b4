"""Pipelines and their jobs as data, and the events of their changes. The runner moves them.

Promises: a pipeline exists only where `.gitlab-ci.yml` says so; a configuration that is wrong, or
that uses what is not simulated, makes a failed pipeline that says why.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from lab.gitlab import ci_config, payloads
from lab.gitlab import models_hooks as hooks
from lab.gitlab import models_projects as projects
from lab.gitlab.instance import GitLab, moment, now, stamp
from lab.hypervisor.store import Document

FINISHED = ("success", "failed", "canceled", "skipped")
_SKIP = re.compile(r"\[(skip ci|ci skip|skip-ci|ci-skip)\]", re.IGNORECASE)


def slug(text: str) -> str:
    """A name as GitLab makes it fit for a host name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].rstrip("-")


def predefined(gitlab: GitLab, project: Document, run: dict[str, Any]) -> dict[str, str]:
    """The variables that GitLab itself gives to a pipeline's jobs."""
    path = projects.project_path(gitlab, project)
    commit = gitlab.repository(project).commit(run["sha"])
    values = {
        "CI": "true",
        "GITLAB_CI": "true",
        "CI_SERVER_URL": gitlab.url,
        "CI_API_V4_URL": f"{gitlab.url}/api/v4",
        "CI_PIPELINE_SOURCE": run["source"],
        "CI_PROJECT_ID": str(project["id"]),
        "CI_PROJECT_NAME": project["path"],
        "CI_PROJECT_PATH": path,
        "CI_PROJECT_NAMESPACE": path.rsplit("/", 1)[0],
        "CI_PROJECT_URL": projects.web_url(gitlab, project),
        "CI_DEFAULT_BRANCH": project["default_branch"],
        "CI_COMMIT_SHA": run["sha"],
        "CI_COMMIT_SHORT_SHA": run["sha"][:8],
        "CI_COMMIT_BEFORE_SHA": run["before_sha"],
        "CI_COMMIT_REF_NAME": run["ref"],
        "CI_COMMIT_REF_SLUG": slug(run["ref"]),
        "CI_COMMIT_REF_PROTECTED": "true" if run["is_protected"] else "false",
        "CI_COMMIT_TITLE": commit.title,
        "CI_COMMIT_MESSAGE": commit.message,
        "CI_COMMIT_AUTHOR": f"{commit.author_name} <{commit.author_email}>",
        "CI_COMMIT_TIMESTAMP": commit.committed_at,
    }
    if run["tag"]:
        values["CI_COMMIT_TAG"] = run["ref"]
    elif run["merge_request_id"] is None:
        values["CI_COMMIT_BRANCH"] = run["ref"]
    if (request := gitlab.tables.merge_requests.get(run["merge_request_id"] or 0)) is not None:
        values["CI_MERGE_REQUEST_IID"] = str(request["iid"])
        values["CI_MERGE_REQUEST_SOURCE_BRANCH_NAME"] = request["source_branch"]
        values["CI_MERGE_REQUEST_TARGET_BRANCH_NAME"] = request["target_branch"]
        values["CI_MERGE_REQUEST_TITLE"] = request["title"]
    return values


def project_variables(
    gitlab: GitLab, project: Document, *, is_protected: bool, environment: str
) -> dict[str, str]:
    """The project's CI variables that a job of this ref and environment gets."""
    values = {}
    for row in gitlab.tables.variables.where(project_id=project["id"]):
        scope = re.escape(row["environment_scope"]).replace(r"\*", ".*")
        fits = row["environment_scope"] == "*" or re.fullmatch(scope, environment)
        if fits and (is_protected or not row["protected"]):
            values[row["key"]] = row["value"]
    return values


def start_for_push(
    gitlab: GitLab, project: Document, user: Document, change: tuple[str, str, str]
) -> Document | None:
    """The pipeline of a branch or a tag that was pushed."""
    old, _, ref = change
    is_tag = ref.startswith("refs/tags/")
    name = ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
    sha = gitlab.repository(project).resolve(ref)
    if sha is None:
        return None
    return start(gitlab, project, user, sha=sha, ref=name, before=old, is_tag=is_tag, source="push")


def start_for_merge_request(
    gitlab: GitLab, project: Document, user: Document, request: Document
) -> Document | None:
    """The pipeline of a merge request; there is one only where rules ask for it."""
    if request["sha"] is None:
        return None
    return start(
        gitlab,
        project,
        user,
        sha=request["sha"],
        ref=request["source_branch"],
        source="merge_request_event",
        request=request,
    )


def start(
    gitlab: GitLab,
    project: Document,
    user: Document,
    *,
    sha: str,
    ref: str,
    source: str,
    before: str = "0" * 40,
    is_tag: bool = False,
    request: Document | None = None,
) -> Document | None:
    """Make a pipeline of the configuration at a commit, or none where nothing is to be done."""
    from lab.gitlab import models_pushes as pushes
    from lab.gitlab import runner

    path = project["ci_config_path"] or ".gitlab-ci.yml"
    repository = gitlab.repository(project)
    file = repository.blob(sha, path) if project["jobs_enabled"] else None
    if file is None or (source == "push" and _SKIP.search(repository.commit(sha).message)):
        return None
    full = f"refs/tags/{ref}" if is_tag else f"refs/heads/{ref}"
    run: dict[str, Any] = {
        "project_id": project["id"],
        "user_id": user["id"],
        "sha": sha,
        "ref": f"refs/merge-requests/{request['iid']}/head" if request else ref,
        "before_sha": before,
        "tag": is_tag,
        "source": source,
        "merge_request_id": request["id"] if request else None,
        "is_protected": pushes.is_protected_ref(gitlab, project, full),
        "name": None,
    }
    given = predefined(gitlab, project, run) | project_variables(
        gitlab, project, is_protected=run["is_protected"], environment=""
    )
    try:
        config = ci_config.read(file.content.decode(errors="replace"), given)
    except ci_config.ConfigError as error:
        return _broken(gitlab, project, user, run, str(error))
    if not config.jobs:
        return None
    made = _store(gitlab, project, run, stages=config.stages, status="created", problems="")
    for job in config.jobs:
        gitlab.tables.jobs.add(_job(made, job))
    changed(gitlab, made)
    gitlab.spawn(runner.drive(gitlab, made["id"]))
    return made


def _store(
    gitlab: GitLab,
    project: Document,
    run: dict[str, Any],
    *,
    stages: list[str],
    status: str,
    problems: str,
) -> Document:
    return gitlab.tables.pipelines.add(
        {
            **run,
            "iid": 1 + len(gitlab.tables.pipelines.where(project_id=project["id"])),
            "stages": stages,
            "status": status,
            "yaml_errors": problems or None,
            "created_at": stamp(),
            "updated_at": stamp(),
            "started_at": None,
            "finished_at": stamp() if problems else None,
            "duration": None,
        }
    )


def _broken(
    gitlab: GitLab, project: Document, user: Document, run: dict[str, Any], problems: str
) -> Document | None:
    if run["source"] == "merge_request_event":
        return None  # the push itself has told already
    made = _store(gitlab, project, run, stages=[], status="failed", problems=problems)
    make = functools.partial(payloads.pipeline, gitlab, project, user, made)
    hooks.fire(gitlab, project, "pipeline_events", make)
    return made


def _job(run: Document, job: ci_config.Job) -> Document:
    return {
        "project_id": run["project_id"],
        "pipeline_id": run["id"],
        "name": job.name,
        "stage": job.stage,
        "status": "created",
        "when": job.when,
        "allow_failure": job.allow_failure,
        "script": job.script,
        "variables": job.variables,
        "environment": job.environment,
        "environment_url": job.environment_url,
        "environment_action": job.environment_action,
        "environment_tier": job.environment_tier,
        "created_at": stamp(),
        "started_at": None,
        "finished_at": None,
        "duration": None,
        "queued_duration": None,
        "failure_reason": None,
        "user_id": run["user_id"],
        "retried": False,
    }


def current_jobs(gitlab: GitLab, run: Document) -> list[Document]:
    """The jobs of a pipeline without those that were tried again."""
    return gitlab.tables.jobs.where(pipeline_id=run["id"], retried=False)


def summary(jobs: list[Document]) -> str:
    """The status of a pipeline with these jobs."""
    statuses = {
        job["status"]
        for job in jobs
        if not (
            job["allow_failure"] and job["status"] in ("failed", "manual", "canceled", "skipped")
        )
    }
    for status in ("running", "pending"):
        if status in statuses:
            return "running"
    if "failed" in statuses:
        return "failed"
    if "canceled" in statuses:
        return "canceled"
    if "manual" in statuses:
        return "manual"
    if "created" in statuses:
        return "running" if statuses - {"created"} else "created"
    return "skipped" if statuses == {"skipped"} else "success"


def changed(gitlab: GitLab, run: Document) -> Document:
    """Take over what the jobs say, and tell it if the status is another one."""
    stored = gitlab.tables.pipelines.get(run["id"])
    project = gitlab.tables.projects.get(run["project_id"])
    user = gitlab.tables.users.get(run["user_id"])
    if stored is None or project is None or user is None:
        return run
    jobs = current_jobs(gitlab, stored)
    status = summary(jobs)
    is_new = stored["started_at"] is None and status == "created" and stored["status"] == "created"
    if status == stored["status"] and not is_new:
        return stored
    update: dict[str, Any] = {"status": status, "updated_at": stamp()}
    if status not in ("created", "pending") and stored["started_at"] is None:
        update["started_at"] = stamp()
    if status in FINISHED:
        update["finished_at"] = stamp()
        begun = stored["started_at"]
        update["duration"] = round((now() - moment(begun)).total_seconds()) if begun else 0
    else:
        update["finished_at"] = None
    stored = gitlab.tables.pipelines.save({**stored, **update})
    make = functools.partial(payloads.pipeline, gitlab, project, user, stored)
    hooks.fire(gitlab, project, "pipeline_events", make)
    return stored


def move_job(gitlab: GitLab, job: Document, status: str, **more: Any) -> Document:
    """Change a job's status, and its pipeline's with it."""
    job = gitlab.tables.jobs.save({**job, "status": status, **more})
    if (run := gitlab.tables.pipelines.get(job["pipeline_id"])) is not None:
        changed(gitlab, run)
    return job
