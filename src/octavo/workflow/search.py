"""A search under way: it measures candidates through the study, watches the budget, and knows the best so far."""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, cast, get_args

from octavo.errors import QuantizationError
from octavo.recovery.sensitivity import Sensitivity
from octavo.workflow.goal import Score, Verdict, halves, unseen
from octavo.workflow.study import Study, Trial
from octavo.workflow.trial import Candidate, Context, key_of, measure
from octavo.workflow.view import View

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# Measures independent candidates: (context, candidates, stage) → each with a call that gives its trial, in any order.
MeasureAll = Callable[[Context, Sequence[Candidate], str], Iterator[tuple[Candidate, Callable[[], Trial]]]]


Prefer = Literal["accuracy", "latency"]  # what to spare where layers stay in float
Part = Literal["choosing", "certifying", "all"]  # of the samples that are scored


class BudgetSpentError(Exception):
    """The search may not start another trial."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop: after so many seconds or so many trials, whichever comes first; None is without limit.

    Trials that an earlier run of the same study measured count with the seconds they took then.
    raises  QuantizationError for fewer trials than one
    """

    seconds: float | None = None
    trials: int | None = None

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise QuantizationError(
                asked=f"stop after {self.trials} trials",
                seen="nothing can be found by fewer than one",
                remedy="give trials=1 or more, or leave it out",
                site="trials",
            )

    def spent(self, seconds: float, trials: int) -> str | None:
        """What was reached, None as long as there is some left."""
        if self.trials is not None and trials >= self.trials:
            return f"the budget of {self.trials} trials was spent"
        if self.seconds is not None and seconds >= self.seconds:
            return f"the budget of {self.seconds:g} seconds was spent"
        return None


