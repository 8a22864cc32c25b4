"""What a GitLab event means for onboarding: an act, or a reason why it means nothing.

Exists so that the queue holds the few facts that are needed and not a body full of names and
e-mail addresses. Promises that identity is the project's id, which a rename or a move keeps, and
that an act carries no content: whoever carries it out reads the branch's head, so that late,
repeated and reordered events all lead to the same result. Refuses documents in which the project
is not told, or told in two ways.
Payloads: https://docs.gitlab.com/user/project/integrations/webhook_events/
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from domain.onboarding.app_spec import Stage

APP_FILE = "app.yaml"
RECONCILE_KIND = "infraflows_reconcile"
"""Our own event: `reconcile_deliveries` asks the gateway to look at a project's head."""

CONNECT_KIND = "infraflows_connect"
"""Our own event: an operator has connected a project, whose head is to be looked at."""

NO_COMMIT = re.compile(r"0{40}(0{24})?")
SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_PROJECT_ID_LIMIT = 2**53
_BRANCH = "refs/heads/"
_JUDGED_ACTIONS = frozenset(("open", "reopen", "update"))


class MalformedEvent(ValueError):
    """The document is not an event. The text repeats nothing of it."""


@dataclass(frozen=True)
class AppChanged:
    """`app.yaml` at the head of the default branch may differ from what was onboarded."""

    kind: ClassVar[str] = "app_changed"
    is_reconcile: bool = False
    """True when nobody asked but the clock: then only what is lost or failed is made up for."""


@dataclass(frozen=True)
class MergeRequestChanged:
    """The head of a merge request may have another `app.yaml`."""

    kind: ClassVar[str] = "merge_request_changed"
    iid: int


@dataclass(frozen=True)
class Deployed:
    """The pipeline has finished a deployment job: the stage is to run this tag."""

    kind: ClassVar[str] = "deployed"
    stage: Stage
    deployment_id: int
    """Grows with time, so that the newest wins whatever order events come in."""
    tag: str


@dataclass(frozen=True)
class Ignored:
    """Nothing follows from the event."""

    kind: ClassVar[str] = "ignored"
    reason: str


Meaning = AppChanged | MergeRequestChanged | Deployed | Ignored
_MEANINGS: Mapping[str, type[Meaning]] = {
    each.kind: each for each in (AppChanged, MergeRequestChanged, Deployed, Ignored)
}


def encoded(meaning: Meaning) -> str:
    """Return a meaning as the queue keeps it."""
    return json.dumps({"kind": meaning.kind, **asdict(meaning)}, separators=(",", ":"))


def decoded(text: str) -> Meaning:
    """Return what `encoded` was given."""
    fields = json.loads(text)
    kind = _MEANINGS[fields.pop("kind")]
    if kind is Deployed:
        fields["stage"] = Stage(fields["stage"])
    return kind(**fields)


def read_document(body: bytes) -> Mapping[str, Any]:
    """Return a body as a document.

    Raises:
        MalformedEvent: it is no JSON object.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedEvent("the body is not JSON") from None
    if not isinstance(document, dict):
        raise MalformedEvent("the body is not a JSON object")
    return document


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _PROJECT_ID_LIMIT


def project_id(document: Mapping[str, Any]) -> int:
    """Return the id of the project that an event belongs to.

    Raises:
        MalformedEvent: it is missing, no id, or told in two ways.
    """
    project = document.get("project")
    told = [document["project_id"]] if "project_id" in document else []
    if isinstance(project, dict) and "id" in project:
        told.append(project["id"])
    if not told or not all(_is_id(value) for value in told) or len(set(told)) != 1:
        raise MalformedEvent("the body does not say which project it is about")
    return int(told[0])


def meaning(document: Mapping[str, Any]) -> Meaning:
    """Return what an event asks for.

    Raises:
        MalformedEvent: an event of a known kind lacks what such an event has.
    """
    match document.get("object_kind"):
        case "push":
            return _push(document)
        case "merge_request":
            return _merge_request(document)
        case "deployment":
            return _deployment(document)
        case str(kind) if kind == RECONCILE_KIND:
            return AppChanged(is_reconcile=True)
        case str(kind) if kind == CONNECT_KIND:
            return AppChanged()
        case str():
            return Ignored("this kind of event is not used")
        case _:
            raise MalformedEvent("the body does not say what kind of event it is")


def _push(document: Mapping[str, Any]) -> Meaning:
    ref, after, before = (document.get(name) for name in ("ref", "after", "before"))
    project = document.get("project")
    default_branch = project.get("default_branch") if isinstance(project, dict) else None
    if not isinstance(ref, str) or not isinstance(after, str) or not isinstance(before, str):
        raise MalformedEvent("the push does not say which branch went where")
    if not isinstance(default_branch, str) or ref != _BRANCH + default_branch:
        return Ignored("the push is not on the default branch")
    if NO_COMMIT.fullmatch(after):
        return Ignored("the branch was deleted")
    if NO_COMMIT.fullmatch(before) or _touches_app_file(document):
        return AppChanged()
    return Ignored(f"the push does not touch {APP_FILE}")


def _touches_app_file(document: Mapping[str, Any]) -> bool:
    commits = document.get("commits")
    total = document.get("total_commits_count")
    if not isinstance(commits, list) or not isinstance(total, int) or total > len(commits):
        # GitLab tells 20 commits at most: the rest may touch it.
        return True
    for commit in commits:
        if not isinstance(commit, dict):
            return True
        for name in ("added", "modified", "removed"):
            paths = commit.get(name, [])
            if not isinstance(paths, list) or APP_FILE in paths:
                return True
    # A force push to an older commit tells no commit at all.
    return not commits


def _merge_request(document: Mapping[str, Any]) -> Meaning:
    attributes = document.get("object_attributes")
    if not isinstance(attributes, dict) or not _is_id(attributes.get("iid")):
        raise MalformedEvent("the merge request has no number")
    target = attributes.get("target_project_id")
    if target is not None and target != project_id(document):
        return Ignored("the merge request belongs to another project")
    if attributes.get("action") not in _JUDGED_ACTIONS:
        return Ignored("the merge request is not open, or nothing in it changed")
    return MergeRequestChanged(int(attributes["iid"]))


def _deployment(document: Mapping[str, Any]) -> Meaning:
    if document.get("status") != "success":
        return Ignored("the deployment has not succeeded")
    project = document.get("project")
    default_branch = project.get("default_branch") if isinstance(project, dict) else None
    if not isinstance(default_branch, str) or document.get("ref") != default_branch:
        # Whoever may push a branch may write a job that says it deploys to production.
        return Ignored("the deployment is not of the default branch")
    environment, number = document.get("environment"), document.get("deployment_id")
    tag = document.get("short_sha")
    if not _is_id(number) or not isinstance(tag, str) or not re.fullmatch(r"[0-9a-f]{7,64}", tag):
        raise MalformedEvent("the deployment has no number or no commit")
    if environment not in [stage.value for stage in Stage]:
        return Ignored("the environment is none of development, staging, production")
    assert isinstance(number, int)  # noqa: S101 - told to the type checker; `_is_id` has checked it
    return Deployed(Stage(environment), number, tag)
