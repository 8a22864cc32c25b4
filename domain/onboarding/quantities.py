"""Amounts of processor and memory as Kubernetes writes them, as numbers that can be compared."""

from __future__ import annotations

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
