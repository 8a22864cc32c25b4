"""When a service that died by itself may be started again: soon, then later, then not any more."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0
WINDOW_SECONDS = 300.0
LIMIT = 5


@dataclass
class RestartPolicy:
    """Remembers one service's restarts. The clock is the caller's, so that tests need not wait."""

    restarts: list[float] = field(default_factory=list)
    died_at: float | None = None

    def note_death(self, now: float) -> None:
        if self.died_at is None:
            self.died_at = now

    def note_restart(self, now: float) -> None:
        self.restarts = [moment for moment in self.restarts if now - moment < WINDOW_SECONDS]
        self.restarts.append(now)
        self.died_at = None

    def has_given_up(self, now: float) -> bool:
        recent = [moment for moment in self.restarts if now - moment < WINDOW_SECONDS]
        return len(recent) >= LIMIT

    def may_restart(self, now: float) -> bool:
        if self.died_at is None or self.has_given_up(now):
            return False
        recent = [moment for moment in self.restarts if now - moment < WINDOW_SECONDS]
        delay = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** len(recent))
        return now - self.died_at >= delay
