"""Who uses a secret, found in what the systems say rather than listed by hand.

Three sources: Kubernetes objects, files that Ansible writes, and OpenBao's audit log. Each alone
misses someone; together they tell who must be seen on a new value, and who is hit by a leak.
Promises one consumer per way in which a value is used, in a fixed order. Refuses to look into
values: it reads names and references only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from domain.rotation.pod_references import Reference, is_owned, pod_references

Objects = Iterable[Mapping[str, Any]]
SecretName = tuple[str, str]
"""Namespace and name of a Kubernetes Secret."""


@dataclass(frozen=True, order=True)
class Consumer:
    """One user of one secret, and how it gets the value."""

    path: str
    """OpenBao path of the secret, without the mount."""
    kind: str
    """As `Deployment`, `file` or `entity`."""
    name: str
    """As `shop/web`, `/etc/nginx/tls.key` or `approle-ci`."""
    how: str
    host: str = ""
    is_read_once: bool = False
    """True when a new value is seen only after a restart."""

    @property
    def label(self) -> str:
        """Return the consumer as a person names it."""
        return f"{self.kind} {self.host + ':' if self.host else ''}{self.name}"


@dataclass(frozen=True, order=True)
class AuditRead:
    """One read of one secret that OpenBao answered."""

    path: str
    time: str
    """When it was asked for: what was answered later may have been looked up before."""
    entity: str
    accessor: str
    """As the log has it: hashed, where the audit device hashes accessors."""
    host: str


def secret_path(text: str, mount: str) -> str:
    """Return the path without its mount: `kv/data/a`, `/kv/a` and `a` are all `a`."""
    path = text.strip("/")
    for prefix in (f"{mount}/data/", f"{mount}/metadata/", f"{mount}/"):
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    return path


def from_kubernetes(
    objects: Objects,
    *,
    mount: str,
    known_paths: Collection[str] = (),
    delivered: Mapping[SecretName, str] | None = None,
) -> list[Consumer]:
    """Return the workloads that use a secret, through a Secret object or by OpenBao's agent.

    `known_paths` resolves ExternalSecrets that search instead of naming a path. `delivered` are the
    Secrets that the product itself writes, with the path of their value.
    """
    listed = list(objects)
    sources: dict[SecretName, set[str]] = {}
    for name, path in (delivered or {}).items():
        sources.setdefault(name, set()).add(path)
    for item in listed:
        for name, text in _synced(item, mount, known_paths):
            sources.setdefault(name, set()).add(secret_path(text, mount))
    accounts = {
        _name(item): [str(each.get("name")) for each in item.get("imagePullSecrets") or []]
        for item in listed
        if item.get("kind") == "ServiceAccount"
    }
    found: set[Consumer] = set()
    for item in listed:
        if not is_owned(item):
            for reference in pod_references(item, accounts):
                found |= _consumers(item, reference, sources, mount)
    return sorted(found)


def _consumers(
    item: Mapping[str, Any],
    reference: Reference,
    sources: Mapping[SecretName, set[str]],
    mount: str,
) -> set[Consumer]:
    namespace, name = _name(item)
    if reference.is_path:
        paths = {secret_path(reference.name, mount)}
    else:
        paths = sources.get((namespace, reference.name), set())
    return {
        Consumer(
            path,
            str(item.get("kind")),
            f"{namespace}/{name}",
            reference.how,
            is_read_once=reference.is_read_once,
        )
        for path in paths
    }


def _name(item: Mapping[str, Any]) -> SecretName:
    metadata = item.get("metadata") or {}
    return str(metadata.get("namespace") or "default"), str(metadata.get("name") or "")


def _synced(
    item: Mapping[str, Any], mount: str, known_paths: Collection[str]
) -> Iterable[tuple[SecretName, str]]:
    """Yield (Secret, path) of one object that copies from OpenBao into Secrets."""
    kind, spec = item.get("kind"), item.get("spec") or {}
    namespace, name = _name(item)
    if kind == "ExternalSecret":
        yield from _external(namespace, name, spec, mount, known_paths)
    elif kind == "ClusterExternalSecret":
        inner = spec.get("externalSecretSpec") or {}
        target = spec.get("externalSecretName") or name
        spaces = (item.get("status") or {}).get("provisionedNamespaces") or spec.get("namespaces")
        for space in spaces or []:
            yield from _external(str(space), target, inner, mount, known_paths)
    elif kind in ("VaultStaticSecret", "VaultDynamicSecret"):
        target = (spec.get("destination") or {}).get("name")
        if target and spec.get("path"):
            yield (namespace, str(target)), f"{spec.get('mount') or mount}/{spec['path']}"


def _external(
    namespace: str,
    name: str,
    spec: Mapping[str, Any],
    mount: str,
    known_paths: Collection[str],
) -> Iterable[tuple[SecretName, str]]:
    target = (namespace, str((spec.get("target") or {}).get("name") or name))
    for entry in spec.get("data") or []:
        key = (entry.get("remoteRef") or {}).get("key")
        if key:
            yield target, str(key)
    for entry in spec.get("dataFrom") or []:
        key = (entry.get("extract") or {}).get("key")
        if key:
            yield target, str(key)
        find = entry.get("find")
        if find is not None:
            start = secret_path(str(find.get("path") or ""), mount)
            pattern = (find.get("name") or {}).get("regexp") or ""
            for path in known_paths:
                if is_below(path, start) and _searches(pattern, path):
                    yield target, path


def _searches(pattern: str, path: str) -> bool:
    """True when `pattern` finds `path`; one that cannot be read counts as finding it."""
    try:
        return re.search(pattern, path) is not None
    except re.error:
        return True


def is_below(path: str, prefix: str) -> bool:
    """True when `path` is `prefix` or lies below it; `a/b` is not below `a/bc` nor the reverse."""
    start = prefix.strip("/")
    return not start or path == start or path.startswith(start + "/")


_ANSIBLE_LOOKUP = re.compile(
    r"""hashi_vault\.(?:vault_kv2_get|vault_kv1_get|vault_read)['"]\s*,\s*['"]([^'"]+)['"]"""
)
_ANSIBLE_OLD_LOOKUP = re.compile(r"""hashi_vault['"]\s*,\s*['"](?:secret=)?([^\s:'"]+)""")
_ANSIBLE_MODULE = re.compile(
    r"""hashi_vault\.(?:vault_kv2_get|vault_kv1_get|vault_read):(?:\s*\n\s+\w+:[^\n]*)*?"""
    r"""\s*\n\s+path:\s*['"]?([^\s'"]+)"""
)


