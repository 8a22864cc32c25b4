"""Who uses a Secret in a Kubernetes cluster, and whether they run with its new content.

Why it exists: consumers are found from what the API server holds, never listed by hand. Promises
every way in which a pod takes a Secret (env, envFrom, volumes, projected volumes, image pulls), for
workloads and for pods that stand alone; changes are made of exactly the version that was read.
Refuses to call a pod that is still ending a pod that is gone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blocks.kubernetes_api import KubernetesApi
from domain.errors import Conflict, NotFound, Unreachable
from domain.manifest_order import ObjectKey
from domain.rotation.contract import Seen

FIELD_MANAGER = "infraflows-rotation"
"""Another one than that of the platform's apply, which would drop what it does not name."""

POLL_SECONDS = 0.2
ATTEMPTS_AT_CONFLICT = 8
_POD_TEMPLATE = ("spec", "template")
_WORKLOADS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("apps/v1", "Deployment", _POD_TEMPLATE),
    ("apps/v1", "StatefulSet", _POD_TEMPLATE),
    ("apps/v1", "DaemonSet", _POD_TEMPLATE),
    ("batch/v1", "CronJob", ("spec", "jobTemplate", "spec", "template")),
)
Names = Callable[[str], bool]


@dataclass(frozen=True)
class Workload:
    """An object that makes pods, as it was read."""

    key: ObjectKey
    document: Mapping[str, Any]
    template_at: tuple[str, ...]

    @property
    def text(self) -> str:
        """Its kind and name, as reports show it."""
        return f"{self.key.kind} {self.key.namespace}/{self.key.name}"

    @property
    def pod_spec(self) -> dict[str, Any]:
        """The specification of its pods."""
        found: Any = self.document
        for part in self.template_at:
            found = found.get(part) or {}
        return dict(found.get("spec") or {})

    def template_patch(self, template: Mapping[str, Any]) -> dict[str, Any]:
        """A patch of the pod template, valid for the version that was read only."""
        patch: dict[str, Any] = dict(template)
        for part in reversed(self.template_at):
            patch = {part: patch}
        version = self.document["metadata"]["resourceVersion"]
        return {**patch, "metadata": {"resourceVersion": version}}


def _references(pod_spec: Mapping[str, Any], with_pulls: bool) -> Iterator[tuple[Any, str]]:
    """Yield each place that names a Secret: the object and the field that holds the name."""
    for part in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod_spec.get(part) or []:
            for entry in container.get("env") or []:
                reference = (entry.get("valueFrom") or {}).get("secretKeyRef")
                if reference:
                    yield reference, "name"
            for entry in container.get("envFrom") or []:
                if entry.get("secretRef"):
                    yield entry["secretRef"], "name"
    for volume in pod_spec.get("volumes") or []:
        if volume.get("secret"):
            yield volume["secret"], "secretName"
        for source in (volume.get("projected") or {}).get("sources") or []:
            if source.get("secret"):
                yield source["secret"], "name"
    if with_pulls:
        for entry in pod_spec.get("imagePullSecrets") or []:
            yield entry, "name"


def secrets_of(pod_spec: Mapping[str, Any], *, with_pulls: bool = False) -> set[str]:
    """Return the names of the Secrets that a pod takes."""
    return {str(where.get(field)) for where, field in _references(pod_spec, with_pulls)}


def workloads_of(api: KubernetesApi, namespace: str, names: Names) -> list[Workload]:
    """Return the workloads whose pods take a Secret of these names."""
    found = []
    for api_version, kind, template_at in _WORKLOADS:
        for document in api.list(api_version, kind, namespace):
            key = ObjectKey(api_version, kind, namespace, str(document["metadata"]["name"]))
            workload = Workload(key, document, template_at)
            if any(names(name) for name in secrets_of(workload.pod_spec)):
                found.append(workload)
    return found


def pods_of(api: KubernetesApi, namespace: str, names: Names) -> list[dict[str, Any]]:
    """Return the pods that hold a Secret of these names now, those that are ending among them."""
    return [
        pod
        for pod in api.list("v1", "Pod", namespace)
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        and any(names(name) for name in secrets_of(pod.get("spec") or {}))
    ]


def repoint(api: KubernetesApi, namespace: str, old: Names, new: str) -> list[str]:
    """Let every workload that takes an old Secret take the new one; a rollout follows by itself."""
    changed = []
    for workload in workloads_of(api, namespace, old):

        def patch(current: Workload) -> dict[str, Any] | None:
            spec = copy.deepcopy(current.pod_spec)
            places = [(w, f) for w, f in _references(spec, False) if old(str(w.get(f)))]
            for where, field in places:
                where[field] = new
            return current.template_patch({"spec": spec}) if places else None

        if _change(api, workload, patch):
            changed.append(workload.text)
    return changed


