"""`.gitlab-ci.yml` as far as the stand-in runner needs it: stages, jobs, rules, environments.

Promises: what has an effect on which jobs there are is evaluated; what has none here (image, cache,
artifacts, ...) is accepted. Refuses by name what would change the pipeline and is not simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from lab.gitlab import ci_rules

DEFAULT_STAGES = [".pre", "build", "test", "deploy", ".post"]
_GLOBAL = {
    "stages", "variables", "workflow", "default", "image", "services", "cache", "before_script",
    "after_script", "spec",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "image", "services", "cache", "artifacts", "tags", "retry", "timeout", "interruptible",
    "dependencies", "coverage", "needs", "resource_group", "inherit", "id_tokens", "release",
    "after_script", "before_script",
}  # fmt: skip
_WITH_EFFECT = {
    "stage",
    "script",
    "when",
    "allow_failure",
    "rules",
    "environment",
    "variables",
    "extends",
}


class ConfigError(Exception):
    """The configuration is wrong, or uses what is not simulated."""


@dataclass
class Job:
    """One job that a pipeline has."""

    name: str
    stage: str
    when: str = "on_success"
    allow_failure: bool = False
    script: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    environment: str = ""
    environment_url: str = ""
    environment_action: str = "start"
    environment_tier: str = ""


@dataclass
class Config:
    """What a pipeline consists of."""

    stages: list[str]
    jobs: list[Job]


class _Loader(yaml.SafeLoader):
    """YAML with `!reference`, which points to another job's key."""


class _Reference(list[Any]):
    pass


