"""What one sees while a search runs: stage, trial, the best so far, and the time left."""

import time
from types import TracebackType
from typing import Any, Self

from octavo.workflow.study import Trial
from octavo.workflow.trial import Candidate, candidate_of


class View:
    """A live table on the console; silent if it is not `shown`.

    seconds, trials  the budget, to show what is left of it
    """

    def __init__(self, shown: bool, *, seconds: float | None = None, trials: int | None = None) -> None:
        self._live = _live() if shown else None
        self._seconds, self._trials = seconds, trials
        self._started = time.monotonic()
        self._now = self._best = "…"
        self._tried: list[float] = []

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def doing(self, what: str) -> None:
        """Announce a step that is no trial."""
        self._now = what
        self._refresh()

    def trying(self, stage: str, candidate: Candidate) -> None:
        """Announce a trial."""
        self.doing(f"{stage}: {candidate}")

    def tried(self, trial: Trial, best: Trial | None) -> None:
        """Note what a trial found, and the best so far."""
        self._tried.append(trial.seconds)
        if best is not None:
            self._best = f"{best.metric:.4g} ({candidate_of(best)})"
        self._refresh()

    def left(self) -> str:
        """The time left in the budget, or what the trials left would take."""
        elapsed = time.monotonic() - self._started
        limits = [] if self._seconds is None else [self._seconds - elapsed]
        if self._trials is not None and self._tried:
            limits.append((self._trials - len(self._tried)) * sum(self._tried) / len(self._tried))
        if not limits:
            return "no limit"
        seconds = max(0, round(min(limits)))
        return f"at most {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _refresh(self) -> None:
        if self._live is None:
            return
        from rich.table import Table  # noqa: PLC0415 (rich is slow to import)

        table = Table.grid(padding=(0, 2))
        for label, value in (
            ("now", self._now),
            ("trials", str(len(self._tried))),
            ("best so far", self._best),
            ("time left", self.left()),
        ):
            table.add_row(f"[dim]{label}[/dim]", value)
        self._live.update(table)


def _live() -> Any:
    from rich.live import Live  # noqa: PLC0415 (rich is slow to import)

    return Live(refresh_per_second=2, transient=True)
