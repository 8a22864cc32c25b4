"""Expressions of `rules:if`: variables, strings, patterns, `== != =~ !~ && || ()`, `null`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<variable>\$\{?[A-Za-z_][A-Za-z0-9_]*\}?)
      | (?P<text>"[^"]*"|'[^']*')
      | (?P<pattern>/(?:\\.|[^/\\])+/[ims]*)
      | (?P<null>null\b)
      | (?P<operator>==|!=|=~|!~|&&|\|\||[()!])
    )""",
    re.VERBOSE,
)


class RuleError(Exception):
    """The expression cannot be read."""


@dataclass
class _Reader:
    tokens: list[tuple[str, str]]
    variables: Mapping[str, str]

    def peek(self) -> str:
        return self.tokens[0][1] if self.tokens else ""

    def take(self) -> tuple[str, str]:
        if not self.tokens:
            raise RuleError("it ends too early")
        return self.tokens.pop(0)

    def either(self) -> bool:
        result = self.both()
        while self.peek() == "||":
            self.take()
            result = self.both() or result
        return result

    def both(self) -> bool:
        result = self.comparison()
        while self.peek() == "&&":
            self.take()
            result = self.comparison() and result
        return result

    def comparison(self) -> bool:
        if self.peek() == "(":
            self.take()
            result = self.either()
            if self.take()[1] != ")":
                raise RuleError("a parenthesis is not closed")
            return result
        left = self.value()
        match self.peek():
            case "==" | "!=" as operator:
                self.take()
                return (left == self.value()) is (operator == "==")
            case "=~" | "!~" as operator:
                self.take()
                # Taken before it is needed: a variable that is not set must not leave it over.
                pattern = self.pattern()
                found = left is not None and pattern.search(left) is not None
                return found is (operator == "=~")
            case _:
                return bool(left)

    def value(self) -> str | None:
        kind, token = self.take()
        match kind:
            case "variable":
                return self.variables.get(token.strip("${}"))
            case "text":
                return token[1:-1]
            case "null":
                return None
            case "pattern":
                return token
        raise RuleError(f"{token!r} is not a value")

    def pattern(self) -> re.Pattern[str]:
        text = self.value() or ""
        body, _, flags = text.rpartition("/")
        if not body.startswith("/"):
            raise RuleError(f"{text!r} is not a pattern")
        try:
            chosen = re.IGNORECASE if "i" in flags else re.NOFLAG
            return re.compile(body[1:].replace(r"\/", "/"), chosen)
        except re.error as error:
            raise RuleError(f"{text!r}: {error}") from error


def is_true(expression: str, variables: Mapping[str, str]) -> bool:
    """The value of an expression with these variables."""
    tokens, position = [], 0
    text = expression.strip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise RuleError(f"{text[position:]!r}")
        tokens.append((found.lastgroup, found[found.lastgroup]))
        position = found.end()
    reader = _Reader(tokens, variables)
    result = reader.either()
    if reader.tokens:
        raise RuleError(f"{reader.peek()!r} is left over")
    return result
