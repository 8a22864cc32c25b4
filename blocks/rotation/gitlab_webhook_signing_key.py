"""Keys that GitLab signs a project's webhook with, and the gateway believes.

Why it exists: whoever has the key can have applications onboarded and deployed. Promises that both
keys count from before GitLab gets the new one until after it has it, so that no delivery is
refused; and that the old key is dead when the gateway itself says so. Refuses a project that is not
connected: `connect-project` makes the first key. GitLab never shows a key again, so what it signs
with is seen by a delivery that it makes when asked.

Parameters: those of `gitlab_projects`; `gateway_url`, where the gateway answers; `gateway_ca_file`.
The secret's path is the one that the gateway reads, `webhooks/<environment>/gitlab/<project id>`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from blocks.gitlab_events import Hook, WantedHook
from blocks.gitlab_server import GitLabSession
from blocks.openbao import OpenBaoSession
from blocks.rotation.classes import RotationClass
from blocks.rotation.gitlab_projects import PARAMETERS, GitLabProjects, project_id
from blocks.rotation.secret_parameters import parameters
from blocks.webhook_secrets import replacement_path
from blocks.webhook_sender import deliver
from domain.errors import LifecycleError, NotFound, Unauthorized
from domain.rotation.contract import Proof, SecretRef, Seen, Values
from domain.webhooks.signatures import encoded_key

KEY_BYTES = 32
KEY, PREVIOUS = "signing_key", "previous"
TEST_KIND = "infraflows_test"
"""An event from which nothing follows."""
TEST_SECONDS, TEST_PAUSE_SECONDS = 12.0, 1.0
"""The gateway reads a key anew when it does not believe, though not more often than each 2 s."""


class GitLabWebhookSigningKey:
    """Signing keys of one GitLab's webhooks."""

    kind = "gitlab-webhook-signing-key"
    has_overlap = True

    def __init__(self, projects: GitLabProjects, bao: OpenBaoSession) -> None:
        """Take the way to a secret's project, and to what the gateway reads."""
        self._projects = projects
        self._bao = bao

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make a key; nobody knows it yet."""
        if current is None:
            raise NotFound(
                f"Unable to replace {secret.path}: there is no key. Connect the project first."
            )
        kept = {name: text for name, text in current.items() if name != PREVIOUS}
        return {**kept, KEY: encoded_key(secrets.token_bytes(KEY_BYTES))}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Have the gateway believe both."""
        both = {KEY: new[KEY]}
        if current is not None and current.get(KEY):
            both[PREVIOUS] = current[KEY]
        self._bao.write(replacement_path(secret.path), both)

    def test(self, secret: SecretRef, new: Values) -> None:
        """Deliver something that is signed with it."""
        deadline = time.monotonic() + TEST_SECONDS
        while True:
            try:
                return _deliver(secret, new[KEY])
            except Unauthorized:
                if time.monotonic() > deadline:
                    raise
            time.sleep(TEST_PAUSE_SECONDS)

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Write it to GitLab's webhook, whose other settings stay."""
        with self._projects.administrator(secret) as gitlab:
            hook = _hook(gitlab, secret)
            wanted = WantedHook(hook.url, hook.events, hook.name, hook.branch_filter)
            gitlab.ensure_hook(project_id(secret), wanted, new[KEY])
        if self._replacement(secret) == {KEY: new[KEY]}:
            # The old one is dead already, and the path holds the new one.
            self._bao.delete(replacement_path(secret.path))

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Have GitLab make a delivery, and see whether the gateway believes it."""
        with self._projects.administrator(secret) as gitlab:
            hook = _hook(gitlab, secret)
            try:
                gitlab.enable_hook(project_id(secret), hook.hook_id)
            except LifecycleError as error:
                return [Seen("webhook of GitLab", False, type(error).__name__)]
        return [Seen("webhook of GitLab", hook.has_signing_token)]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Have the gateway believe the new one only."""
        replacement = self._replacement(secret)
        if replacement.get(PREVIOUS) != old[KEY]:
            return
        if self._bao.read(secret.path).get(KEY) == old[KEY]:
            # After a leak it dies before GitLab has the new one.
            self._bao.write(replacement_path(secret.path), {KEY: replacement[KEY]})
        else:
            self._bao.delete(replacement_path(secret.path))

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Deliver something that is signed with the old key."""
        method = "delivery signed with the old key"
        try:
            _deliver(secret, old[KEY])
        except Unauthorized:
            return Proof(True, method, "HTTP 401")
        return Proof(False, method, "accepted")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Have the gateway believe what the path says, and nothing besides."""
        self._bao.delete(replacement_path(secret.path))

    def _replacement(self, secret: SecretRef) -> dict[str, str]:
        try:
            return self._bao.read(replacement_path(secret.path))
        except NotFound:
            return {}


def _address(secret: SecretRef) -> str:
    (url,) = parameters(secret, "gateway_url")
    return f"{url.rstrip('/')}/gitlab"


def _hook(gitlab: GitLabSession, secret: SecretRef) -> Hook:
    address = _address(secret)
    for hook in gitlab.hooks(project_id(secret)):
        if hook.url == address:
            return hook
    raise NotFound(
        f"Unable to find the webhook of project {project_id(secret)}: none leads to {address}. "
        "Connect the project."
    )


def _deliver(secret: SecretRef, key: str) -> None:
    deliver(
        _address(secret),
        secret.parameters.get("gateway_ca_file", ""),
        key,
        {"object_kind": TEST_KIND, "project_id": project_id(secret)},
        f"deliver a test to the gateway for {secret.path}",
    )


CLASS = RotationClass(
    kind=GitLabWebhookSigningKey.kind,
    make=lambda site: GitLabWebhookSigningKey(GitLabProjects(site.session.read), site.session),
    has_overlap=True,
    observed="a delivery that GitLab makes when asked is believed",
    proved_dead="delivery signed with the old key: 401 by the gateway",
    parameters=(*PARAMETERS, "gateway_url"),
    optional=("ca_file", "gateway_ca_file"),
)
"""How the registry knows it."""
