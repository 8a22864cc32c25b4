"""What a request may carry, checked and typed as Proxmox VE checks it.

Why: a real cluster refuses an unknown or ill-typed parameter with 400 and names each of them; a
simulator that lets them pass would hide the product's mistakes until the day of a real site.

Promises: every parameter that a handler sees was declared, is typed, and fits its bounds; all
misfits are reported in one answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lab.hypervisor.exceptions import NotSimulated, ParameterError

Kind = Literal["string", "integer", "number", "boolean", "array"]
RawParameters = Mapping[str, "str | list[str]"]

_TRUE = {"1", "on", "yes", "true"}
_FALSE = {"0", "off", "no", "false"}
NOT_IN_SCHEMA = (
    "property is not defined in schema and the schema does not allow additional properties"
)
MISSING = "property is missing and it is not optional"


@dataclass(frozen=True)
class Param:
    """One declared parameter."""

    kind: Kind = "string"
    is_required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    max_length: int | None = None

    def read(self, raw: str | list[str]) -> Any:
        """The typed value, or ValueError with Proxmox's words."""
        if self.kind == "array":
            return [raw] if isinstance(raw, str) else list(raw)
        text = raw if isinstance(raw, str) else raw[-1]
        if self.kind == "boolean":
            return _boolean(text)
        if self.kind in ("integer", "number"):
            return self._number(text)
        return self._text(text)

    def _number(self, text: str) -> int | float:
        try:
            value: int | float = int(text) if self.kind == "integer" else float(text)
        except ValueError:
            raise ValueError(f"type check ('{self.kind}') failed - got '{text}'") from None
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"value must have a minimum value of {self.minimum:g}")
        if self.maximum is not None and value > self.maximum:
            raise ValueError(f"value must have a maximum value of {self.maximum:g}")
        return value

    def _text(self, text: str) -> str:
        if self.choices and text not in self.choices:
            names = ", ".join(self.choices)
            raise ValueError(f"value '{text}' does not have a value in the enumeration '{names}'")
        if self.max_length is not None and len(text) > self.max_length:
            raise ValueError(f"value may only be {self.max_length} characters long")
        if self.pattern is not None and not re.fullmatch(self.pattern, text):
            raise ValueError("value does not match the regex pattern")
        return text


def _boolean(text: str) -> int:
    if text.lower() in _TRUE:
        return 1
    if text.lower() in _FALSE:
        return 0
    raise ValueError(f"type check ('boolean') failed - got '{text}'")


def string(
    *,
    required: bool = False,
    choices: tuple[str, ...] = (),
    pattern: str | None = None,
    max_length: int | None = None,
) -> Param:
    """A text."""
    return Param("string", required, choices=choices, pattern=pattern, max_length=max_length)


def integer(
    minimum: float | None = None, maximum: float | None = None, *, required: bool = False
) -> Param:
    """A whole number."""
    return Param("integer", required, minimum, maximum)


def number(minimum: float | None = None, maximum: float | None = None) -> Param:
    """A number."""
    return Param("number", False, minimum, maximum)


def boolean() -> Param:
    """0 or 1 on the wire."""
    return Param("boolean")


def array(*, required: bool = False) -> Param:
    """A parameter that may be repeated."""
    return Param("array", required)


VMID = integer(100, 999999999, required=True)
NODE = string(required=True, pattern=r"[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?")
STORAGE_ID = string(pattern=r"[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]")
DNS_NAME = string(
    pattern=r"([a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?)(\.[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?)*",
    max_length=253,
)
SNAPSHOT_NAME = string(required=True, pattern=r"[A-Za-z][A-Za-z0-9_\-]+", max_length=40)


class Schema:
    """One route's parameters. A name `net[n]` with `indexes={"net": 32}` takes net0 to net31."""

    def __init__(
        self,
        parameters: Mapping[str, Param],
        indexes: Mapping[str, int] | None = None,
        unsimulated: re.Pattern[str] | None = None,
    ) -> None:
        """`unsimulated` matches names that Proxmox takes and the lab answers with 501."""
        self.parameters = dict(parameters)
        self.indexes = dict(indexes or {})
        self._unsimulated = unsimulated

    def find(self, name: str) -> Param | None:
        """The declaration of a name, or None."""
        if name in self.parameters:
            return self.parameters[name]
        match = re.fullmatch(r"([a-z]+)(0|[1-9]\d?\d?)", name)
        if match and int(match[2]) < self.indexes.get(match[1], 0):
            return self.parameters[f"{match[1]}[n]"]
        return None

    def read(self, raw: RawParameters) -> dict[str, Any]:
        """Every parameter typed, or ParameterError that names every misfit."""
        values: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for name, text in raw.items():
            declared = self.find(name)
            if declared is None and self._unsimulated and self._unsimulated.fullmatch(name):
                raise NotSimulated(f"Parameter '{name}'")
            if declared is None:
                errors[name] = NOT_IN_SCHEMA
                continue
            try:
                values[name] = declared.read(text)
            except ValueError as error:
                errors[name] = str(error)
        for name, declared in self.parameters.items():
            if declared.is_required and name not in raw:
                errors[name] = MISSING
        if errors:
            raise ParameterError(errors)
        return values


NOTHING = Schema({})


def split_list(text: str | None) -> list[str]:
    """A Proxmox list: separated by commas, semicolons or blanks."""
    return [part for part in re.split(r"[,;\s]+", text or "") if part]
