"""What OpenBao's policies let a token read, by OpenBao's own rules of precedence.

Exists because the question after a leak is not what was read but what could be. Promises to err on
one side only: where a policy cannot be decided offline (templates that name the entity) a path
counts as readable. Refuses policies that it cannot read, instead of passing over them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from domain.errors import InvalidSpec

READ, DENY = "read", "deny"
_TOKEN = re.compile(
    r'"(?P<text>(?:[^"\\]|\\.)*)"|(?P<note>#[^\n]*|//[^\n]*|/\*.*?\*/)|(?P<word>[A-Za-z_][\w-]*)'
    r"|(?P<number>\d[\w.]*)|(?P<sign>[{}\[\]=,])|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
_OLD_FORM = {
    "deny": (DENY,),
    "read": (READ, "list"),
    "write": ("create", READ, "update", "delete", "list"),
    "sudo": ("create", READ, "update", "delete", "list", "sudo"),
}


@dataclass(frozen=True)
class PathRule:
    """One `path` block of a policy."""

    pattern: str
    capabilities: frozenset[str]

    @property
    def is_templated(self) -> bool:
        return "{{" in self.pattern

    def matches(self, path: str) -> bool:
        """True when the rule speaks about `path` (an API path, as `kv/data/a`)."""
        return _expression(self.pattern).fullmatch(path) is not None

    def precedence(self) -> tuple[float, bool, int, int, str]:
        """Sort key: of two rules that match, OpenBao follows the one with the greater key."""
        is_glob = self.pattern.endswith("*")
        plus = [n for n, part in enumerate(self.pattern.split("/")) if part == "+"]
        places = [self.pattern.index("*")] if is_glob else []
        if plus:
            before = self.pattern.split("/")[: plus[0]]
            places.append(sum(len(part) + 1 for part in before))
        first = float(min(places)) if places else float("inf")
        return (first, not is_glob, -len(plus), len(self.pattern), self.pattern)


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str]:
    """Return what the paths look like that `pattern` speaks about."""
    body, glob = (pattern[:-1], ".*") if pattern.endswith("*") else (pattern, "")
    parts = re.split(r"(\{\{.*?\}\})", body)
    matched = "".join("[^/]+" if part.startswith("{{") else _segments(part) for part in parts)
    return re.compile(matched + glob, re.DOTALL)


def _segments(text: str) -> str:
    return "/".join("[^/]+" if part == "+" else re.escape(part) for part in text.split("/"))


EVERYTHING = (PathRule("*", frozenset({READ, "sudo"})),)
"""What the policy `root` allows; it has no text."""


def can_read(rules: Iterable[PathRule], path: str) -> bool:
    """True when a token with all of these rules may read `path`."""
    matching = [rule for rule in rules if rule.matches(path)]
    if any(READ in rule.capabilities for rule in matching if rule.is_templated):
        return True
    merged: dict[str, set[str]] = {}
    order: dict[str, PathRule] = {}
    for rule in matching:
        if not rule.is_templated:
            merged.setdefault(rule.pattern, set()).update(rule.capabilities)
            order[rule.pattern] = rule
    if not order:
        return False
    best = max(order.values(), key=PathRule.precedence)
    return READ in merged[best.pattern] and DENY not in merged[best.pattern]


def parse_access_policy(name: str, text: str) -> tuple[PathRule, ...]:
    """Return the rules of a policy as OpenBao hands it out, in HCL or JSON.

    Raises:
        InvalidSpec: a part of it has a form that is not understood.
    """
    if name == "root":
        return EVERYTHING
    try:
        if text.lstrip().startswith("{"):
            return tuple(_from_json(json.loads(text)))
        return tuple(_from_hcl(_tokens(text)))
    except (ValueError, AttributeError, IndexError, TypeError) as error:
        raise InvalidSpec(
            f"the OpenBao policy {name}",
            [f"the text: {error}. Write it as path blocks with capabilities, and read it back"],
        ) from error


def _from_json(
    document: Mapping[str, Mapping[str, Mapping[str, Sequence[str] | str]]],
) -> Iterator[PathRule]:
    for pattern, body in document.get("path", {}).items():
        old = body.get("policy")
        given = body.get("capabilities", ())
        both = {*given, *(_OLD_FORM[old] if isinstance(old, str) else ())}
        yield PathRule(pattern.removeprefix("/"), frozenset(both))


def _tokens(text: str) -> list[str]:
    found = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "other":
            raise ValueError(f"character {match.group()!r} is not expected")
        if kind == "text":
            found.append('"' + match.group("text"))
        elif kind not in ("note", "space"):
            found.append(match.group())
    return found


def _from_hcl(tokens: Sequence[str]) -> Iterator[PathRule]:
    place = 0
    while place < len(tokens):
        if tokens[place] == "name" and tokens[place + 1] == "=":
            place += 3
            continue
        opening = place + 3 if tokens[place + 2] == "=" else place + 2
        is_block = tokens[place] == "path" and tokens[place + 1][0] == '"'
        if not is_block or tokens[opening] != "{":
            raise ValueError(f"{tokens[place].lstrip(chr(34))!r} does not begin a path block")
        end = _closing(tokens, opening)
        pattern = tokens[place + 1][1:].removeprefix("/")
        yield PathRule(pattern, frozenset(_capabilities(tokens[opening + 1 : end])))
        place = end + 1


def _closing(tokens: Sequence[str], opening: int) -> int:
    depth = 0
    for place in range(opening, len(tokens)):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(tokens[place], 0)
        if depth == 0:
            return place
    raise ValueError("a block is not closed")


def _capabilities(body: Sequence[str]) -> Iterator[str]:
    depth = 0
    for place, word in enumerate(body):
        depth += {"{": 1, "}": -1}.get(word, 0)
        if depth or place + 2 >= len(body) or body[place + 1] != "=":
            continue
        if word == "capabilities":
            end = _closing(body, place + 2)
            yield from (each[1:] for each in body[place + 3 : end] if each.startswith('"'))
        elif word == "policy":
            if body[place + 2][1:] not in _OLD_FORM:
                raise ValueError(f"policy = {body[place + 2][1:]!r} is not known")
            yield from _OLD_FORM[body[place + 2][1:]]
