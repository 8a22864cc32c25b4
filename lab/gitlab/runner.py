"""The stand-in runner: moves jobs through their states and does the one piece of work that counts.

What it promises: a job that builds an image pushes a real one to the registry that the project's CI
variables name, or fails with a trace that says why; every other job succeeds after a moment. A job
with an environment makes a deployment and its events. What it refuses: to run anybody's script.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from lab.gitlab import models_hooks as hooks
from lab.gitlab import models_pipelines as pipelines
from lab.gitlab import payloads
from lab.gitlab.instance import GitLab, moment, now, stamp
from lab.gitlab.oci_image import RegistryRefused
from lab.gitlab.repository import GitError
from lab.gitlab.runner_images import expanded, handle_images, handles_images
from lab.hypervisor.store import Document


def resume(gitlab: GitLab) -> None:
    """Go on with the pipelines that a dead process had begun."""
    for run in gitlab.tables.pipelines:
        if run["status"] not in (*pipelines.FINISHED, "manual"):
            gitlab.spawn(drive(gitlab, run["id"]))


async def drive(gitlab: GitLab, pipeline_id: int) -> None:
    """Run what can run, stage by stage, until nothing is left or a person must act."""
    lock = gitlab.pipeline_locks.setdefault(pipeline_id, asyncio.Lock())
    async with lock:
        run = gitlab.tables.pipelines.get(pipeline_id)
        if run is None:
            return
        for stage in run["stages"]:
            jobs = [job for job in pipelines.current_jobs(gitlab, run) if job["stage"] == stage]
            has_failed = _has_failed_before(gitlab, run, stage)
            _settle(gitlab, jobs, has_failed=has_failed)
            jobs = [job for job in pipelines.current_jobs(gitlab, run) if job["stage"] == stage]
            ready = [job for job in jobs if job["status"] in ("created", "pending", "running")]
            await asyncio.gather(*(_run(gitlab, job["id"]) for job in ready))
            jobs = [job for job in pipelines.current_jobs(gitlab, run) if job["stage"] == stage]
            if any(job["status"] == "manual" and not job["allow_failure"] for job in jobs):
                break
        pipelines.changed(gitlab, run)


def _has_failed_before(gitlab: GitLab, run: Document, stage: str) -> bool:
    earlier = run["stages"][: run["stages"].index(stage)]
    return any(
        job["stage"] in earlier
        and job["status"] in ("failed", "canceled")
        and not job["allow_failure"]
        for job in pipelines.current_jobs(gitlab, run)
    )


def _settle(gitlab: GitLab, jobs: list[Document], *, has_failed: bool) -> None:
    """What does not run by itself: skipped after a failure, or waiting for a person."""
    for job in jobs:
        if job["status"] != "created":
            continue
        wanted = {"on_success": not has_failed, "on_failure": has_failed, "manual": not has_failed}
        if not wanted.get(job["when"], True):
            pipelines.move_job(gitlab, job, "skipped")
        elif job["when"] == "manual":
            pipelines.move_job(gitlab, job, "manual")


async def _run(gitlab: GitLab, job_id: int) -> None:
    try:
        await _run_job(gitlab, job_id)
    except GitError:
        if gitlab.tables.jobs.get(job_id) is not None:
            raise
        # The project was deleted meanwhile, and its repository with it.


async def _run_job(gitlab: GitLab, job_id: int) -> None:
    job = gitlab.tables.jobs.get(job_id)
    project = gitlab.tables.projects.get(job["project_id"]) if job else None
    if job is None or project is None:
        return
    gitlab.forget_trace(job_id)
    waited = round((now() - moment(job["created_at"])).total_seconds(), 3)
    job = pipelines.move_job(gitlab, job, "running", started_at=stamp(), queued_duration=waited)
    _say(gitlab, job, "Running with the lab's stand-in runner: scripts are not executed here.")
    deployment = _begin_deployment(gitlab, project, job)
    await asyncio.sleep(gitlab.settings.job_seconds)
    status, reason = await _work(gitlab, project, job)
    current = gitlab.tables.jobs.get(job_id)
    if current is None:
        return
    if current["status"] == "canceled":
        status, reason = "canceled", None
    _say(gitlab, job, "Job succeeded" if status == "success" else f"ERROR: Job {status}")
    duration = round((now() - moment(current["started_at"])).total_seconds(), 3)
    if deployment is not None:
        _move_deployment(gitlab, project, deployment, status)
    pipelines.move_job(
        gitlab, current, status, finished_at=stamp(), duration=duration, failure_reason=reason
    )


def _say(gitlab: GitLab, job: Document, line: str) -> None:
    gitlab.append_trace(job["id"], line)


def job_variables(gitlab: GitLab, project: Document, job: Document) -> dict[str, str]:
    """All variables of a job, in GitLab's order of precedence."""
    run = gitlab.tables.pipelines.get(job["pipeline_id"])
    if run is None:
        return {}
    given = pipelines.predefined(gitlab, project, run)
    environment = expanded(job["environment"], {**job["variables"], **given})
    own = pipelines.project_variables(
        gitlab, project, is_protected=run["is_protected"], environment=environment
    )
    return {**given, **job["variables"], **own}


