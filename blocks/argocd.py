"""Argo CD, spoken to by the objects of its own namespace.

Why it exists: an Application's document holds all that a flow asks for or needs to know, so that no
second API, login or token is needed. Promises waits with an end, whose error lists the objects that
are not well; and operations that are asked for once, whatever was killed in between. Refuses to
apply anything itself: what runs comes from Git.
API: https://argo-cd.readthedocs.io/en/stable/operator-manual/application.yaml
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from blocks.kubernetes_api import KubernetesApi
from domain.errors import Conflict, NotFound, PermanentError, TemporaryError, Unreachable
from domain.manifest_order import ObjectKey
from domain.onboarding.argocd_state import (
    REFRESH_ANNOTATION,
    RESOURCES_FINALIZER,
    ApplicationState,
    application_state,
)

API_VERSION = "argoproj.io/v1alpha1"
MANAGER = "infraflows-delivery"
"""Owns what is asked of the controller, apart from what is declared."""

TLS_CERTIFICATES = "argocd-tls-certs-cm"
POLL_SECONDS = 0.5
ASK_AGAIN_SECONDS = 30.0
"""A refresh whose answer was not good enough is asked for again."""
ASK_AGAIN_UNKNOWN_SECONDS = 5.0
"""Where nothing could be compared: a login or a CA reaches Argo CD's pods later than it is set."""


