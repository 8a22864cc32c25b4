"""Small pages for people: projects, files, commits, merge requests, pipelines, jobs.

Why: what the API holds must be seen by somebody, and shown in a picture. They are the lab's own
pages, not GitLab's. They ask for no login and change nothing. Comments are Markdown without HTML.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from lab.gitlab import models_hooks as hooks
from lab.gitlab import models_merge_requests as merge_requests
from lab.gitlab import models_pipelines as pipelines
from lab.gitlab import models_projects as projects
from lab.gitlab.exceptions import Missing
from lab.gitlab.instance import GitLab, moment
from lab.gitlab.page_markdown import markdown, with_folds
from lab.gitlab.repository import Commit, FileChange
from lab.hypervisor.store import Document

_PATH = re.compile(r"/(?P<project>.+?)(?:/-/(?P<part>[a-z_]+)(?:/(?P<rest>.+))?)?/?")
_LISTED_COMMITS = 50

Page = tuple[str, dict[str, Any]]


class Pages:
    """The pages of one GitLab."""

    def __init__(self, gitlab: GitLab) -> None:
        self._gitlab = gitlab
        self._markdown = markdown()
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            markdown=self._rendered, when=_when, diff_lines=_diff_lines, initials=_initials
        )
        self._parts: dict[str, Callable[[Document, str], Page]] = {
            "": self._project,
            "blob": self._blob,
            "commit": self._commit,
            "commits": self._commits,
            "merge_requests": self._merge_requests,
            "pipelines": self._pipelines,
            "jobs": self._job,
            "environments": self._environments,
            "hooks": self._hooks,
        }

    def answer(self, request: Request) -> Response:
        """The page at an address."""
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse(f"{request.method} of pages is not simulated\n", 501)
        path = request.url.path
        if path == "/":
            return self._page("index.html", self._index())
        match = _PATH.fullmatch(path)
        if match is None:
            raise Missing("Page")
        project = projects.find_project(self._gitlab, match["project"])
        if project is None or match["project"].isdigit():
            raise Missing("Page")
        show = self._parts.get(match["part"] or "")
        if show is None:
            text = f"The page {path} is not simulated by the lab's GitLab\n"
            return PlainTextResponse(text, 501)
        template, values = show(project, match["rest"] or "")
        return self._page(template, {**self._frame(project), **values})

    def place_of(self, request: Request, project: Document) -> str:
        """Where the page of a moved project is now."""
        match = _PATH.fullmatch(request.url.path)
        rest = request.url.path[match.end("project") :] if match else ""
        return f"{projects.web_url(self._gitlab, project)}{rest}"

    def _page(self, template: str, values: dict[str, Any]) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(**values))

    def _rendered(self, text: str) -> Markup:
        return Markup(with_folds(self._markdown, text))  # noqa: S704 - with HTML switched off

    def _frame(self, project: Document) -> dict[str, Any]:
        path = projects.project_path(self._gitlab, project)
        return {"project": project, "path": path, "base": f"/{path}", "url": self._gitlab.url}

    def _user(self, identifier: int | None) -> Document:
        nobody = {"name": "Ghost user", "username": "ghost"}
        return self._gitlab.tables.users.get(identifier or 0) or nobody

    def _index(self) -> dict[str, Any]:
        shown = [
            {**project, "full": projects.project_path(self._gitlab, project)}
            for project in self._gitlab.tables.projects
        ]
        return {"projects": sorted(shown, key=lambda each: str(each["full"]))}

    def _last_run(self, project: Document, sha: str | None) -> Document | None:
        runs = self._gitlab.tables.pipelines.where(project_id=project["id"], sha=sha)
        return runs[-1] if runs else None

    def _head(self, project: Document) -> str | None:
        return self._gitlab.repository(project).resolve(project["default_branch"])

    def _project(self, project: Document, _: str) -> Page:
        repository, head = self._gitlab.repository(project), self._head(project)
        entries = repository.tree(head, "", is_recursive=False) if head else []
        readme = repository.blob(head, "README.md") if head else None
        tables = self._gitlab.tables
        return "project.html", {
            "entries": entries,
            "commit": repository.commit(head) if head else None,
            "run": self._last_run(project, head),
            "readme": readme.content.decode(errors="replace") if readme else "",
            "open_requests": tables.merge_requests.where(project_id=project["id"], state="opened"),
            "counts": {
                "branches": len(repository.references("refs/heads")),
                "tags": len(repository.references("refs/tags")),
            },
        }

    def _blob(self, project: Document, rest: str) -> Page:
        repository = self._gitlab.repository(project)
        reference, _, name = rest.partition("/")
        sha = repository.resolve(reference)
        if sha is None:
            raise Missing("Page")
        blob = repository.blob(sha, name)
        if blob is None:
            entries = repository.tree(sha, name, is_recursive=False)
            if not entries:
                raise Missing("Page")
            return "tree.html", {"entries": entries, "name": name, "reference": reference}
        text = blob.content.decode(errors="replace")
        return "blob.html", {"name": name, "reference": reference, "text": text}

    def _found_commit(self, project: Document, name: str) -> Commit:
        repository = self._gitlab.repository(project)
        sha = repository.resolve(name)
        if sha is None:
            raise Missing("Page")
        return repository.commit(sha)

    def _commit(self, project: Document, rest: str) -> Page:
        commit = self._found_commit(project, rest)
        parent = commit.parents[0] if commit.parents else None
        tables = self._gitlab.tables
        statuses = tables.statuses.where(project_id=project["id"], sha=commit.sha)
        return "commit.html", {
            "commit": commit,
            "changes": self._gitlab.repository(project).differences(parent, commit.sha),
            "notes": self._notes(project_id=project["id"], commit_id=commit.sha),
            "statuses": list({row["name"]: row for row in statuses}.values()),
            "run": self._last_run(project, commit.sha),
        }

    def _notes(self, **wanted: Any) -> list[dict[str, Any]]:
        rows = self._gitlab.tables.notes.where(**wanted)
        return [{**row, "author": self._user(row["author_id"])} for row in rows]

    def _commits(self, project: Document, rest: str) -> Page:
        repository = self._gitlab.repository(project)
        sha = repository.resolve(rest or project["default_branch"])
        found = repository.log(sha, limit=_LISTED_COMMITS) if sha else []
        shown = [(commit, self._last_run(project, commit.sha)) for commit in found]
        return "commits.html", {"commits": shown}

    def _merge_requests(self, project: Document, rest: str) -> Page:
        rows = self._gitlab.tables.merge_requests.where(project_id=project["id"])
        if not rest:
            shown = [{**row, "author": self._user(row["author_id"])} for row in reversed(rows)]
            return "merge_requests.html", {"requests": shown}
        number = rest.split("/")[0]
        found = [row for row in rows if str(row["iid"]) == number]
        if not found:
            raise Missing("Page")
        return self._merge_request(project, found[0])

    def _merge_request(self, project: Document, request: Document) -> Page:
        request = merge_requests.refresh(self._gitlab, project, request)
        base = merge_requests.base_sha(self._gitlab, project, request)
        changes: list[FileChange] = []
        if request["sha"]:
            changes = self._gitlab.repository(project).differences(base, request["sha"])
        return "merge_request.html", {
            "request": request,
            "author": self._user(request["author_id"]),
            "merger": self._user(request["merge_user_id"]),
            "changes": changes,
            "notes": self._notes(noteable_type="MergeRequest", noteable_id=request["id"]),
            "run": self._last_run(project, request["sha"]),
        }

    def _pipelines(self, project: Document, rest: str) -> Page:
        rows = self._gitlab.tables.pipelines.where(project_id=project["id"])
        repository = self._gitlab.repository(project)
        if not rest:
            shown = [
                {
                    **row,
                    "title": repository.commit(row["sha"]).title,
                    "user": self._user(row["user_id"]),
                }
                for row in reversed(rows)
            ]
            return "pipelines.html", {"runs": shown}
        found = [row for row in rows if str(row["id"]) == rest]
        if not found:
            raise Missing("Page")
        run = found[0]
        jobs = pipelines.current_jobs(self._gitlab, run)
        return "pipeline.html", {
            "run": run,
            "commit": repository.commit(run["sha"]),
            "user": self._user(run["user_id"]),
            "stages": [(name, [j for j in jobs if j["stage"] == name]) for name in run["stages"]],
        }

    def _job(self, project: Document, rest: str) -> Page:
        job = self._gitlab.tables.jobs.get(int(rest)) if rest.isdigit() else None
        if job is None or job["project_id"] != project["id"]:
            raise Missing("Page")
        return "job.html", {"job": job, "lines": self._gitlab.trace(job["id"])}

    def _environments(self, project: Document, _: str) -> Page:
        tables = self._gitlab.tables
        shown = []
        for row in tables.environments.where(project_id=project["id"]):
            made = tables.deployments.where(environment_id=row["id"])
            last = made[-1] if made else None
            shown.append({**row, "last": last, "user": self._user(last["user_id"] if last else 0)})
        return "environments.html", {"environments": shown}

    def _hooks(self, project: Document, _: str) -> Page:
        shown = [
            {
                **hook,
                "alert": hooks.alert_status(hook),
                "events": [name for flag, (name, _) in hooks.EVENTS.items() if hook[flag]],
                "logs": hooks.recent_logs(self._gitlab, hook)[:20],
            }
            for hook in self._gitlab.tables.hooks.where(project_id=project["id"])
        ]
        return "hooks.html", {"hooks": shown}


def _when(text: str | None) -> str:
    return moment(text).strftime("%d %b %Y %H:%M:%S UTC") if text else ""


def _initials(name: str) -> str:
    return "".join(part[0] for part in name.split()[:2]).upper() or "?"


def _diff_lines(change: FileChange) -> list[tuple[str, str]]:
    kinds = {"+": "added", "-": "removed", "@": "hunk"}
    return [(kinds.get(line[:1], "same"), line) for line in change.text.splitlines()]
