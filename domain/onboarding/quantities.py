"""Amounts of processor and memory as Kubernetes writes them, as numbers that can be compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

_MEMORY_UNITS_MIB = {"Mi": 1, "Gi": 1024}


def millicores(text: str) -> int:
    """Return `250m` as 250 and `1.5` as 1500."""
    if text.endswith("m"):
        return int(text[:-1])
    return round(float(text) * 1000)


def memory_mib(text: str) -> int:
    """Return `256Mi` as 256 and `2Gi` as 2048."""
    return int(text[:-2]) * _MEMORY_UNITS_MIB[text[-2:]]


def as_cpu(amount_millicores: int) -> str:
    """Return an amount of processor in the one form that Kubernetes gives back."""
    if amount_millicores % 1000 == 0:
        return str(amount_millicores // 1000)
    return f"{amount_millicores}m"


def as_memory(amount_mib: int) -> str:
    """Return an amount of memory in the one form that Kubernetes gives back."""
    return f"{amount_mib // 1024}Gi" if amount_mib % 1024 == 0 else f"{amount_mib}Mi"


_SUFFIXES: Mapping[str, Decimal] = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+)(?:([eE][+-]?[0-9]+)|([a-zA-Z]*))")


def quantity(text: object) -> Decimal | None:
    """Return any quantity of Kubernetes as a number; None when it is none."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None or (match[3] or "") not in _SUFFIXES:
        return None
    try:
        return Decimal(match[1] + (match[2] or "")) * _SUFFIXES[match[3] or ""]
    except InvalidOperation:
        return None
