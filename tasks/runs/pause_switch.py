"""The pause switch of an environment: a reason and an owner that stop whatever would change."""

from __future__ import annotations

from prefect.variables import Variable

from domain.errors import PolicyViolation


def _name(environment: str) -> str:
    return f"infraflows_pause_{environment.replace('-', '_')}"


def set_pause(environment: str, reason: str, owner: str) -> None:
    """Pause an environment."""
    Variable.set(_name(environment), {"reason": reason, "owner": owner}, overwrite=True)


def lift_pause(environment: str) -> None:
    """End the pause; an environment that is not paused stays so."""
    Variable.unset(_name(environment))


def refuse_if_paused(environment: str) -> None:
    """Let a run go on unless its environment is paused.

    Raises:
        PolicyViolation: with the reason and who can lift it.
    """
    found = Variable.get(_name(environment), default=None)
    if isinstance(found, dict):
        raise PolicyViolation(
            f"Unable to change {environment}: it is paused, {found.get('reason')}. "
            f"Ask {found.get('owner')}, or lift it: infraflows unpause --environment {environment}."
        )