def annotate(
    api: KubernetesApi, namespace: str, names: Names, annotation: str, value: str
) -> list[str]:
    """Write an annotation on the pod templates that take a Secret, so that new pods come up."""
    changed = []
    for workload in workloads_of(api, namespace, names):

        def patch(current: Workload) -> dict[str, Any] | None:
            template: Any = current.document
            for part in current.template_at:
                template = template.get(part) or {}
            held = (template.get("metadata") or {}).get("annotations") or {}
            if held.get(annotation) == value:
                return None
            return current.template_patch({"metadata": {"annotations": {annotation: value}}})

        if _change(api, workload, patch):
            changed.append(workload.text)
    return changed


def _change(
    api: KubernetesApi, workload: Workload, patch: Callable[[Workload], dict[str, Any] | None]
) -> bool:
    """Apply a patch to the workload as it is now; controllers write statuses all the time."""
    current = workload
    for attempt in range(ATTEMPTS_AT_CONFLICT):
        body = patch(current)
        if body is None:
            return False
        try:
            api.merge(current.key, body, FIELD_MANAGER)
            return True
        except NotFound:
            return False
        except Conflict:
            time.sleep(POLL_SECONDS * attempt)
        try:
            current = Workload(current.key, api.get(current.key), current.template_at)
        except NotFound:
            return False
    raise Unreachable(
        f"Unable to change {workload.text}: others changed it {ATTEMPTS_AT_CONFLICT} times "
        "meanwhile. Find who writes it, then run again."
    )


def rollout_state(workload: Workload) -> tuple[bool, str]:
    """Tell whether every pod is of the current template and available, and what is missing."""
    status = workload.document.get("status") or {}
    generation = workload.document["metadata"].get("generation", 0)
    if workload.key.kind == "CronJob":
        return True, "its next job takes it"
    if status.get("observedGeneration", 0) < generation:
        return False, "its controller has not seen the change yet"
    if workload.key.kind == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        updated = status.get("updatedNumberScheduled", 0)
        available, present = status.get("numberAvailable", 0), wanted
    else:
        wanted = (workload.document.get("spec") or {}).get("replicas", 1)
        updated, present = status.get("updatedReplicas", 0), status.get("replicas", 0)
        available = status.get("availableReplicas", 0)
    if wanted and workload.key.kind == "StatefulSet":
        updated = min(updated, wanted if _has_one_revision(status) else 0)
    is_done = updated == wanted and present == wanted and available == wanted
    return is_done, f"{updated} of {wanted} updated, {available} available, {present} present"


def _has_one_revision(status: Mapping[str, Any]) -> bool:
    return status.get("currentRevision") == status.get("updateRevision")


PodTest = Callable[[Mapping[str, Any]], bool]


def look(
    api: KubernetesApi,
    namespace: str,
    names: Names,
    is_on_new: PodTest,
    is_template_on_new: Callable[[Workload], bool],
) -> list[Seen]:
    """Look at every consumer once: workloads by their rollout, and each pod that is not there."""
    seen = []
    for workload in workloads_of(api, namespace, names):
        is_done, detail = rollout_state(workload)
        if not is_template_on_new(workload):
            is_done, detail = False, "its pod template has the old version"
        seen.append(Seen(workload.text, is_done, detail))
    for pod in pods_of(api, namespace, names):
        if not is_on_new(pod):
            meta = pod["metadata"]
            detail = "is ending" if meta.get("deletionTimestamp") else "runs with the old version"
            if not meta.get("ownerReferences"):
                detail += "; it stands alone and must be made anew by hand"
            seen.append(Seen(f"Pod {namespace}/{meta['name']}", False, detail))
    return seen


def wait_until_all(look_once: Callable[[], Sequence[Seen]], timeout_seconds: float) -> None:
    """Look again and again until every consumer is where it should be.

    Raises:
        Unreachable: naming those that are not, after the time.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        missing = [seen for seen in look_once() if not seen.is_on_new]
        if not missing:
            return
        if time.monotonic() > deadline:
            told = "; ".join(f"{seen.consumer}: {seen.detail}" for seen in missing[:5])
            raise Unreachable(
                f"Unable to see {len(missing)} consumers back within {timeout_seconds:.0f} s: "
                f"{told}. Look at their events."
            )
        time.sleep(POLL_SECONDS)
