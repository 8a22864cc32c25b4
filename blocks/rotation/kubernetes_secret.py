"""Kubernetes Secrets that workloads take as environment or files.

Why it exists: a Secret that changes does not reach a pod that runs. Promises that all keys of the
Secret change in one write, that every workload which takes it rolls out with the version's
fingerprint on its pods, and that the old value is revoked only when no pod is without it. The
system that accepts the value is another class (`holder`); without one, the value is known to its
consumers only, as a key that signs cookies. Refuses to write a Secret that an operator writes from
OpenBao: that one is asked to read anew.
API: https://kubernetes.io/docs/concepts/configuration/secret/

Parameters: `kubeconfig_path`, `namespace`, `name`; `holder` is another class's name, whose own
parameters stand beside these; without one `keys`, the names of the generated parts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blocks.rotation import kubernetes_workloads as workloads
from blocks.rotation.classes import RotationClass
from blocks.rotation.kubernetes_clusters import Cluster, KubernetesClusters
from blocks.rotation.secret_parameters import parameters
from blocks.rotation.site import RotationSite
from domain.errors import Conflict, NotFound, Unreachable
from domain.manifest_order import ObjectKey
from domain.rotation.contract import Adapter, Proof, SecretRef, Seen, Values

SYNC_SECONDS = 120.0
RETURN_SECONDS = 300.0
PART_BYTES = 32
_WRITERS = {"ExternalSecret": "force-sync", "VaultStaticSecret": "force-sync"}
"""Kinds of operators' objects, and the annotation whose change has them read anew."""

Holder = Callable[[SecretRef], Adapter | None]


def fingerprint(secret: SecretRef, values: Values) -> str:
    """Return what stands for a version on pods; made so that guessing the value from it is slow."""
    text = json.dumps(dict(values), sort_keys=True)
    salt = secret.secret_id.encode()
    return hashlib.scrypt(text.encode(), salt=salt, n=2**13, r=8, p=1, dklen=20).hex()


