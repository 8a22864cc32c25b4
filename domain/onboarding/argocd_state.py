"""What an Argo CD Application says of itself, and when it is as wanted.

Exists so that "delivered" means the same to onboarding, roll-back and deployment, and so that a
failure names the objects and their own words. Promises to look only at what the controller wrote;
a status that is not there yet is `Unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REFRESH_ANNOTATION = "argocd.argoproj.io/refresh"
RESOURCES_FINALIZER = "resources-finalizer.argocd.argoproj.io"
"""Deletes what the Application applied before the Application itself goes."""

UNKNOWN = "Unknown"
SYNCED = "Synced"
HEALTHY = "Healthy"
RUNNING_PHASES = frozenset({"Running", "Terminating"})
FAILED_PHASES = frozenset({"Failed", "Error"})
SHOWN_REASONS = 12
SHOWN_LENGTH = 300


@dataclass(frozen=True)
class ApplicationState:
    """One Application as its controller last saw it."""

    name: str
    sync: str
    health: str
    revision: str
    """Commit that was compared with what runs."""
    operation: str
    """Phase of the last sync operation; empty if there was none."""
    operation_revision: str
    """Commit that the last operation applied."""
    is_operating: bool
    """An operation runs or is asked for."""
    is_refreshing: bool
    """A refresh was asked for and is not done."""
    is_being_deleted: bool
    reasons: tuple[str, ...]
    """Why it is not as wanted, by object where one is to blame."""
    deployments: tuple[tuple[str, str], ...] = ()
    """Namespace and name of each Deployment that it applied."""
    images: tuple[str, ...] = ()
    """Of these Deployments, as the cluster has them now; empty where it was not asked."""

    @property
    def is_compared(self) -> bool:
        """What runs was compared with the repository, whatever came out."""
        return self.sync not in ("", "Unknown")

    @property
    def is_well(self) -> bool:
        """Everything runs as compared, and nothing is under way."""
        return (
            self.sync == SYNCED
            and self.health == HEALTHY
            and not self.is_operating
            and not self.is_refreshing
            and not self.is_being_deleted
        )

    def has_failed_at(self, revision: str) -> bool:
        """Tell whether applying that very commit was given up."""
        return (
            not self.is_operating
            and self.operation in FAILED_PHASES
            and self.operation_revision == revision
        )

    @property
    def summary(self) -> str:
        """One line: sync, health, commit, operation and the reasons."""
        parts = [f"{self.sync} and {self.health} at {self.revision[:12] or 'no commit'}"]
        if self.operation:
            parts.append(f"last operation {self.operation}")
        more = len(self.reasons) - SHOWN_REASONS
        shown = list(self.reasons[:SHOWN_REASONS]) + ([f"and {more} more"] if more > 0 else [])
        return ", ".join(parts) + (": " + "; ".join(shown) if shown else "")


def application_state(document: Mapping[str, Any]) -> ApplicationState:
    """Return what an Application's document says."""
    metadata, status = document.get("metadata") or {}, document.get("status") or {}
    sync, operation = status.get("sync") or {}, status.get("operationState") or {}
    result = operation.get("syncResult") or {}
    phase = str(operation.get("phase") or "")
    asked = (operation.get("operation") or {}).get("sync") or {}
    return ApplicationState(
        name=str(metadata.get("name", "")),
        sync=str(sync.get("status") or UNKNOWN),
        health=str((status.get("health") or {}).get("status") or UNKNOWN),
        revision=str(sync.get("revision") or ""),
        operation=phase,
        operation_revision=str(result.get("revision") or asked.get("revision") or ""),
        is_operating=bool(document.get("operation")) or phase in RUNNING_PHASES,
        is_refreshing=REFRESH_ANNOTATION in (metadata.get("annotations") or {}),
        is_being_deleted=bool(metadata.get("deletionTimestamp")),
        deployments=tuple(
            (str(item.get("namespace", "")), str(item.get("name", "")))
            for item in status.get("resources") or []
            if item.get("kind") == "Deployment"
        ),
        reasons=(*_conditions(status), *_operation_reasons(phase, operation), *_objects(status)),
    )


def _cut(text: Any) -> str:
    return " ".join(str(text or "").split())[:SHOWN_LENGTH]


def _conditions(status: Mapping[str, Any]) -> list[str]:
    return [
        f"{found.get('type')}: {_cut(found.get('message'))}"
        for found in status.get("conditions") or []
    ]


def _operation_reasons(phase: str, operation: Mapping[str, Any]) -> list[str]:
    if phase not in FAILED_PHASES and not (phase in RUNNING_PHASES and operation.get("message")):
        return []
    found = [f"sync {phase}: {_cut(operation.get('message'))}"]
    for item in (operation.get("syncResult") or {}).get("resources") or []:
        if item.get("status") == "SyncFailed" or item.get("hookPhase") in FAILED_PHASES:
            found.append(f"{_called(item)}: {_cut(item.get('message'))}")
    return found


def _objects(status: Mapping[str, Any]) -> list[str]:
    found = []
    for item in status.get("resources") or []:
        health = item.get("health") or {}
        words = []
        if item.get("status") not in (None, SYNCED):
            words.append("to be pruned" if item.get("requiresPruning") else str(item["status"]))
        if health.get("status") not in (None, HEALTHY):
            message = _cut(health.get("message"))
            words.append(str(health["status"]) + (f" ({message})" if message else ""))
        if words:
            found.append(f"{_called(item)} is {' and '.join(words)}")
    return found


def _called(item: Mapping[str, Any]) -> str:
    namespace = item.get("namespace")
    return f"{item.get('kind')} {namespace + '/' if namespace else ''}{item.get('name')}"
