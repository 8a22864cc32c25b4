"""The progress of a run, kept in Prefect artifacts that the UI and the terminal read.

Promises one table and one bar a run, updated in place, at most about once a second for the
small steps and at once for the large ones. A failure to write progress never fails the work.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import Artifact, ProgressArtifact, TableArtifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger

from domain.phases import Phase, PhaseState, RunProgress

MIN_INTERVAL_SECONDS = 1.0

_logger = logging.getLogger("infraflows.progress")


class LiveArtifact:
    """One artifact that is created at first and replaced in place from then on."""

    def __init__(self, key: str, kind: str, description: str) -> None:
        """Name the artifact; nothing is written yet."""
        self.key, self.kind, self.description = key, kind, description
        self._id: UUID | None = None

    def show(self, data: Any) -> None:
        """Write the artifact's content; a server that does not answer is logged and passed over."""
        try:
            with get_client(sync_client=True) as client:
                if self._id is None:
                    self._id = self._create(data)
                else:
                    client.update_artifact(
                        artifact_id=self._id,
                        artifact=ArtifactUpdate(data=data, description=self.description),
                    )
        except Exception as error:  # progress is a courtesy: no fault of it may stop the work
            _logger.warning("Unable to show %s: %s.", self.key, type(error).__name__)

    def _create(self, data: Any) -> UUID:
        return self._first(data).create().id  # type: ignore[union-attr]

    def _first(self, data: Any) -> Artifact:
        """Return the artifact as its own kind stores it: the plain class would encode it twice."""
        named: dict[str, Any] = {"key": self.key, "description": self.description}
        if self.kind == "table":
            return TableArtifact(table=json.loads(data), **named)
        if self.kind == "progress":
            return ProgressArtifact(progress=float(data), **named)
        return Artifact(type=self.kind, data=data, **named)


class ProgressBoard:
    """The phases of one run as artifacts `<target>-phases` and `<target>-progress`."""

    def __init__(self, target: str, weights: Mapping[str, int]) -> None:
        """Show every phase as waiting."""
        self.progress = RunProgress(weights)
        self._table = LiveArtifact(f"{target}-phases", "table", f"Phases of the run on {target}")
        self._bar = LiveArtifact(f"{target}-progress", "progress", f"Progress on {target}")
        self._shown_at = 0.0
        self._show(at_once=True)

    def _show(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if not at_once and now - self._shown_at < MIN_INTERVAL_SECONDS:
            return
        self._shown_at = now
        self._table.show(_as_json(self.progress.rows()))
        self._bar.show(self.progress.percent)

    def advance(self, name: str, fraction: float) -> None:
        """Note how much of a phase is done, from 0 to 1; shown if the last time was long ago."""
        phase = self.progress.phases[name]
        phase.fraction = max(phase.fraction, fraction)  # a task that is tried again begins at 0
        self._show(at_once=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Run the body as the phase `name`; its failure is shown and raised on."""
        phase = self.progress.phases[name]
        phase.state = PhaseState.RUNNING
        started = time.monotonic()
        logger = get_run_logger()
        logger.info("Phase %s begins.", name)
        self._show(at_once=True)
        try:
            yield phase
        except BaseException as error:
            phase.state = PhaseState.FAILED
            phase.summary = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise
        else:
            if phase.state is PhaseState.RUNNING:
                phase.state = PhaseState.DONE
        finally:
            phase.seconds = round(time.monotonic() - started, 2)
            self._show(at_once=True)
            logger.info(
                "Phase %s %s after %.1f s. %s",
                name,
                phase.state.value,
                phase.seconds,
                phase.summary,
            )


def _as_json(rows: list[dict[str, str]]) -> str:
    """Tables are stored as JSON text, as `create_table_artifact` does."""
    return json.dumps(rows)
