"""The file in a GitLab project that says which application owns it, and what was there before.

Exists because a project belongs to its team: what onboarding changes in it must be found again
without the spec, and be put back when the application goes. Promises that what it reads may have
been written by anybody: what has not the right form counts as nothing known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from domain.onboarding.tenant import MANAGED_BY

MARK_PATH = ".gitlab/infraflows.json"
_NOTE = (
    "Written by Infraflows: which files here are managed, and what to restore when the application "
    "is off-boarded. Do not edit."
)


@dataclass(frozen=True)
class ProtectionBefore:
    """How a branch was protected."""

    push_level: int
    merge_level: int
    is_force_push_allowed: bool


@dataclass(frozen=True)
class ProjectMark:
    """What one application has in a project."""

    app: str
    files: tuple[str, ...] = ()
    """Paths of the files that are managed, besides this one."""
    settings_before: Mapping[str, Any] = field(default_factory=dict)
    branch: str = ""
    """The default branch that was protected."""
    protection_before: ProtectionBefore | None = None
    """None when that branch was not protected."""
    tags_before: Mapping[str, int] = field(default_factory=dict)
    """Protected tags by pattern, with who may make them."""

    def text(self) -> str:
        """Return the file's content."""
        protection = self.protection_before
        document = {
            "note": _NOTE,
            "managed-by": MANAGED_BY,
            "app": self.app,
            "files": sorted(self.files),
            "before": {
                "settings": dict(self.settings_before),
                "tags": dict(self.tags_before),
                "branch": self.branch,
                "protection": None
                if protection is None
                else {
                    "push": protection.push_level,
                    "merge": protection.merge_level,
                    "force-push": protection.is_force_push_allowed,
                },
            },
        }
        return json.dumps(document, indent=2, sort_keys=True) + "\n"


def read_mark(text: str | None) -> ProjectMark | None:
    """Return what the file says; nothing when there is none or it is not ours."""
    try:
        document = json.loads(text or "")
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("managed-by") != MANAGED_BY:
        return None
    app, files = document.get("app"), document.get("files")
    if not isinstance(app, str) or not app:
        return None
    before = document.get("before")
    before = before if isinstance(before, dict) else {}
    settings, tags, branch = (before.get(name) for name in ("settings", "tags", "branch"))
    return ProjectMark(
        app=app,
        files=tuple(each for each in files if isinstance(each, str))
        if isinstance(files, list)
        else (),
        settings_before=settings if isinstance(settings, dict) else {},
        branch=branch if isinstance(branch, str) else "",
        protection_before=_protection(before.get("protection")),
        tags_before={
            str(pattern): level
            for pattern, level in (tags if isinstance(tags, dict) else {}).items()
            if isinstance(level, int)
        },
    )


def _protection(found: Any) -> ProtectionBefore | None:
    if not isinstance(found, dict):
        return None
    push, merge = found.get("push"), found.get("merge")
    if not isinstance(push, int) or not isinstance(merge, int):
        return None
    return ProtectionBefore(push, merge, bool(found.get("force-push")))