def _reference(loader: yaml.SafeLoader, node: yaml.Node) -> _Reference:
    assert isinstance(node, yaml.SequenceNode)  # noqa: S101 - a reference is a list
    return _Reference(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("!reference", _reference)


def read(text: str, given: Mapping[str, str]) -> Config:
    """The stages and jobs of a pipeline with these variables."""
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader with one more tag
    except yaml.YAMLError as error:
        raise ConfigError(f"Invalid configuration format: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError("Invalid configuration format")
    if "include" in document:
        raise ConfigError("`include` is not simulated by the lab's GitLab")
    document = _resolved(document, document)
    variables = {**_variables(document.get("variables")), **given}
    if not _workflow_allows(document.get("workflow") or {}, variables):
        return Config([], [])
    stages = [
        ".pre",
        *[s for s in document.get("stages", DEFAULT_STAGES) if s not in (".pre", ".post")],
        ".post",
    ]
    jobs = []
    for name, body in document.items():
        if name in _GLOBAL or str(name).startswith("."):
            continue
        job = _job(str(name), _extended(document, str(name), body), document, variables, stages)
        if job is not None:
            jobs.append(job)
    if not any(
        isinstance(body, dict) and ("script" in body or "extends" in body)
        for body in document.values()
    ):
        raise ConfigError("jobs config should contain at least one visible job")
    jobs.sort(key=lambda job: stages.index(job.stage))
    used = {job.stage for job in jobs}
    return Config([stage for stage in stages if stage in used], jobs)


def _resolved(value: Any, document: dict[str, Any]) -> Any:
    """Replace `!reference [job, key]` by what it points to."""
    if isinstance(value, _Reference):
        found: Any = document
        for key in value:
            if not isinstance(found, dict) or key not in found:
                raise ConfigError(f"!reference {list(value)} could not be found")
            found = found[key]
        return _resolved(found, document)
    if isinstance(value, dict):
        return {key: _resolved(each, document) for key, each in value.items()}
    if isinstance(value, list):
        parts: list[Any] = []
        for each in value:
            resolved = _resolved(each, document)
            parts.extend(
                resolved
                if isinstance(each, _Reference) and isinstance(resolved, list)
                else [resolved]
            )
        return parts
    return value


def _extended(document: dict[str, Any], name: str, body: Any, depth: int = 0) -> dict[str, Any]:
    """A job with what it extends, hashes merged, the job's own keys last."""
    if not isinstance(body, dict):
        raise ConfigError(f"jobs:{name} config should be a hash")
    if depth > 11:
        raise ConfigError(f"{name}: nesting too deep in `extends`")
    parents = body.get("extends", [])
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        if parent not in document:
            raise ConfigError(f"{name}: unknown keys in `extends` ({parent})")
        merged = _merged(merged, _extended(document, parent, document[parent], depth + 1))
    return _merged(merged, body)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(both.get(key), dict):
            both[key] = _merged(both[key], value)
        else:
            both[key] = value
    return both


def _variables(given: Any) -> dict[str, str]:
    values = {}
    for key, value in (given or {}).items():
        plain = value.get("value", "") if isinstance(value, dict) else value
        values[str(key)] = str(plain).lower() if isinstance(plain, bool) else str(plain)
    return values


def _workflow_allows(workflow: dict[str, Any], variables: Mapping[str, str]) -> bool:
    if unknown := set(workflow) - {"rules", "name", "auto_cancel"}:
        raise ConfigError(f"`workflow:{sorted(unknown)[0]}` is not simulated by the lab's GitLab")
    if "rules" not in workflow:
        # A pipeline of a merge request needs jobs with rules; that is looked at job by job.
        return True
    rule = _matching(workflow["rules"], variables, "workflow")
    return rule is not None and rule.get("when", "always") != "never"


def _matching(rules: Any, variables: Mapping[str, str], where: str) -> dict[str, Any] | None:
    for rule in rules or []:
        if unknown := set(rule) - {"if", "when", "allow_failure", "variables"}:
            raise ConfigError(
                f"{where}: `rules:{sorted(unknown)[0]}` is not simulated by the lab's GitLab"
            )
        try:
            if "if" not in rule or ci_rules.is_true(str(rule["if"]), variables):
                return dict(rule)
        except ci_rules.RuleError as error:
            raise ConfigError(f"{where}: rules:if invalid expression syntax: {error}") from error
    return None


def _job(
    name: str,
    body: dict[str, Any],
    document: dict[str, Any],
    variables: Mapping[str, str],
    stages: list[str],
) -> Job | None:
    if unknown := set(body) - _WITH_EFFECT - _WITHOUT_EFFECT:
        raise ConfigError(
            f"jobs:{name}: `{sorted(unknown)[0]}` is not simulated by the lab's GitLab"
        )
    if "script" not in body:
        raise ConfigError(f"jobs:{name} config should implement the script: keyword")
    job = Job(name=name, stage=str(body.get("stage", "test")))
    if job.stage not in stages:
        raise ConfigError(
            f"{name} job: chosen stage {job.stage} does not exist; "
            f"available stages are {', '.join(stages)}"
        )
    job.when = str(body.get("when", "on_success"))
    is_optional = body.get("allow_failure", job.when == "manual")
    own = {**_variables(document.get("variables")), **_variables(body.get("variables"))}
    if "rules" in body:
        rule = _matching(body["rules"], {**own, **variables}, name)
        if rule is None:
            return None
        job.when = str(rule.get("when", job.when))
        is_optional = rule.get("allow_failure", body.get("allow_failure", False))
        own |= _variables(rule.get("variables"))
    elif variables.get("CI_PIPELINE_SOURCE") == "merge_request_event":
        return None
    if job.when == "never":
        return None
    if job.when not in ("on_success", "on_failure", "always", "manual"):
        raise ConfigError(f"jobs:{name}: `when: {job.when}` is not simulated by the lab's GitLab")
    job.allow_failure, job.variables = bool(is_optional), own
    job.script = _lines(body.get("before_script", document.get("before_script"))) + _lines(
        body["script"]
    )
    _set_environment(job, body.get("environment"))
    return job


def _lines(script: Any) -> list[str]:
    if script is None:
        return []
    if isinstance(script, str):
        return script.splitlines()
    return [line for each in script for line in _lines(each)]


def _set_environment(job: Job, given: Any) -> None:
    if isinstance(given, str):
        job.environment = given
    elif isinstance(given, dict):
        job.environment = str(given.get("name", ""))
        job.environment_url = str(given.get("url", ""))
        job.environment_action = str(given.get("action", "start"))
        job.environment_tier = str(given.get("deployment_tier", ""))
