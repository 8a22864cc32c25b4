"""What the simulated GitLab knows, as tables of documents that are written through to SQLite.

Promises: after a call returned, the change survives the death of the process; ids are never given
twice, also not after a deletion. Refuses queries: the tables are small and scanned in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lab.hypervisor.store import Document, Store


class Table:
    """Documents of one kind by their ids."""

    def __init__(self, store: Store, kind: str) -> None:
        self._store = store
        self._kind = kind
        self._rows = {int(key): document for key, document in store.load(kind).items()}
        sequence = store.load("sequences").get(kind, {"last": 0})
        self._last = max([int(sequence["last"]), *self._rows])

    def __iter__(self) -> Iterator[Document]:
        return iter(list(self._rows.values()))

    def get(self, identifier: int) -> Document | None:
        """The document, or None."""
        return self._rows.get(identifier)

    def add(self, document: Document) -> Document:
        """Store a new document under the next id."""
        self._last += 1
        # The number first: a kill in between skips it, which is what a real sequence does too.
        self._store.put("sequences", self._kind, {"last": self._last})
        return self.save({"id": self._last, **document})

    def save(self, document: Document) -> Document:
        """Store a document that was added before."""
        self._rows[document["id"]] = document
        self._store.put(self._kind, str(document["id"]), document)
        return document

    def remove(self, identifier: int) -> None:
        """Forget a document; an absent one is fine."""
        self._store.delete(self._kind, str(identifier))
        self._rows.pop(identifier, None)

    def where(self, **wanted: Any) -> list[Document]:
        """All documents with these values, oldest first."""
        return [
            row
            for row in list(self._rows.values())
            if all(row.get(field) == value for field, value in wanted.items())
        ]

    def first(self, **wanted: Any) -> Document | None:
        """The oldest document with these values, or None."""
        return next(iter(self.where(**wanted)), None)


class Tables:
    """All tables."""

    def __init__(self, store: Store) -> None:
        self.users = Table(store, "users")
        self.tokens = Table(store, "tokens")
        self.namespaces = Table(store, "namespaces")
        self.projects = Table(store, "projects")
        self.redirects = Table(store, "redirects")
        self.members = Table(store, "members")
        self.protected_branches = Table(store, "protected_branches")
        self.protected_tags = Table(store, "protected_tags")
        self.variables = Table(store, "variables")
        self.hooks = Table(store, "hooks")
        self.deliveries = Table(store, "deliveries")
        self.hook_logs = Table(store, "hook_logs")
        self.deploy_tokens = Table(store, "deploy_tokens")
        self.merge_requests = Table(store, "merge_requests")
        self.notes = Table(store, "notes")
        self.statuses = Table(store, "statuses")
        self.pipelines = Table(store, "pipelines")
        self.jobs = Table(store, "jobs")
        self.environments = Table(store, "environments")
        self.deployments = Table(store, "deployments")

    @property
    def of_a_project(self) -> tuple[Table, ...]:
        """The tables whose documents end with their project."""
        return (
            self.redirects,
            self.protected_branches,
            self.protected_tags,
            self.variables,
            self.hooks,
            self.deliveries,
            self.hook_logs,
            self.deploy_tokens,
            self.merge_requests,
            self.notes,
            self.statuses,
            self.pipelines,
            self.jobs,
            self.environments,
            self.deployments,
        )
