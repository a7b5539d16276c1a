"""What a search came back with, as values and as the JSON record of a run; `summary.py` has it in words."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any, Literal

from octavo.engines.ran import Ran, ran
from octavo.former import field_of_old
from octavo.machine import machine, versions
from octavo.network.plan import Coverage
from octavo.network.quantized import Quantized
from octavo.recovery.sensitivity import Sensitivity
from octavo.workflow.goal import Goal, Score, Verdict
from octavo.workflow.overlap import Overlap
from octavo.workflow.study import Trial
from octavo.workflow.summary import summary


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage of a search: how many trials it took, the best metric after it, and the seconds of its trials."""

    stage: str
    trials: int
    best: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The best integer network that was found, and how it was found.

    met            whether the goal is met: it loses no more, and enough of it runs on integers
    int8_share     of all multiplications, those that run on integers, 0 … 1; for the simulation, those that are planned
    model          the network on its engine, called like the user's model
    net            what it was compiled from: `octavo.compile` it for another engine
    reference      the float network's score
    best           the trial that `model` was
    verdict        how that trial stands to the float network, on the half of the samples that did not choose it; on
                   all of them where they are too few for that
    too_few        whether the samples were too few to certify the goal for any candidate
    samples_needed  how many would do, about; None if they are enough, or no number would
    trials, stages  all that was tried
    sensitivities  every layer's, the most sensitive first, if partial quantization was needed
    stopped        why the search ended
    overlap        how many of the calibration samples are among the scored ones; None if that cannot be told, as where
                   `evaluate` compiles the float network before it calls it
    repaired       {repair: how many layers it changed}, of those that `best` has
    """

    met: bool
    int8_share: float
    model: Callable[..., Any]
    net: Quantized
    engine: str
    goal: Goal
    reference: Score
    best: Trial
    verdict: Verdict
    too_few: bool
    samples_needed: int | None
    trials: tuple[Trial, ...]
    stages: tuple[StageRecord, ...]
    sensitivities: tuple[Sensitivity, ...]
    stopped: str
    overlap: Overlap | None = None
    repaired: Mapping[str, int] = field(default_factory=dict)

    def save(self, path: str | PathLike[str], *, form: Literal["file", "folder"] = "file") -> None:
        """Write `model`, so that `octavo.load` runs it without its class. See `octavo.save`."""
        from octavo.saved.artifact import save  # noqa: PLC0415 (what checks files is slow to import)

        save(self.net, path, engine=self.engine, form=form)

    graph = field_of_old("Result.graph", "net.graph")
    params = field_of_old("Result.params", "net")
    rungs = field_of_old("Result.rungs", "stages")

    @property
    def metric(self) -> float:
        """The integer network's."""
        return self.best.metric

    @property
    def certified(self) -> bool:
        """Whether it is met, and samples that did not choose it say so with the goal's confidence."""
        return self.met and self.verdict.certified and self.verdict.interval is not None and not self.too_few

    @property
    def kept_float(self) -> tuple[str, ...]:
        """The layers that are left in float."""
        return self.best.kept_float

    @property
    def coverage(self) -> Coverage:
        """How many of the compute-heavy operations the plan has in integers."""
        return self.net.coverage

    @property
    def ran(self) -> Ran | None:
        """How many of them `model`'s engine runs so, and which it does not; None if it does not tell."""
        return ran(self.model)

    @property
    def summary(self) -> str:
        """What was done and why it stopped, in one paragraph."""
        return summary(self)

    def record(self) -> dict[str, Any]:
        """All of it as JSON: no tensors, no networks."""
        verdict = self.verdict
        samples = len(self.reference.samples) if self.reference.samples is not None else None
        return {
            "engine": self.engine,
            "target": self.net.plan.target.name,
            "method": self.best.method,
            "rows": self.best.rows,
            "channels": self.best.channels,
            "repairs": list(self.best.repairs),
            "repaired_layers": dict(self.repaired),
            "trained": self.best.trained,
            "metric": {
                "name": "evaluate",
                "float": self.reference.metric,
                "int8": self.best.metric,
                "drop": verdict.drop,
                "samples": samples,
            },
            "met": self.met,
            "int8_share": self.int8_share,
            "min_int8": self.goal.min_int8,
            "max_drop": self.goal.max_drop,
            "relative": self.goal.relative,
            "interval": list(verdict.interval) if verdict.interval else None,
            "certified": self.certified,
            "certified_on": None if self.too_few or self.best.abandoned else verdict.samples,
            "too_few_samples": self.too_few,
            "samples_needed": self.samples_needed,
            "overlap": None if self.overlap is None else asdict(self.overlap),
            "stages": [asdict(stage) for stage in self.stages],
            "trials": [_trial_record(number, trial) for number, trial in enumerate(self.trials, 1)],
            "notes": list(self.net.notes),
            "rules": [str(rule) for rule in self.net.plan.rules],
            "kept_float": list(self.kept_float),
            "sensitivities": [asdict(row) for row in self.sensitivities],
            "summary": self.summary,
            "coverage": coverage_record(self.coverage, self.ran),
            "versions": versions(),
            "machine": machine(),
        }


def coverage_record(coverage: Coverage, ran: Ran | None) -> dict[str, Any]:
    """{"quantized", "total", "kept_float": [{"site", "reason"}], "layers", "per_tensor", "ran"}.

    All but "ran" are the plan's; that, {"engine", "int8", "in_float"}, is the engine's: None if it does not tell.
    """
    lists = {
        "kept_float": [asdict(one) for one in coverage.kept_float],
        "layers": list(coverage.layers),
        "per_tensor": list(coverage.per_tensor),
    }
    return {**asdict(coverage), **lists, "ran": None if ran is None else ran.record()}


def _trial_record(number: int, trial: Trial) -> dict[str, Any]:
    return {
        "id": number,
        "stage": trial.stage,
        "method": trial.method,
        "rows": trial.rows,
        "channels": trial.channels,
        "repairs": list(trial.repairs),
        "trained": trial.trained,
        "kept_float": list(trial.kept_float),
        "metric": None if trial.error else trial.metric,
        "abandoned": trial.abandoned,
        "error": trial.error,
        "seconds": round(trial.seconds, 3),
    }


def stage_records(trials: Sequence[Trial], *, higher_is_better: bool) -> tuple[StageRecord, ...]:
    """The stages that `trials` belong to, in order."""
    records: list[StageRecord] = []
    best: float | None = None
    for stage in dict.fromkeys(trial.stage for trial in trials):
        own = [trial for trial in trials if trial.stage == stage]
        metrics = [trial.metric for trial in own if trial.error is None and not trial.abandoned]
        candidates = metrics if best is None else [*metrics, best]
        best = (max if higher_is_better else min)(candidates, default=None)
        seconds = round(math.fsum(trial.seconds for trial in own), 3)
        records.append(StageRecord(stage=stage, trials=len(own), best=best, seconds=seconds))
    return tuple(records)