class ArgoCd:
    """The Argo CD of one cluster."""

    def __init__(self, api: KubernetesApi, namespace: str = "argocd") -> None:
        """Speak through `api`, whose owner closes it."""
        self._api = api
        self.namespace = namespace

    def application_key(self, name: str) -> ObjectKey:
        """Return the identity of an Application."""
        return ObjectKey(API_VERSION, "Application", self.namespace, name)

    def project_key(self, name: str) -> ObjectKey:
        """Return the identity of an AppProject."""
        return ObjectKey(API_VERSION, "AppProject", self.namespace, name)

    def state(self, name: str) -> ApplicationState:
        """Return what an Application says of itself, with the images of its Deployments.

        Raises:
            NotFound: it does not exist.
        """
        return self._with_images(self._said(name))

    def _said(self, name: str) -> ApplicationState:
        return application_state(self._api.get(self.application_key(name)))

    def _with_images(self, state: ApplicationState) -> ApplicationState:
        """Ask the cluster: what the controller noted of images may be behind the rest."""
        images: list[str] = []
        for namespace, name in state.deployments:
            with suppress(NotFound):
                found = self._api.get(ObjectKey("apps/v1", "Deployment", namespace, name))
                containers = found["spec"]["template"]["spec"].get("containers") or []
                images += [str(container.get("image", "")) for container in containers]
        return replace(state, images=tuple(sorted(set(images))))

    # --- asking ------------------------------------------------------------------------------

    def refresh(self, name: str, *, is_hard: bool = False) -> None:
        """Ask the controller to look at the branch now; it takes the mark off when it has.

        A hard refresh believes nothing that was remembered of the repository, errors included.

        Raises:
            NotFound: the Application does not exist.
        """
        kind = "hard" if is_hard else "normal"
        patch = {"metadata": {"annotations": {REFRESH_ANNOTATION: kind}}}
        self._api.merge(self.application_key(name), patch, MANAGER)

    def start_sync(self, name: str, revision: str, requester: str = "infraflows") -> None:
        """Ask for one commit to be applied, with pruning; an equal operation is not asked twice.

        Raises:
            NotFound: the Application does not exist. Conflict: another operation is under way.
        """
        key = self.application_key(name)
        document = self._api.get(key)
        state = application_state(document)
        if state.is_operating:
            if state.operation_revision == revision or _asked_revision(document) == revision:
                return
            raise Conflict(
                f"Unable to sync {key.text} at {revision[:12]}: another operation is under way. "
                "Wait until it has ended, then run again."
            )
        spec = document.get("spec") or {}
        options = (spec.get("syncPolicy") or {}).get("syncOptions") or []
        operation = {
            "initiatedBy": {"username": requester, "automated": False},
            "sync": {"revision": revision, "prune": True, "syncOptions": options},
        }
        # The version makes two askers one: the second is told of a conflict and looks again.
        version = document["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "operation": operation}
        self._api.merge(key, patch, MANAGER)

    # --- waiting -----------------------------------------------------------------------------

    def wait_until_synced(
        self, name: str, revision: str, timeout_seconds: float
    ) -> ApplicationState:
        """Wait until an Application that syncs by itself runs a commit, or a later one, healthily.

        The branch only grows: what a refresh finds that was asked for after the commit was pushed
        is that commit or one after it.

        Raises:
            NotFound: it does not exist. PermanentError: Argo CD gave that commit up.
            Unreachable: it is not so in time; names every object that is not well.
        """
        before = self._read(name, None)
        if before is not None and before.has_failed_at(revision):
            # Argo CD tries a commit that it gave up no more by itself.
            self.start_sync(name, revision)
        asked_at: float | None = None

        def look(state: ApplicationState) -> bool:
            nonlocal asked_at
            now = time.monotonic()
            pause = ASK_AGAIN_SECONDS if state.is_compared else ASK_AGAIN_UNKNOWN_SECONDS
            is_due = asked_at is None or now - asked_at >= pause
            if is_due and not state.is_refreshing:
                self.refresh(name, is_hard=asked_at is not None and not state.is_compared)
                asked_at = now
                return False
            return asked_at is not None and state.is_well

        return self._wait(name, revision, timeout_seconds, look)

    def sync(self, name: str, revision: str, timeout_seconds: float) -> ApplicationState:
        """Apply one commit and wait until it runs healthily: for Applications without auto-sync.

        Raises:
            As `start_sync` and `wait_until_synced`.
        """
        deadline = time.monotonic() + timeout_seconds
        self._wait_until_compared(name, revision, timeout_seconds)
        self.start_sync(name, revision)

        def look(state: ApplicationState) -> bool:
            is_applied = state.operation == "Succeeded" and state.operation_revision == revision
            is_idle = not state.is_operating and not state.is_refreshing
            return is_applied and is_idle and state.health == "Healthy"

        return self._wait(name, revision, max(deadline - time.monotonic(), 1.0), look)

    def _wait_until_compared(self, name: str, revision: str, timeout_seconds: float) -> None:
        """An operation on what cannot be compared would be given up at once."""
        asked_at: float | None = None

        def look(state: ApplicationState) -> bool:
            nonlocal asked_at
            now = time.monotonic()
            is_due = asked_at is None or now - asked_at >= ASK_AGAIN_UNKNOWN_SECONDS
            if is_due and not state.is_refreshing:
                self.refresh(name, is_hard=asked_at is not None)
                asked_at = now
                return False
            return asked_at is not None and state.is_compared and not state.is_refreshing

        # What was given up before is no reason: the operation is yet to be asked for.
        self._wait(name, revision, timeout_seconds, look, is_given_up=False)

    def _read(self, name: str, last: ApplicationState | None) -> ApplicationState | None:
        """Return the state, or the last one in a moment without an answer."""
        try:
            return self._said(name)
        except TemporaryError:
            return last

    def _wait(
        self,
        name: str,
        revision: str,
        timeout_seconds: float,
        is_met: Callable[[ApplicationState], bool],
        *,
        is_given_up: bool = True,
    ) -> ApplicationState:
        deadline = time.monotonic() + timeout_seconds
        state: ApplicationState | None = None
        while True:
            state = self._read(name, state)
            if state is not None and self._is_met(is_met, state):
                return self._with_images(state)
            if is_given_up and state is not None and state.has_failed_at(revision):
                raise PermanentError(
                    f"Unable to deliver {name} at {revision[:12]}: {state.summary}. "
                    "Correct the manifests in the GitOps repository."
                )
            if time.monotonic() > deadline:
                said = state.summary if state else "no answer of the API server"
                raise Unreachable(
                    f"Unable to see {name} synced and healthy at {revision[:12]} within "
                    f"{timeout_seconds:.0f} s: {said}. Look at these objects and their events."
                )
            time.sleep(POLL_SECONDS)

    @staticmethod
    def _is_met(is_met: Callable[[ApplicationState], bool], state: ApplicationState) -> bool:
        try:
            return is_met(state)
        except TemporaryError:
            return False

    # --- leaving -----------------------------------------------------------------------------

    def delete_application(self, name: str) -> None:
        """Begin the end of an Application with all that it applied; absent is fine."""
        key = self.application_key(name)
        try:
            found = self._api.get(key)
            finalizers = list(found["metadata"].get("finalizers") or [])
            if RESOURCES_FINALIZER not in finalizers and not found["metadata"].get(
                "deletionTimestamp"
            ):
                patch = {"metadata": {"finalizers": [*finalizers, RESOURCES_FINALIZER]}}
                self._api.merge(key, patch, MANAGER)
        except NotFound:
            return
        # In the background: the controller deletes what belongs to it, not the garbage collector.
        self._api.delete(key, is_foreground=False)

    def wait_until_gone(self, names: Iterable[str], timeout_seconds: float) -> None:
        """Wait until Applications and all that they applied are gone.

        Raises:
            Unreachable: one is still there; names what holds it.
        """
        deadline = time.monotonic() + timeout_seconds
        for name in names:
            while True:
                try:
                    state = self._read(name, None)
                except NotFound:
                    break
                if time.monotonic() > deadline:
                    said = state.summary if state else "no answer of the API server"
                    raise Unreachable(
                        f"Unable to see the end of Application {self.namespace}/{name} within "
                        f"{timeout_seconds:.0f} s: {said}. Look whether Argo CD's controller runs "
                        "and which finalizers its objects have."
                    )
                time.sleep(POLL_SECONDS)

    # --- trust -------------------------------------------------------------------------------

    def trust_server(self, host: str, ca_pem: str) -> bool:
        """Have Argo CD trust a Git server's CA; True if that was news to it.

        Raises:
            NotFound: the cluster's platform has no Argo CD.
        """
        key = ObjectKey("v1", "ConfigMap", self.namespace, TLS_CERTIFICATES)
        data: dict[str, Any] = self._api.get(key).get("data") or {}
        if data.get(host) == ca_pem:
            return False
        self._api.merge(key, {"data": {host: ca_pem}}, MANAGER)
        return True


def _asked_revision(document: dict[str, Any]) -> str:
    """Return the commit of an operation that the controller has not begun."""
    return str(((document.get("operation") or {}).get("sync") or {}).get("revision") or "")
