"""What a rotation run wants to know before it plans, gathered without changing anything.

Promises every problem at once: a policy that cannot be followed, a path that is not there, a system
that does not answer, each with its fix. Values are read only to look for them in a leaked commit,
inside one task, and leave it never.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import yaml
from prefect import task

from blocks.git_commit_text import found_in
from blocks.git_repository import git_repository
from blocks.openbao import OpenBaoSession, openbao
from blocks.openbao_versions import VersionedSecrets, moment
from blocks.rotation.access import OpenBaoAccess
from blocks.rotation.consumer_search import consumers
from blocks.rotation.registry import CLASSES, check_secrets, rotation_class
from blocks.rotation.site import RotationSite
from blocks.rotation.store import RotationStore
from domain.errors import InvalidSpec, LifecycleError, NotFound, Unreachable
from domain.findings import Finding, error, ok, warning
from domain.rotation.age import ISSUED_AT, value_time
from domain.rotation.blast_radius import AccessFacts, Leak, LeakKind
from domain.rotation.contract import KeepsCurrent, SecretRef
from domain.rotation.policy import RotationPolicy, SecretRule, parse_policy
from domain.rotation.policy_fields import wildcards
from domain.rotation.schedule import SecretFact
from domain.rotation.state import RotationState
from tasks.retry_rules import TEMPORARY

Found = TypeVar("Found")

POLICY_FILE = "rotation/policy.yaml"
READS_OF_DAYS = 7
"""How far back the audit log is asked who read a secret."""
PATH_PARAMETERS = ("admin_path", "kubeconfig_path", "host_keys_path")


@dataclass(frozen=True)
class Surroundings:
    """What was found before anything is planned."""

    findings: tuple[Finding, ...]
    policy: RotationPolicy | None = None
    policy_commit: str = ""
    paths: tuple[str, ...] = ()
    """Every path that a rule names and that there is."""


@dataclass(frozen=True)
class SecretFacts:
    """What is known about the secrets of a run."""

    facts: tuple[SecretFact, ...]
    unknown: tuple[str, ...] = ()
    """What could not be found out, and why."""


def classes_that_ask() -> frozenset[str]:
    """Return the classes of which each rotation needs a person's approval."""
    return frozenset(each.kind for each in CLASSES if each.needs_approval)


@task(name="look at OpenBao and the policy", tags=["system:openbao", "system:git"], **TEMPORARY)
def look_around(environment: str) -> Surroundings:
    """Read the policy and look whether it can be followed."""
    server = openbao(environment)
    try:
        health = server.health()
    except Unreachable as problem:
        return Surroundings((error("OpenBao", str(problem), ""),))
    if health.is_sealed or not health.is_initialized:
        fix = "Unseal it: bao operator unseal"
        return Surroundings((error("OpenBao", f"{server.address} is sealed", fix),))
    findings = [ok("OpenBao", f"version {health.version}, unsealed")]
    try:
        with server.session() as bao:
            policy, commit = _policy(environment, bao, findings)
            if policy is None:
                return Surroundings(tuple(findings))
            if not bao.has_transit_key(server.rotation_key):
                key = f"{server.transit_mount}/keys/{server.rotation_key}"
                findings.append(error("OpenBao", f"there is no {key}", "Create it"))
            findings += _of_classes(policy)
            paths = _paths(environment, bao, policy, findings)
    except LifecycleError as problem:
        findings.append(error("OpenBao", str(problem), ""))
        return Surroundings(tuple(findings))
    return Surroundings(tuple(findings), policy, commit, tuple(paths))


