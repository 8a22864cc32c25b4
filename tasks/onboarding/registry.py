"""Every step of the saga, in an order that respects what each needs."""

from __future__ import annotations

from tasks.onboarding.step import Step

STEPS: tuple[Step, ...] = ()
