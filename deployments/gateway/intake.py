"""The first half: who sent a delivery, and is it on disk. Nothing else happens before the answer.

Promises that nothing unproved has an effect, that 2xx means stored, that a fault of ours is 503 so
that the sender tries again, and that no answer repeats anything of what was sent. An unknown
project is answered as any other path would be: with nothing to learn from it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from blocks.delivery_store import DeliveryStore
from deployments.gateway.metrics import Metrics
from deployments.gateway.ports import SecretReader
from deployments.gateway.secret_cache import SecretCache
from deployments.gateway.settings import (
    Limits,
    alertmanager_secrets_path,
    gitlab_secrets_path,
)
from domain.errors import LifecycleError, NotFound
from domain.webhooks.delivery import (
    ALERTMANAGER,
    GITLAB,
    DeliveryState,
    NewDelivery,
    gitlab_lane,
)
from domain.webhooks.gitlab_events import (
    Ignored,
    MalformedEvent,
    encoded,
    meaning,
    project_id,
    read_document,
)
from domain.webhooks.rate_limit import RateLimit
from domain.webhooks.signatures import (
    Headers,
    Refusal,
    Verdict,
    WebhookSecrets,
    unsigned_key,
    verify,
    webhook_secrets,
)

log = logging.getLogger("infraflows.gateway")

RENEW_AFTER_SECONDS = 2.0
"""A signature that is wrong by secrets older than this may be right by newer ones."""
ALERT_WINDOW_SECONDS = 60.0
"""Alertmanager repeats what still burns, word for word: only within this it is the same one."""
_EVENT_NAME = re.compile(r"[a-z_]{1,64}")


@dataclass(frozen=True)
class Answer:
    """What is answered; the text is one of ours."""

    status: int
    outcome: str
    text: str
    retry_after_seconds: int = 0


STORED = Answer(202, "stored", "stored")
DUPLICATE = Answer(200, "duplicate", "known already")
IGNORED = Answer(200, "ignored", "stored; nothing follows from it")
MALFORMED = Answer(400, "malformed", "not an event that can be read")
UNPROVED = Answer(401, "unproved", "the sender is not proved")
UNKNOWN = Answer(404, "unknown", "not found")
TOO_LARGE = Answer(413, "too_large", "the body is too large")
UNAVAILABLE = Answer(503, "unavailable", "not stored; try again", retry_after_seconds=5)


def _too_many(seconds: float) -> Answer:
    wait = max(1, min(3600, math.ceil(seconds)))
    return Answer(429, "too_many", "too many deliveries; wait", retry_after_seconds=wait)


@dataclass(frozen=True)
class Credential:
    """What Alertmanager proves itself with: a bearer token, or basic authentication."""

    expected: bytes = field(repr=False)


def alertmanager_credential(values: Mapping[str, str]) -> Credential:
    """Return the expected `Authorization` of an OpenBao path.

    Raises:
        ValueError: there is none in it.
    """
    if token := values.get("token"):
        return Credential(f"bearer {token}".encode())
    if (username := values.get("username")) and (password := values.get("password")):
        return Credential(f"basic {username}:{password}".encode())
    raise ValueError("holds neither token nor username and password")


class Intake:
    """Takes deliveries of one gateway."""

    def __init__(
        self,
        environment: str,
        store: DeliveryStore,
        secrets: SecretReader,
        clock: Callable[[], float],
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; `wake` is called for each delivery that is to be acted on."""
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.clock = clock
        self._environment = environment
        self._store = store
        self._wake = wake
        timeout_seconds = self.limits.secrets_seconds
        self._projects = SecretCache[WebhookSecrets](
            secrets, webhook_secrets, clock, timeout_seconds
        )
        self._alertmanager = SecretCache[Credential](
            secrets, alertmanager_credential, clock, timeout_seconds
        )
        self._by_source = RateLimit(self.limits.source_rate)
        self._by_project = RateLimit(self.limits.project_rate)
        self._lookups = RateLimit(self.limits.lookup_rate)

    def close(self) -> None:
        """Let threads go."""
        self._projects.close()
        self._alertmanager.close()

    def admit(self, address: str) -> Answer | None:
        """Return a refusal when an address sends too much; asked before the body is read."""
        wait = self._by_source.seconds_to_wait(address, self.clock())
        return _too_many(wait) if wait else None

    # --- GitLab ------------------------------------------------------------------------------

    async def gitlab(self, address: str, headers: Headers, body: bytes) -> Answer:
        """Take a delivery of GitLab."""
        try:
            document = read_document(body)
            project = project_id(document)
        except MalformedEvent:
            return MALFORMED
        path = gitlab_secrets_path(self._environment, project)
        if not self._projects.is_at_hand(path):
            wait = self._lookups.seconds_to_wait(address, self.clock())
            if wait:
                return _too_many(wait)
        try:
            verdict = await self._judged(path, headers, body)
        except NotFound:
            return UNKNOWN
        except LifecycleError as error:
            log.warning("project %d: %s", project, error)
            return UNAVAILABLE
        if verdict.proof is None:
            return self._unproved(GITLAB, verdict.refusal or Refusal.NO_PROOF, f"project {project}")
        wait = self._by_project.seconds_to_wait(str(project), self.clock())
        if wait:
            return _too_many(wait)
        try:
            means = meaning(document)
        except MalformedEvent:
            return MALFORMED
        is_ignored = isinstance(means, Ignored)
        new = NewDelivery(
            source=GITLAB,
            lane=gitlab_lane(project),
            key=verdict.key,
            event=_name(document.get("object_kind")),
            content=encoded(means),
            received_at=self.clock(),
            state=DeliveryState.IGNORED if is_ignored else DeliveryState.PENDING,
            reason=means.reason if isinstance(means, Ignored) else "",
        )
        return await self._stored(new)

    async def _judged(self, path: str, headers: Headers, body: bytes) -> Verdict:
        secrets = await self._projects.get(path)
        verdict = verify(headers, body, secrets, self.clock())
        wrong = (Refusal.BAD_SIGNATURE, Refusal.BAD_TOKEN, Refusal.NO_PROOF)
        if verdict.refusal in wrong and self._projects.age(path) > RENEW_AFTER_SECONDS:
            # The secret may have been changed a moment ago.
            secrets = await self._projects.get(path, is_anew=True)
            verdict = verify(headers, body, secrets, self.clock())
        return verdict

    # --- Alertmanager ------------------------------------------------------------------------

    async def alertmanager(self, address: str, headers: Headers, body: bytes) -> Answer:
        """Take a notification of Alertmanager."""
        path = alertmanager_secrets_path(self._environment)
        if not self._alertmanager.is_at_hand(path):
            wait = self._lookups.seconds_to_wait(address, self.clock())
            if wait:
                return _too_many(wait)
        try:
            credential = await self._alertmanager.get(path)
            is_proved = _has_credential(headers, credential)
            if not is_proved and self._alertmanager.age(path) > RENEW_AFTER_SECONDS:
                credential = await self._alertmanager.get(path, is_anew=True)
                is_proved = _has_credential(headers, credential)
        except NotFound:
            return UNKNOWN
        except LifecycleError as error:
            log.warning("alertmanager: %s", error)
            return UNAVAILABLE
        if not is_proved:
            return self._unproved(ALERTMANAGER, Refusal.BAD_TOKEN, "alertmanager")
        try:
            document = read_document(body)
        except MalformedEvent:
            return MALFORMED
        if not isinstance(document.get("alerts"), list):
            return MALFORMED
        now = self.clock()
        given = [value for name, value in headers if name == "idempotency-key"]
        key = unsigned_key(given[0] if given else None, body)
        if key.startswith("body:"):
            key += f":{int(now // ALERT_WINDOW_SECONDS)}"
        digest = hashlib.sha256(str(document.get("groupKey")).encode()).hexdigest()[:16]
        new = NewDelivery(
            source=ALERTMANAGER,
            lane=f"{ALERTMANAGER}/{digest}",
            key=key,
            event=_name(document.get("status")),
            content=body.decode("utf-8", "replace"),
            received_at=now,
        )
        return await self._stored(new)

    # --- both --------------------------------------------------------------------------------

    def _unproved(self, source: str, refusal: Refusal, who: str) -> Answer:
        self.metrics.refusals.labels(source, refusal.value).inc()
        log.info("%s: not believed: %s", who, refusal.value)
        return UNPROVED

    async def _stored(self, new: NewDelivery) -> Answer:
        try:
            is_new = await self._store.put(new)
        except LifecycleError as error:
            log.error("%s", error)
            return UNAVAILABLE
        if not is_new:
            return DUPLICATE
        if new.state is DeliveryState.IGNORED:
            return IGNORED
        self._wake()
        return STORED


def _name(given: object) -> str:
    """Return what a sender calls its event, if that is a word; it is for people only."""
    return given if isinstance(given, str) and _EVENT_NAME.fullmatch(given) else "unknown"


def _has_credential(headers: Headers, credential: Credential) -> bool:
    given = [value for name, value in headers if name == "authorization"]
    if len(given) != 1:
        return False
    scheme, _, rest = given[0].partition(" ")
    shown = b""
    if scheme.lower() == "bearer":
        shown = b"bearer " + rest.encode()
    elif scheme.lower() == "basic":
        try:
            shown = b"basic " + base64.b64decode(rest, validate=True)
        except (binascii.Error, ValueError):
            return False
    return hmac.compare_digest(shown, credential.expected)