def _policy(
    environment: str, bao: OpenBaoSession, findings: list[Finding]
) -> tuple[RotationPolicy | None, str]:
    """Read the policy at the head of the infrastructure repository."""
    repository = git_repository(environment)
    where = f"{POLICY_FILE} in {repository.url}"
    try:
        with repository.session(bao.read(repository.credential)) as session:
            commit = session.head()
            text = session.read_file(POLICY_FILE, commit)
        policy = parse_policy(yaml.safe_load(text), [each.kind for each in CLASSES], where)
    except NotFound as problem:
        findings.append(error("policy", str(problem), "See docs/rotate-secrets.md"))
    except yaml.YAMLError as problem:
        place = getattr(problem, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        findings.append(error("policy", f"{where} is not YAML{line}", "Correct it"))
    except InvalidSpec as problem:
        findings += [error("policy", each, "") for each in problem.problems]
    except LifecycleError as problem:
        findings.append(error("Git", str(problem), ""))
    else:
        findings.append(ok("policy", f"{len(policy.secrets)} rules, commit {commit[:12]}"))
        return policy, commit
    return None, ""


def _of_classes(policy: RotationPolicy) -> Iterator[Finding]:
    """Yield what a class misses in its rules; each rule once, not each of its secrets."""
    try:
        check_secrets(
            SecretRef(rule.path, rule.kind, rule.environment, rule.parameters)
            for rule in policy.secrets
        )
    except InvalidSpec as problem:
        for each in problem.problems:
            yield error("policy", each, "")


def _paths(
    environment: str, bao: OpenBaoSession, policy: RotationPolicy, findings: list[Finding]
) -> list[str]:
    """Return the paths under the rules; what is named and missing is a finding."""
    listed: set[str] = set()
    for prefix in _prefixes(policy):
        listed |= {path.strip("/") for path in bao.names_under(prefix)}
    found = {path for path in listed if policy.resolve(path) is not None}
    for rule in policy.secrets:
        if wildcards(rule.path):
            if not any(_is_under(policy, rule, path) for path in found):
                findings.append(
                    warning("policy", f"no secret lies under {rule.path}", "Correct the pattern")
                )
        elif rule.path in listed or _is_kept_elsewhere(environment, bao, rule):
            found.add(rule.path)
        else:
            findings.append(
                error(rule.path, "there is no such secret", "Write it, or correct the rule's path")
            )
    findings += _missing_parameters(bao, policy)
    findings.append(ok("secrets", f"{len(found)} paths under the policy's rules"))
    return sorted(found)


def _is_under(policy: RotationPolicy, rule: SecretRule, path: str) -> bool:
    ruled = policy.resolve(path)
    # Rules are told apart by what they make of a path.
    return ruled is not None and (ruled.secret.kind, ruled.secret.environment) == (
        rule.kind,
        rule.environment,
    )


def _prefixes(policy: RotationPolicy) -> list[str]:
    """Return the directories that hold all paths of all rules, without one inside another."""
    wanted = set()
    for rule in policy.secrets:
        segments = rule.path.split("/")
        whole = [n for n, segment in enumerate(segments) if "*" in segment]
        end = whole[0] if whole else len(segments) - 1
        wanted.add("/".join(segments[:end]))
    return sorted(
        one
        for one in wanted
        if not any(one != other and f"{one}/".startswith(f"{other}/") for other in wanted if other)
        and not ("" in wanted and one)
    )


def _is_kept_elsewhere(environment: str, bao: OpenBaoSession, rule: SecretRule) -> bool:
    """True when the class reads the value from its system and not from the path."""
    with suppress(LifecycleError):
        adapter = rotation_class(rule.kind).make(RotationSite(environment, bao))
        return isinstance(adapter, KeepsCurrent)
    return False


def _missing_parameters(bao: OpenBaoSession, policy: RotationPolicy) -> Iterator[Finding]:
    """Yield the OpenBao paths that rules name in parameters and that hold nothing."""
    named = {
        (rule.parameters[name], name)
        for rule in policy.secrets
        for name in PATH_PARAMETERS
        if name in rule.parameters and "{" not in rule.parameters[name]
    }
    for path, name in sorted(named):
        try:
            bao.read(path)
        except NotFound:
            yield error(path, f"the {name} of a rule holds nothing", "Write it, or correct it")
        except LifecycleError as problem:
            yield error(path, str(problem), "")


@task(name="gather the secrets' facts", tags=["system:openbao"], **TEMPORARY)
def gather_secret_facts(
    environment: str, policy: RotationPolicy, paths: Sequence[str]
) -> SecretFacts:
    """Return age, record and consumers of every path."""
    unknown: list[str] = []
    with openbao(environment).session() as bao:
        states = RotationStore(bao, environment).states()
        secrets = [ruled.secret for path in paths if (ruled := policy.resolve(path))]
        since = datetime.now(UTC) - timedelta(days=READS_OF_DAYS)
        reads = _told(lambda: OpenBaoAccess(bao).reads(since), unknown)
        files = _told(lambda: _files(environment, bao), unknown)
        users = consumers(bao, secrets, reads or (), since, files or {}, unknown)
        versions = VersionedSecrets(bao)
        facts = [
            SecretFact(
                secret.path,
                _last_rotated(versions, secret.path, states.get(secret.secret_id)),
                tuple(each.label for each in users.get(secret.path, ())),
                states.get(secret.secret_id),
            )
            for secret in secrets
        ]
    return SecretFacts(tuple(facts), tuple(unknown))


def _told(look: Callable[[], Found], unknown: list[str]) -> Found | None:
    try:
        return look()
    except LifecycleError as problem:
        unknown.append(str(problem))
        return None


def _files(environment: str, bao: OpenBaoSession) -> dict[str, str]:
    repository = git_repository(environment)
    with repository.session(bao.read(repository.credential)) as session:
        return session.whole_tree(session.head())


def _last_rotated(
    versions: VersionedSecrets, path: str, state: RotationState | None
) -> datetime | None:
    metadata = versions.metadata(path)
    times = [
        time
        for entry in (metadata.get("versions") or {}).values()
        if (time := moment(str(entry.get("created_time") or "")))
    ]
    custom = metadata.get("custom_metadata") or {}
    return value_time(state, times, str(custom.get(ISSUED_AT) or ""))


@task(name="gather who can read what", tags=["system:openbao"], **TEMPORARY)
def gather_access_facts(
    environment: str, policy: RotationPolicy, leak: Leak
) -> tuple[Leak, AccessFacts, tuple[str, ...]]:
    """Return the leak with what the systems add to it, the facts, and what stays unknown."""
    with openbao(environment).session() as bao:
        access = OpenBaoAccess(bao)
        unknown = access.unknown
        records = f"rotation/{environment}/"
        listed = _told(lambda: bao.names_under(""), unknown)
        if listed is None:
            listed = [path for prefix in _prefixes(policy) for path in bao.names_under(prefix)]
        # The engine's own records are no secrets of anybody: a rotation empties them itself.
        paths = [path.strip("/") for path in listed if not path.strip("/").startswith(records)]
        secrets = [ruled.secret for path in paths if (ruled := policy.resolve(path))]
        since = datetime.now(UTC) - timedelta(days=READS_OF_DAYS)
        reads = tuple(_told(lambda: access.reads(since), unknown) or ())
        files = _told(lambda: _files(environment, bao), unknown) or {}
        hashed: dict[str, str] = {}
        facts = AccessFacts(
            paths=tuple(paths),
            mount=bao.server.kv_mount,
            policies=access.policies(),
            holders=tuple(access.holders(reads, hashed)),
            opens=access.opens(secrets),
            reads=reads,
            consumers=consumers(bao, secrets, reads, since, files, unknown),
        )
        if leak.kind is LeakKind.ACCESSOR:
            leak = replace(leak, accessor_hash=access.hashed(leak.value))
        if leak.kind is LeakKind.COMMIT:
            leak = replace(leak, found_paths=tuple(_in_commit(environment, bao, leak, paths)))
    return leak, facts, tuple(unknown)


def _in_commit(
    environment: str, bao: OpenBaoSession, leak: Leak, paths: Sequence[str]
) -> list[str]:
    """Return the paths whose values stand in the commit; the values stay in here."""
    values = {}
    for path in paths:
        with suppress(LifecycleError):
            values[path] = bao.read(path)
    repository = git_repository(environment)
    with repository.session(bao.read(repository.credential)) as session:
        return found_in(session, leak.value, values)
