"""The rotation policy as an operator writes it, and everything that can be wrong in it.

Promises that a policy that exists can be followed: every rule names a class that can be rotated
and an environment that has a place in the order, and two rules never claim the same pattern.
Which rule a secret falls under is decided here and nowhere else: the first that matches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from domain.errors import InvalidSpec
from domain.rotation.contract import SecretRef
from domain.rotation.policy_fields import (
    PLACEHOLDER,
    ClassPolicy,
    Day,
    SecretRule,
    SystemPolicy,
    Window,
    as_expression,
)
from domain.spec_fields import Name, SpecModel

__all__ = [
    "EXAMPLE",
    "ClassPolicy",
    "Day",
    "RotationPolicy",
    "Ruled",
    "SecretRule",
    "SystemPolicy",
    "Window",
    "parse_policy",
]

Model = TypeVar("Model", bound=SpecModel)


@dataclass(frozen=True)
class Ruled:
    """One secret with the rule that it falls under."""

    secret: SecretRef
    policy: ClassPolicy
    system: str
    parallel: int
    """Rotations at once on `system`."""


class RotationPolicy(SpecModel):
    """What is rotated, how often, when, and in which order."""

    environments: list[Name] = Field(
        default=["test", "staging", "production"],
        min_length=1,
        description="Order of the waves; a later one waits for the ones before.",
    )
    stop_after_failures: int = Field(
        default=1, ge=1, description="Failures in one environment that hold back the later ones."
    )
    classes: dict[str, ClassPolicy] = Field(min_length=1, description="How each class is rotated.")
    systems: dict[str, SystemPolicy] = Field(
        default_factory=dict, description="Limits of single systems."
    )
    secrets: list[SecretRule] = Field(min_length=1, description="Which secrets; first match wins.")

    def resolve(self, path: str) -> Ruled | None:
        """Return `path` as a secret under its rule, or None when no rule names it."""
        for rule in self.secrets:
            found = as_expression(rule.path).fullmatch(path)
            if found:
                return self._ruled(rule, path, found.groups())
        return None

    def _ruled(self, rule: SecretRule, path: str, parts: tuple[str, ...]) -> Ruled:
        given = {str(n): part for n, part in enumerate(parts, start=1)}
        given |= {"path": path, "name": path.rsplit("/", 1)[-1]}
        parameters = {
            name: PLACEHOLDER.sub(lambda found: given[found.group(1)], text)
            for name, text in rule.parameters.items()
        }
        secret = SecretRef(path, rule.kind, rule.environment, parameters)
        policy = self.classes[rule.kind]
        limit = self.systems.get(rule.system or "")
        return Ruled(
            secret, policy, rule.system or rule.kind, limit.parallel if limit else policy.parallel
        )


EXAMPLE: dict[str, Any] = {
    "environments": ["test", "staging", "production"],
    "stop_after_failures": 1,
    "classes": {
        "postgresql-alternating-users": {
            "max_age_days": 30,
            "spread_days": 5,
            "windows": [{"days": ["tue", "wed", "thu"], "from": "01:00", "to": "04:00"}],
            "parallel": 4,
            "jitter_seconds": 20,
            "revoke_first": True,
        },
        "kubernetes-secret": {"max_age_days": 90, "observe_deadline_seconds": 900},
    },
    "systems": {"db-1": {"parallel": 2}},
    "secrets": [
        {
            "path": "apps/*/database",
            "class": "postgresql-alternating-users",
            "environment": "production",
            "system": "db-1",
            "parameters": {
                "users": "{1}_a,{1}_b",
                "role": "{1}",
                "admin_path": "infraflows/production/db-1",
                "quiet_seconds": 5,
            },
        },
        {
            "path": "test/**",
            "class": "kubernetes-secret",
            "environment": "test",
            "parameters": {
                "kubeconfig_path": "clusters/test/kubeconfig",
                "namespace": "test",
                "name": "{name}",
            },
        },
    ],
}
"""A complete, right policy: the documentation's example."""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_LIMITS = {
    "greater_than_equal": ("is too small. Use {ge} or more", "ge"),
    "less_than_equal": ("is too large. Use {le} or less", "le"),
    "too_short": ("has too few entries. Give at least {min_length}", "min_length"),
    "string_too_short": ("is empty. Fill it in", "min_length"),
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "list": "a list",
    "bool": "true or false",
}


