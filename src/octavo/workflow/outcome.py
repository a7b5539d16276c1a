"""What a search came back with, as values, as the JSON record of a run, and as one paragraph."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Literal

from octavo.engines.ran import Ran, per_cent, ran
from octavo.former import field_of_old
from octavo.machine import machine, versions
from octavo.network.plan import Coverage
from octavo.network.quantized import Quantized
from octavo.recovery.sensitivity import Sensitivity
from octavo.saved.artifact import save
from octavo.workflow.goal import Goal, Score, Verdict
from octavo.workflow.study import Trial


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

    def save(self, path: str | PathLike[str], *, form: Literal["file", "folder"] = "file") -> None:
        """Write `model`, so that `octavo.load` runs it without its class. See `octavo.save`."""
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


def summary(result: Result) -> str:
    """What was done and why it stopped, in one paragraph."""
    goal, verdict, best = result.goal, result.verdict, result.best
    made = ["scales of rows"] * best.rows + ["one scale a tensor"] * (not best.channels)
    made += [name.replace("_", " ") for name in best.repairs]
    made += ["training"] * best.trained
    kept = f", {', '.join(made)}" if made else ""
    kept += f" with {_layers(len(best.kept_float))} left in float" if best.kept_float else ""
    lines = [
        f"The float network scores {result.reference.metric:.6g}; the goal allows a drop of {goal}, "
        f"{goal.allowed(result.reference):.4g}.",
        f"Of {len(result.trials)} trials on {_stages(result.stages)} the best is {best.method} calibration{kept}: "
        f"{best.metric:.6g}, {_drop(result)} on the engine {result.engine}.",
        f"The goal is {_outcome(result)}; the search ended because {result.stopped}.",
    ]
    if (told := result.ran) is not None:
        lines.append(f"{told}.")
    if result.net.notes:
        more = f" ({len(result.net.notes) - 1} more in notes)" if len(result.net.notes) > 1 else ""
        lines.append(f"Noted: {result.net.notes[0]}{more}.")
    if result.too_few and verdict.interval:
        enough = f"; about {result.samples_needed} would do" if result.samples_needed else ""
        lines.append(
            f"There are too few samples to certify {goal}: the interval of all of them reaches "
            f"{verdict.interval[1]:.4g}{enough}."
        )
    if verdict.interval is None and result.reference.samples is None:
        lines.append("evaluate returned one number, so there is no interval; per-sample scores would give one.")
    return " ".join(lines)


def _drop(result: Result) -> str:
    """What is lost, on which samples."""
    lost = f"a drop of {result.verdict.drop:.4g}{_interval(result)}"
    if result.verdict.samples is None or result.too_few or result.best.abandoned:
        return lost
    return f"{lost} on the {result.verdict.samples} samples that did not choose it,"


def _outcome(result: Result) -> str:
    """Whether the goal is met, and how sure that is."""
    if result.int8_share < result.goal.min_int8:
        found, asked = per_cent(result.int8_share), per_cent(result.goal.min_int8)
        return f"not met: {found} of the multiplications run on integers, and {asked} are asked for"
    if result.certified:
        return "met, and certified"
    if result.verdict.interval is None or result.too_few:
        return "met" if result.met else "not met"
    return "met, but not certified" if result.met else "not met on the samples that did not choose it"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _stages(stages: Sequence[StageRecord]) -> str:
    return (
        "the stage " + stages[0].stage
        if len(stages) == 1
        else "the stages " + ", ".join(stage.stage for stage in stages)
    )


def _interval(result: Result) -> str:
    if result.verdict.interval is None:
        return ""
    low, high = result.verdict.interval
    return f" ({100 * result.goal.confidence:g} % interval {low:.4g} … {high:.4g})"