def duration(text: str | float) -> float:
    """Seconds: of a number, or of "90s", "30m", "2h", "1.5d".

    raises  QuantizationError for anything else
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smhd]?)\s*", str(text))
    try:
        seconds = float(match[1]) * UNITS[match[2] or "s"] if match else -1.0
    except ValueError:
        seconds = -1.0
    if seconds <= 0:
        raise QuantizationError(
            asked=f"stay within a budget of {text!r}",
            seen="it is no length of time",
            remedy="write seconds, or 90s, 30m, 2h",
        )
    return seconds


def preference(name: str) -> Prefer:
    """`name` itself, if it is a preference.

    raises  QuantizationError for another one
    """
    if name not in get_args(Prefer):
        raise QuantizationError(
            asked=f"prefer {name!r} when layers stay in float",
            seen="one can spare accuracy or latency",
            remedy=f"choose one of {', '.join(get_args(Prefer))}",
        )
    return cast("Prefer", name)


def one_after_the_other(
    context: Context, candidates: Sequence[Candidate], stage: str
) -> Iterator[tuple[Candidate, Callable[[], Trial]]]:
    """Each candidate is measured in this process, when its turn comes."""
    for candidate in candidates:
        yield candidate, partial(measure, context, candidate, stage)


@dataclass(kw_only=True)
class Search:
    """The trials of one run, in the order in which they were asked for.

    Everything it measures is in `study` before the next trial starts; what the study knows is not measured again.

    calibration    the batches, to rank layers on
    prefer         "accuracy": leave as few layers in float as possible; "latency": those that cost least time
    sensitivities  every layer's, once a stage has measured them
    """

    context: Context
    study: Study
    budget: Budget
    view: View
    measure_all: MeasureAll = one_after_the_other
    calibration: Iterable[Any] = ()
    prefer: Prefer = "accuracy"
    sensitivities: tuple[Sensitivity, ...] = ()
    trials: list[Trial] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _stored_seconds: float = 0.0
    _verdicts: dict[tuple[str, Part], Verdict] = field(default_factory=dict)  # a bootstrap takes a while

    @cached_property
    def _halves(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        return halves(self.context.reference)

    def measure(self, candidates: Sequence[Candidate], stage: str) -> list[Trial]:
        """The trials of `candidates`.

        raises  BudgetSpentError before a trial that the budget does not allow; the first one always is allowed
        """
        keys = [key_of(self.context, candidate) for candidate in candidates]
        known = {trial.key for trial in self.trials}
        asked = {key: candidate for key, candidate in zip(keys, candidates, strict=True) if key not in known}
        before = len(self.trials)
        for candidate, call in self._calls(asked, stage):
            self.check_budget()
            self.view.trying(stage, candidate)
            self.trials.append(self._journalled(key_of(self.context, candidate), call))
            self.view.tried(self.trials[-1], self.best())
        order = list(asked)  # whichever was ready first
        self.trials[before:] = sorted(self.trials[before:], key=lambda trial: order.index(trial.key))
        return [next(trial for trial in self.trials if trial.key == key) for key in keys]

    def _calls(self, asked: dict[str, Candidate], stage: str) -> Iterator[tuple[Candidate, Callable[[], Trial]]]:
        """What the study knows first; then the rest is measured."""
        stored = {trial.key: trial for trial in self.study.trials()}
        for key, candidate in asked.items():
            if key in stored:
                yield candidate, partial(stored.__getitem__, key)
        fresh = [candidate for key, candidate in asked.items() if key not in stored]
        yield from self.measure_all(self.context, [candidate for candidate in fresh if not candidate.trained], stage)
        yield from one_after_the_other(self.context, [candidate for candidate in fresh if candidate.trained], stage)

    def _journalled(self, key: str, call: Callable[[], Trial]) -> Trial:
        before = time.monotonic()
        trial = self.study.run(key, call)
        self._stored_seconds += max(0.0, trial.seconds - (time.monotonic() - before))
        return trial

    def check_budget(self) -> None:
        """Raise BudgetSpentError if there may be no other trial."""
        spent = time.monotonic() - self.started + self._stored_seconds
        reason = self.budget.spent(spent, len(self.trials))
        if reason and self.trials:
            raise BudgetSpentError(reason)

    def verdict(self, trial: Trial) -> Verdict:
        """How the trial stands to the float network, on the half of the samples that chooses."""
        return self._judged(trial, "choosing")

    def certificate(self, trial: Trial) -> Verdict:
        """How the trial that was chosen stands to the float network, on the half that did not choose it.

        Where the samples are too few for halves it is that of all of them, and nothing is certified.
        """
        if not self.too_few():
            return self._judged(trial, "certifying")
        return replace(self._judged(trial, "all"), certified=False)

    def _judged(self, trial: Trial, part: Part) -> Verdict:
        at = (trial.key, part)
        if at not in self._verdicts:
            of = None if self._halves is None or part == "all" else self._halves[part == "certifying"]
            self._verdicts[at] = self.context.goal.judge(self.context.reference, _score(trial), of)
        return self._verdicts[at]

    def too_few(self) -> bool:
        """Whether half of the samples is too few to certify the goal even for the candidate with the least noise."""
        if self.context.reference.samples is None:
            return False
        if self._halves is None:
            return True
        scored = [trial for trial in self.trials if trial.error is None and not trial.abandoned]
        noises = [max(self._judged(trial, "choosing").noise, self._unseen(trial)) for trial in scored]
        return min(noises, default=0.0) > self.context.goal.allowed(self.context.reference)

    def _unseen(self, trial: Trial) -> float:
        """What half of the samples may not show."""
        return 2 * unseen(self.context.reference, _score(trial))

    def samples_needed(self, trial: Trial) -> int | None:
        """How many samples would certify `trial`, about, if these are too few; None if they are not, or none would."""
        whole, samples = self._judged(trial, "all"), self.context.reference.samples
        room = self.context.goal.allowed(self.context.reference) - max(whole.drop, 0.0)
        if samples is None or whole.interval is None or not self.too_few() or room <= 0:
            return None
        # Of a half, whose interval is √2 as wide. Intervals shrink with the root of the number, what is unseen with it.
        shares = 2 * (whole.noise / room) ** 2, self._unseen(trial) / room
        return math.ceil(len(samples) * max(shares))

    def settles(self, trial: Trial) -> bool:
        """Whether `trial` meets the goal as surely as the samples can tell: certified, if they are enough for that."""
        if trial.error is not None or trial.abandoned:
            return False
        return self._judged(trial, "all").met if self.too_few() else self.verdict(trial).certified

    def settled(self) -> bool:
        """Whether a trial has ended the search."""
        return any(map(self.settles, self.trials))

    def best(self, among: Callable[[Trial], bool] = lambda _: True) -> Trial | None:
        """The trial to return: of those that meet the goal the fastest, by layers in float and rows, then the best."""
        sound = [trial for trial in self.trials if trial.error is None and among(trial)]
        return min(sound, key=self._rank, default=None)

    def _rank(self, trial: Trial) -> tuple[bool, bool, bool, int, bool, float]:
        verdict = self.verdict(trial)
        layers = len(trial.kept_float) if verdict.met else 0
        slower = trial.rows and verdict.met
        return (trial.abandoned, not verdict.met, not self.settles(trial), layers, slower, verdict.drop)


def _score(trial: Trial) -> Score:
    return Score(metric=trial.metric, samples=trial.scores, abandoned=trial.abandoned)
