"""Applying a set of manifests in the order in which they need each other.

Promises that a wave begins only when what it needs is there and served, that every object of a
wave is tried even if one fails, and one error that names all that failed. Refuses to go on to the
next wave after a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from blocks.kubernetes_api import KubernetesApi
from domain.apply_reports import AppliedObject, ApplyReport
from domain.errors import LifecycleError, PermanentError, TemporaryError, Unreachable
from domain.manifest_order import DEFINITION_KIND, Manifest, Wave, key_of, waves

PARALLEL_REQUESTS = 4
"""More gain nothing: the API server's processors are what takes the time."""

NAMESPACE_SECONDS = 60.0
DEFINITION_SECONDS = 120.0

Progress = Callable[[int, int], None]
"""Told after each wave: objects applied, objects in all."""


def apply_manifests(
    api: KubernetesApi,
    manifests: Iterable[Manifest],
    revision: str = "",
    on_progress: Progress = lambda _done, _total: None,
) -> ApplyReport:
    """Apply everything and wait for what later waves need.

    Raises:
        InvalidSpec: the manifests are wrong in themselves; nothing was applied.
        Unreachable: the API server did not serve; nothing is lost, apply again.
        PermanentError: objects were refused; names all of that wave.
    """
    began = time.monotonic()
    ordered = waves(manifests)
    total = sum(len(wave.objects) for wave in ordered)
    applied: list[AppliedObject] = []
    with ThreadPoolExecutor(PARALLEL_REQUESTS, thread_name_prefix="apply") as pool:
        for wave in ordered:
            applied += _apply_wave(api, wave, pool)
            _wait_for_wave(api, wave)
            on_progress(len(applied), total)
    return ApplyReport(tuple(applied), round(time.monotonic() - began, 3), revision)


def _apply_wave(api: KubernetesApi, wave: Wave, pool: ThreadPoolExecutor) -> list[AppliedObject]:
    def one(manifest: Manifest) -> AppliedObject | LifecycleError:
        try:
            return AppliedObject(key_of(manifest), api.apply(manifest))
        except LifecycleError as error:
            return error

    outcomes = list(pool.map(one, wave.objects))
    errors = [outcome for outcome in outcomes if isinstance(outcome, LifecycleError)]
    if errors:
        raise _joined(errors)
    return [outcome for outcome in outcomes if isinstance(outcome, AppliedObject)]


def _joined(errors: Sequence[LifecycleError]) -> LifecycleError:
    """One error for several; permanent as soon as one of them is."""
    if len(errors) == 1:
        return errors[0]
    lines = "\n".join(f"  - {error}" for error in errors)
    text = f"Unable to apply {len(errors)} objects. Each says why:\n{lines}"
    is_temporary = all(isinstance(error, TemporaryError) for error in errors)
    return Unreachable(text) if is_temporary else PermanentError(text)


def _wait_for_wave(api: KubernetesApi, wave: Wave) -> None:
    for manifest in wave.objects:
        key = key_of(manifest)
        if key.kind == "Namespace":
            api.wait_for(
                key,
                lambda document: document.get("status", {}).get("phase") == "Active",
                "active",
                NAMESPACE_SECONDS,
            )
        elif key.kind == DEFINITION_KIND:
            spec = manifest["spec"]
            served = (version["name"] for version in spec["versions"] if version.get("served"))
            for version in served:
                api.wait_until_served(
                    f"{spec['group']}/{version}", spec["names"]["kind"], DEFINITION_SECONDS
                )
