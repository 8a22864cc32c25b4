"""Whether a stage runs what it should and answers as it should: the rows of the verification.

Promises that a stage whose image no pipeline has built yet is told apart from one that fails: it
must be in step with Git, and cannot answer before its first image is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from domain.onboarding.app_spec import Stage
from domain.onboarding.tenant import Tenant


class Verdict(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    WAITS = "waits for its first image"
    FAILED = "failed"


MARKS = {Verdict.PASSED: "✔", Verdict.WAITS: "…", Verdict.FAILED: "✘"}


@dataclass(frozen=True)
class DeliveryCheck:
    """One row."""

    stage: Stage
    check: str
    verdict: Verdict
    detail: str
    seconds: float = 0.0

    def cells(self) -> dict[str, str]:
        """Return the row as a person reads it."""
        return {
            "stage": self.stage.value,
            "check": self.check,
            "result": f"{MARKS[self.verdict]} {self.verdict.value}",
            "detail": self.detail,
            "seconds": f"{self.seconds:.1f}" if self.seconds else "",
        }


def awaits_image(tenant: Tenant, stage: Stage) -> bool:
    """True for a stage of an application that is built and was never deployed."""
    return tenant.app.image is None and not tenant.tags.get(stage)


def expected_version(tenant: Tenant, stage: Stage) -> str:
    """Return the version that the application should tell; empty where none is known."""
    if tenant.app.image is not None:
        image = tenant.app.image
        return "" if "@" in image else image.rpartition(":")[2]
    return tenant.tags.get(stage, "")


def objection(status: int, told: str, expected: str) -> str:
    """Return why an answer is not as it should be; empty when it is."""
    if status >= 400:
        return f"it answers {status}"
    if told and expected and told != expected:
        return f"it serves version {told}, and {expected} is deployed"
    return ""


def failure_text(checks: list[DeliveryCheck]) -> str:
    """Return the text of an error about the checks that failed; empty if none did."""
    failed = [check for check in checks if check.verdict is Verdict.FAILED]
    return "".join(f"\n  - {c.stage.value}, {c.check}: {c.detail}" for c in failed)