def paths_in_ansible(text: str, mount: str) -> list[str]:
    """Return the paths that a playbook, a template or variables read from OpenBao.

    Paths that are put together from variables are given as they stand: a person sees them.
    """
    found = [
        match.group(1)
        for expression in (_ANSIBLE_LOOKUP, _ANSIBLE_OLD_LOOKUP, _ANSIBLE_MODULE)
        for match in expression.finditer(text)
    ]
    return sorted({secret_path(path, mount) for path in found})


def from_managed_files(entries: Objects, *, mount: str) -> list[Consumer]:
    """Return the files on hosts that hold a secret.

    Each entry has `host`, `file` and `secret_path`, and `service` where one must be reloaded.
    """
    found = set()
    for entry in entries:
        service = str(entry.get("service") or "")
        found.add(
            Consumer(
                secret_path(str(entry["secret_path"]), mount),
                "file",
                str(entry["file"]),
                f"read by {service}" if service else "written by Ansible",
                host=str(entry["host"]),
                is_read_once=bool(service),
            )
        )
    return sorted(found)


def audit_reads(entries: Objects, *, mount: str) -> list[AuditRead]:
    """Return the reads of secrets in `mount` that OpenBao answered with a value."""
    found, known = set(), list(entries)
    asked = {
        _request_id(entry): str(entry.get("time") or "")
        for entry in known
        if entry.get("type") == "request" and _request_id(entry)
    }
    for entry in known:
        request, auth = entry.get("request") or {}, entry.get("auth") or {}
        path = str(request.get("path") or "")
        is_read = request.get("operation") == "read" and entry.get("type") == "response"
        if not is_read or entry.get("error") or not path.startswith(f"{mount}/data/"):
            continue
        entity = auth.get("display_name") or auth.get("entity_id") or "unknown"
        found.add(
            AuditRead(
                secret_path(path, mount),
                asked.get(_request_id(entry)) or str(entry.get("time") or ""),
                str(entity),
                str(auth.get("accessor") or ""),
                str(request.get("remote_address") or ""),
            )
        )
    return sorted(found)


def written_last(entries: Objects, path: str, *, mount: str) -> str:
    """Return when a write of a secret was answered last: reads asked for since then see it."""
    times = [
        str(entry.get("time") or "")
        for entry in entries
        if entry.get("type") == "response"
        and not entry.get("error")
        and (request := entry.get("request") or {}).get("operation") in ("create", "update")
        and request.get("path") == f"{mount}/data/{path}"
    ]
    return max(times, default="")


def _request_id(entry: Mapping[str, Any]) -> str:
    return str((entry.get("request") or {}).get("id") or "")


def from_reads(
    reads: Iterable[AuditRead], *, since: datetime, own_entities: Collection[str] = ()
) -> list[Consumer]:
    """Return who read each secret since then. `own_entities` are the rotating workers' own names.

    A read whose time cannot be understood counts: a consumer too many is seen, one too few breaks.
    """
    found = {
        Consumer(each.path, "entity", each.entity, "read it in OpenBao", host=each.host)
        for each in reads
        if each.entity not in own_entities and _is_since(each.time, since)
    }
    return sorted(found)


def _is_since(time: str, since: datetime) -> bool:
    # OpenBao writes nanoseconds; six digits are what datetime understands.
    shortened = re.sub(r"(\.\d{6})\d+", r"\1", time)
    try:
        return datetime.fromisoformat(shortened) >= since
    except (ValueError, TypeError):
        return True


def by_path(*found: Sequence[Consumer]) -> dict[str, tuple[Consumer, ...]]:
    """Bring the sources together: path -> consumers, each once, in a fixed order."""
    together: dict[str, set[Consumer]] = {}
    for consumers in found:
        for consumer in consumers:
            together.setdefault(consumer.path, set()).add(consumer)
    return {path: tuple(sorted(together[path])) for path in sorted(together)}