class KubernetesSecret:
    """Secrets of one cluster."""

    kind = "kubernetes-secret"
    type = "Opaque"
    has_overlap = False
    restarts_consumers = True

    def __init__(self, cluster: Cluster, holder: Holder = lambda _secret: None) -> None:
        """Take the way to a secret's cluster and to the class of what accepts the value."""
        self._api = cluster
        self._holder = holder

    # --- what subclasses change --------------------------------------------------------------

    def render(self, secret: SecretRef, values: Values) -> dict[str, str]:
        """Return the Secret's content for a value."""
        return dict(values)

    def labels(self, secret: SecretRef) -> dict[str, str]:
        """Return the labels that the Secret needs for its readers."""
        return {}

    # --- the steps ---------------------------------------------------------------------------

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Let the holder make a value, or make random parts."""
        if (holder := self._holder(secret)) is not None:
            return holder.create(secret, generation, current)
        names = list(current or ()) or parameters(secret, "keys")[0].split(",")
        return {name.strip(): secrets.token_urlsafe(PART_BYTES) for name in names}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Let the holder accept it."""
        if (holder := self._holder(secret)) is not None:
            holder.set(secret, new, current)

    def test(self, secret: SecretRef, new: Values) -> None:
        """Use it at the holder."""
        if (holder := self._holder(secret)) is not None:
            holder.test(secret, new)

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Write the Secret, then roll out whoever takes it."""
        if (holder := self._holder(secret)) is not None:
            holder.distribute(secret, new)
        self._write(secret, new)
        if self.restarts_consumers:
            namespace, name = parameters(secret, "namespace", "name")
            mark = fingerprint(secret, new)
            workloads.annotate(self._api(secret), namespace, _only(name), _annotation(name), mark)

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Look at the Secret, at every rollout and at every pod's fingerprint."""
        holder = self._holder(secret)
        held = [] if holder is None else list(holder.observe(secret, new, current))
        return [*held, *self._look(secret, new)]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Let the holder refuse the old value."""
        if (holder := self._holder(secret)) is not None:
            holder.revoke(secret, old)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """See that no pod and no Secret carries the old version, then ask the holder."""
        carriers = self._carriers(secret, old)
        method = "search of the namespace's Secrets and pods"
        if carriers:
            return Proof(False, method, "still carried by " + ", ".join(carriers[:5]))
        if (holder := self._holder(secret)) is None:
            return Proof(True, method, "carried by none")
        proof = holder.prove_dead(secret, old)
        return Proof(proof.is_dead, f"{method}; {proof.method}", f"none; {proof.answer}")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Give consumers the current value again, and only then let the holder drop the new one."""
        if current is not None:
            self._write(secret, current)
            if self.restarts_consumers:
                namespace, name = parameters(secret, "namespace", "name")
                mark = fingerprint(secret, current)
                workloads.annotate(
                    self._api(secret), namespace, _only(name), _annotation(name), mark
                )
            workloads.wait_until_all(lambda: self._look(secret, current), RETURN_SECONDS)
        if (holder := self._holder(secret)) is not None:
            holder.rollback(secret, new, current)

    # --- the Secret --------------------------------------------------------------------------

    def _write(self, secret: SecretRef, values: Values) -> None:
        namespace, name = parameters(secret, "namespace", "name")
        key = ObjectKey("v1", "Secret", namespace, name)
        content = self.render(secret, values)
        try:
            document = self._api(secret).get(key)
        except NotFound:
            document = {}
        writer = _writer(document)
        if writer is not None:
            self._ask_writer(secret, key, writer, content)
            return
        data = {part: base64.b64encode(text.encode()).decode() for part, text in content.items()}
        labels = self.labels(secret)
        if document:
            self._api(secret).merge(
                key, {"metadata": {"labels": labels}, "data": data}, workloads.FIELD_MANAGER
            )
        else:
            metadata = {"name": name, "namespace": namespace, "labels": labels}
            manifest = {"apiVersion": "v1", "kind": "Secret", "type": self.type}
            self._api(secret).apply({**manifest, "metadata": metadata, "data": data})
        if not _carries(self._api(secret).get(key), content):
            raise Conflict(
                f"Unable to confirm the Secret {namespace}/{name}: another content was read back "
                "than was written. Find the other writer in its managedFields, then run again."
            )

    def _ask_writer(
        self, secret: SecretRef, key: ObjectKey, writer: ObjectKey, content: Mapping[str, str]
    ) -> None:
        """Let the operator that writes the Secret read OpenBao now, and wait until it has."""
        mark = fingerprint(secret, content)
        annotation = _WRITERS[writer.kind]
        self._api(secret).merge(
            writer, {"metadata": {"annotations": {annotation: mark}}}, workloads.FIELD_MANAGER
        )
        deadline = time.monotonic() + SYNC_SECONDS
        while not _carries(self._api(secret).get(key), content):
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"Unable to see {key.text} follow OpenBao within {SYNC_SECONDS:.0f} s. Look "
                    f"at the status of {writer.text}."
                )
            time.sleep(workloads.POLL_SECONDS)

    def _look(self, secret: SecretRef, values: Values) -> list[Seen]:
        namespace, name = parameters(secret, "namespace", "name")
        content, text = self.render(secret, values), f"Secret {namespace}/{name}"
        try:
            document = self._api(secret).get(ObjectKey("v1", "Secret", namespace, name))
        except NotFound:
            return [Seen(text, False, "does not exist")]
        has_it = _carries(document, content)
        seen = [Seen(text, has_it, "" if has_it else "has another content")]
        if not self.restarts_consumers:
            return seen
        mark, annotation = fingerprint(secret, values), _annotation(name)

        def is_marked(found: Mapping[str, Any]) -> bool:
            held = (found.get("metadata") or {}).get("annotations") or {}
            return bool(held.get(annotation) == mark)

        def is_template_marked(workload: workloads.Workload) -> bool:
            found: Any = workload.document
            for part in workload.template_at:
                found = found.get(part) or {}
            return is_marked(found)

        look: Callable[..., list[Seen]] = workloads.look
        return seen + look(self._api(secret), namespace, _only(name), is_marked, is_template_marked)

    def _carriers(self, secret: SecretRef, old: Values) -> list[str]:
        """Return who still has the old version: Secrets by content, pods by fingerprint."""
        namespace, name = parameters(secret, "namespace", "name")
        documents = self._api(secret).list("v1", "Secret", namespace)
        own = next((d for d in documents if d["metadata"]["name"] == name), {})
        kept = set(_content(own).values())
        gone = [text for text in self.render(secret, old).values() if text not in kept]
        # What is equal in old and new, as a user name, tells nothing; nor does a short text.
        telling = {text for text in gone if len(text) >= PART_BYTES // 2}
        found = [
            f"Secret {namespace}/{document['metadata']['name']}"
            for document in documents
            if telling & set(_content(document).values())
            or (document is own and _carries(own, self.render(secret, old)))
        ]
        mark, annotation = fingerprint(secret, old), _annotation(name)
        for pod in workloads.pods_of(self._api(secret), namespace, _only(name)):
            if (pod["metadata"].get("annotations") or {}).get(annotation) == mark:
                found.append(f"Pod {namespace}/{pod['metadata']['name']}")
        return found


def _only(name: str) -> Callable[[str], bool]:
    return lambda found: found == name


def _annotation(name: str) -> str:
    """Return the annotation's key: its part after the slash may have 63 characters."""
    tail = f"secret-{name}"
    if len(tail) > 63:
        tail = f"{tail[:52]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
    return f"infraflows.io/{tail}"


def _content(document: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, text in (document.get("data") or {}).items():
        try:
            found[str(name)] = base64.b64decode(text).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
    return found


def _carries(document: Mapping[str, Any], content: Mapping[str, str]) -> bool:
    held = _content(document)
    return all(held.get(name) == text for name, text in content.items())


def _writer(document: Mapping[str, Any]) -> ObjectKey | None:
    """Return the operator's object that owns a Secret, if one does."""
    metadata = document.get("metadata") or {}
    for owner in metadata.get("ownerReferences") or []:
        if owner.get("kind") in _WRITERS:
            return ObjectKey(
                str(owner["apiVersion"]),
                str(owner["kind"]),
                str(metadata["namespace"]),
                str(owner["name"]),
            )
    return None


def holders(site: RotationSite) -> Holder:
    """Return the way to the class that the parameter `holder` names."""

    def find(secret: SecretRef) -> Adapter | None:
        # The registry names this class too.
        from blocks.rotation.registry import rotation_class

        kind = secret.parameters.get("holder")
        return rotation_class(kind).make(site) if kind else None

    return find


CLASS = RotationClass(
    kind=KubernetesSecret.kind,
    make=lambda site: KubernetesSecret(KubernetesClusters(site.session), holders(site)),
    has_overlap=False,
    observed="rollouts are through and every pod carries the version's fingerprint",
    proved_dead="no pod and no Secret carries the old version; the holder's own proof",
    parameters=("kubeconfig_path", "namespace", "name"),
    optional=("holder", "keys"),
)
"""How the registry knows it."""