def _sentence(prefix: str, error: Mapping[str, Any]) -> str:
    """One sentence for one of pydantic's errors: field, value, what is wrong, the fix."""
    field = ".".join(str(part) for part in (prefix, *error["loc"]) if part != "")
    # What stands among the parameters may be a secret that does not belong there.
    kind = error["type"]
    shown = "the value" if "parameters" in error["loc"] else _shown(error["input"])
    if kind == "missing":
        return f"{field}: missing. Add it"
    if kind == "extra_forbidden":
        return f"{field}: is no field of a rotation policy. Remove it or correct its name"
    if kind == "agree":
        return f"{field}.{error['msg']}"
    if kind in ("in_clear", "placeholder"):
        return f"{field}: {error['msg']}"
    if kind in _LIMITS:
        template, key = _LIMITS[kind]
        return f"{field}: {shown} " + template.format(**{key: error["ctx"][key]})
    for start, what in _TYPES.items():
        if kind.startswith(start + "_"):
            return f"{field}: {shown} is not {what}. Write {what}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{field}: {shown} is not a group of fields. Write its fields below it"
    return f"{field}: {shown} {error['msg']}"


def _checked(model: type[Model], data: Any, prefix: str, problems: list[str]) -> Model | None:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems += [_sentence(prefix, dict(e)) for e in error.errors(include_url=False)]
        return None


class _Frame(SpecModel):
    """The document without what its groups hold: those are checked one by one."""

    environments: list[Name] = Field(default=["test", "staging", "production"], min_length=1)
    stop_after_failures: int = Field(default=1, ge=1)
    classes: dict[str, Any] = Field(min_length=1)
    systems: dict[str, Any] = Field(default_factory=dict)
    secrets: list[Any] = Field(min_length=1)


def parse_policy(
    data: Any, known_classes: Collection[str], source: str = "the rotation policy"
) -> RotationPolicy:
    """Return the policy that `data` (a parsed YAML document) describes.

    `known_classes` are those that an adapter exists for.

    Raises:
        InvalidSpec: with every problem of every field and between fields, none left for later.
    """
    if not isinstance(data, Mapping):
        raise InvalidSpec(
            source, ["the document: is not a group of fields. See docs/rotate-secrets.md"]
        )
    problems: list[str] = []
    _checked(_Frame, data, "", problems)
    classes = _group(data.get("classes"))
    for name, body in classes.items():
        _checked(ClassPolicy, body, f"classes.{name}", problems)
    for name, body in _group(data.get("systems")).items():
        _checked(SystemPolicy, body, f"systems.{name}", problems)
    listed = data.get("secrets")
    rules: dict[int, SecretRule] = {}
    for number, body in enumerate(listed if isinstance(listed, list) else []):
        rule = _checked(SecretRule, body, f"secrets.{number}", problems)
        if rule:
            rules[number] = rule
    problems += _unknown(classes, known_classes)
    problems += _twice(data.get("environments"))
    problems += _between(data, rules)
    if problems:
        raise InvalidSpec(source, problems)
    return RotationPolicy.model_validate(data)


def _group(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _unknown(classes: Iterable[str], known: Collection[str]) -> Iterable[str]:
    for name in classes:
        if name not in known:
            choices = ", ".join(sorted(known))
            yield f"classes.{name}: is no class of secrets. Use one of: {choices}"


def _twice(environments: Any) -> Iterable[str]:
    if isinstance(environments, list):
        for name in dict.fromkeys(str(each) for each in environments):
            if environments.count(name) > 1:
                yield f"environments: names {name} more than once. Name it once"


def _between(data: Mapping[str, Any], rules: Mapping[int, SecretRule]) -> Iterable[str]:
    """Yield what is wrong between rules that are each right by themselves and the groups."""
    environments = data.get("environments", _Frame.model_fields["environments"].default)
    first: dict[str, int] = {}
    for number, rule in rules.items():
        here = f"secrets.{number}"
        if isinstance(data.get("classes"), Mapping) and rule.kind not in data["classes"]:
            yield (
                f"{here}.class: {rule.kind!r} has no entry under classes. "
                f"Add classes.{rule.kind} or correct the name"
            )
        if isinstance(environments, list) and rule.environment not in environments:
            yield (
                f"{here}.environment: {rule.environment!r} is not in environments. "
                f"Use one of: {', '.join(map(str, environments))}"
            )
        if rule.system is not None and rule.system not in _group(data.get("systems")):
            yield (
                f"{here}.system: {rule.system!r} has no entry under systems. "
                f"Add systems.{rule.system} or leave it out"
            )
        if rule.path in first:
            yield (
                f"{here}.path: {rule.path!r} is the path of secrets.{first[rule.path]}, which is "
                "matched first. Remove one of them"
            )
        first.setdefault(rule.path, number)