async def _work(gitlab: GitLab, project: Document, job: Document) -> tuple[str, str | None]:
    for line in job["script"]:
        _say(gitlab, job, f"$ {line}")
    if not handles_images(job):
        return "success", None
    variables = job_variables(gitlab, project, job)
    try:
        async for told in handle_images(gitlab, project, job, variables):
            _say(gitlab, job, told)
    except RegistryRefused as error:
        _say(gitlab, job, str(error))
        return "failed", "script_failure"
    return "success", None


def _begin_deployment(gitlab: GitLab, project: Document, job: Document) -> Document | None:
    run = gitlab.tables.pipelines.get(job["pipeline_id"])
    if not job["environment"] or job["environment_action"] != "start" or run is None:
        return None
    variables = job_variables(gitlab, project, job)
    name = expanded(job["environment"], variables)
    environment = gitlab.tables.environments.first(project_id=project["id"], name=name)
    if environment is None:
        environment = gitlab.tables.environments.add(
            {
                "project_id": project["id"],
                "name": name,
                "slug": pipelines.slug(name)[:24],
                "external_url": None,
                "state": "available",
                "tier": job["environment_tier"] or payloads.environment_tier(name),
                "created_at": stamp(),
                "updated_at": stamp(),
            }
        )
    if job["environment_url"]:
        url = expanded(job["environment_url"], variables)
        gitlab.tables.environments.save({**environment, "external_url": url})
    made = gitlab.tables.deployments.add(
        {
            "project_id": project["id"],
            "iid": 1 + len(gitlab.tables.deployments.where(project_id=project["id"])),
            "environment_id": environment["id"],
            "job_id": job["id"],
            "user_id": job["user_id"],
            "ref": run["ref"],
            "sha": run["sha"],
            "status": "created",
            "created_at": stamp(),
            "updated_at": stamp(),
            "finished_at": None,
        }
    )
    return _move_deployment(gitlab, project, made, "running")


def _move_deployment(
    gitlab: GitLab, project: Document, deployment: Document, status: str
) -> Document | None:
    stored = gitlab.tables.deployments.get(deployment["id"])
    user = gitlab.tables.users.get(deployment["user_id"])
    if stored is None or user is None:
        return None
    changes: dict[str, Any] = {"status": status, "updated_at": stamp()}
    if status != "running":
        changes["finished_at"] = stamp()
    stored = gitlab.tables.deployments.save({**stored, **changes})
    make = functools.partial(payloads.deployment, gitlab, project, user, stored)
    hooks.fire(gitlab, project, "deployment_events", make)
    return stored
