"""What is asked for, and whether a candidate gives it: the drop that is allowed, and how sure the samples let us be."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import torch

from octavo.arguments import check_fields
from octavo.errors import QuantizationError
from octavo.measure import paired_interval, real
from octavo.workflow.drop import in_words

Evaluate = Callable[..., Any]

BLOCKS = 64  # of neighbouring samples, scored in an order that is always the same: the data may be sorted
PARTS = 8  # of those blocks: after each, a hopeless candidate is abandoned
HOPELESS = 4.0  # standard errors: a candidate that far beyond the goal is turned down wrongly once in 30 000 times
FEWEST = 64  # samples before a standard error is believed
FEWEST_TO_HALVE = 4  # two in each half: of one there is no interval
UNSEEN = 3.0  # what none of n samples shows may still happen to 3 in n (at 95 %; Hanley & Lippman-Hand 1983)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What `evaluate` said of one network.

    metric     its one number, or the mean of its per-sample scores
    samples    the per-sample scores, None if it returned one number
    abandoned  whether scoring stopped early: `samples` are then only those of the first blocks in `in_order`
    """

    metric: float
    samples: tuple[float, ...] | None = None
    abandoned: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A candidate beside the float network.

    drop       what is lost, in units of the metric; negative if the candidate is better
    interval   between which bounds the drop lies, paired bootstrap; None without per-sample scores
    met        whether the drop is within the goal
    certified  whether even the upper bound of the interval is; without an interval, whether it is met
    samples    how many it was read from; None for one number
    """

    drop: float
    interval: tuple[float, float] | None
    met: bool
    certified: bool
    samples: int | None = None

    @property
    def noise(self) -> float:
        """How far the interval reaches beyond the drop: no smaller drop could be told from none; 0 without one."""
        return self.interval[1] - self.drop if self.interval else 0.0


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How much may be lost.

    max_drop          0.01 is 1 % of the float metric if `relative`, else 0.01 of the metric's own unit
    higher_is_better  of the metric
    confidence        of the intervals
    min_int8          the share of the multiplications that has to run on integers, 0 … 1: what keeps its accuracy by
                      staying in float is not what was asked for
    raises            QuantizationError for a max_drop that is negative or no number, and for no share
    """

    max_drop: float = 0.01
    relative: bool = True
    higher_is_better: bool = True
    confidence: float = 0.95
    min_int8: float = field(default=0.9, repr=False)  # trials, which are named after this, do not depend on it

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.min_int8 <= 1:
            raise QuantizationError(
                asked=f"run a share of {self.min_int8} of the multiplications on integers",
                seen="a share is a number from 0 to 1",
                remedy="pass min_int8=0.9 for nine of ten",
                site="min_int8",
            )
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0 and 0 < self.confidence < 1):
            raise QuantizationError(
                asked=f"stay within a drop of {self.max_drop} with confidence {self.confidence}",
                seen="a drop is a number from 0 up, a confidence one between 0 and 1",
                remedy="pass max_drop=0.01 for one per cent of the float metric",
            )

    def __str__(self) -> str:
        return in_words(self.max_drop, relative=self.relative)

    def check(self, reference: Score) -> None:
        """Raise QuantizationError for a drop that is a share of nothing: what scores 0 is most likely broken."""
        if self.relative and self.max_drop > 0 and reference.metric == 0:
            raise QuantizationError(
                asked=f"lose at most {self}",
                seen="the float network scores 0",
                remedy="see that evaluate scores what the network returns; if 0 is right, say the drop in the metric's "
                'own unit: max_drop="0.3 points"',
            )

    def allowed(self, reference: Score) -> float:
        """The largest drop that meets the goal, in units of the metric."""
        return self.max_drop * (abs(reference.metric) if self.relative else 1.0)

    def judge(self, reference: Score, candidate: Score, of: Sequence[int] | None = None) -> Verdict:
        """How `candidate` stands to the float network's score.

        of  the numbers of the samples to compare; all by default. What is allowed stays a share of the whole metric
        """
        sign = 1.0 if self.higher_is_better else -1.0
        allowed = self.allowed(reference)
        if candidate.abandoned and reference.samples is not None and candidate.samples is not None:
            lost = [loss for block in self._lost(reference, candidate.samples) for loss in block.values()]
            drop = sum(lost) / len(lost)
            return Verdict(drop=drop, interval=None, met=False, certified=False, samples=len(candidate.samples))
        if reference.samples is None or candidate.samples is None or len(reference.samples) == 1:
            drop = sign * (reference.metric - candidate.metric)
            met = drop <= allowed and not candidate.abandoned
            return Verdict(drop=drop, interval=None, met=met, certified=met)
        wanted, found = (sign * torch.tensor(score.samples, dtype=torch.float64) for score in (reference, candidate))
        if of is not None:
            wanted, found = wanted[list(of)], found[list(of)]
        interval = paired_interval(wanted, found, confidence=self.confidence)
        bounds = (interval.low, interval.high)
        met, certified = interval.drop <= allowed, interval.high <= allowed
        return Verdict(drop=interval.drop, interval=bounds, met=met, certified=certified, samples=len(wanted))

    def hopeless(self, reference: Score, seen: Sequence[float]) -> bool:
        """Whether a candidate with these scores, of the first blocks in order, cannot reach the goal on the others.

        The samples that choose say so, and those that certify are not looked at.

        Neighbours may be alike (sorted by class, say), so the error is that of blocks if it is larger: few of them have
        an uncertain one, and the candidate must be further beyond the goal (Student's t, nearly).
        """
        parts = halves(reference)
        choosing = None if parts is None else frozenset(parts[0])
        in_blocks = [
            torch.tensor(own, dtype=torch.float64)
            for block in self._lost(reference, seen)
            if (own := [loss for place, loss in block.items() if choosing is None or place in choosing])
        ]
        if sum(map(len, in_blocks)) < FEWEST:
            return False
        lost, means, blocks = torch.cat(in_blocks), torch.stack([own.mean() for own in in_blocks]), len(in_blocks)
        errors = [
            HOPELESS * lost.std().item() / math.sqrt(len(lost)),
            HOPELESS * (1 + PARTS / blocks) * means.std().item() / math.sqrt(blocks),
        ]
        return bool(lost.mean().item() - max(errors) > self.allowed(reference))

    def _lost(self, reference: Score, seen: Sequence[float]) -> Iterator[dict[int, float]]:
        """{sample: what is lost in it}, of each block that has been scored, in order."""
        assert reference.samples is not None
        sign, scores = 1.0 if self.higher_is_better else -1.0, iter(seen)
        for block in in_order(len(reference.samples)):
            places = range(block.start, block.stop)
            own = {
                place: sign * (reference.samples[place] - score) for place, score in zip(places, scores, strict=False)
            }
            if not own:
                return
            yield own


def halves(reference: Score) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(the samples that choose among candidates, those that certify what was chosen), by number; None if too few.

    Every second one in the order of the float network's scores, and of the data where those are the same: both halves
    have the same share of what the float network gets right, and of a class that lies together.
    """
    if reference.samples is None or len(reference.samples) < FEWEST_TO_HALVE:
        return None
    scores = reference.samples
    order = sorted(range(len(scores)), key=lambda number: (scores[number], number))
    return tuple(sorted(order[::2])), tuple(sorted(order[1::2]))


def unseen(*scores: Score) -> float:
    """How much may be lost that no sample shows: networks that agree on all of few samples are not the same."""
    number = min((len(score.samples) for score in scores if score.samples), default=1)
    values = [0.0, *(value for score in scores for value in score.samples or ())]
    return UNSEEN * (max(values) - min(values)) / number


def in_order(total: int) -> tuple[slice, ...]:
    """All of `total` samples in blocks, in the order in which they are scored."""
    bounds = [total * number // BLOCKS for number in range(BLOCKS + 1)]
    blocks = [slice(start, end) for start, end in pairwise(bounds) if start < end]
    Random(0).shuffle(blocks)
    return tuple(blocks)


def score(evaluate: Evaluate, model: Any, *, reference: Score | None = None, goal: Goal | None = None) -> Score:
    """What `evaluate` says of `model`; in parts, if it takes `samples=slice` and there is a reference to compare with.

    evaluate  (model) → one number or a sequence of per-sample scores; with a keyword `samples`, a slice of the samples
              to score, it is called block by block in an order of its own, and left as soon as the goal is out of reach
    raises    QuantizationError for a score that is NaN or infinite, no samples, or another number of them than before
    """
    parts = goal is not None and reference is not None and reference.samples is not None and _takes_slices(evaluate)
    with torch.no_grad():
        found = _scored_in_parts(evaluate, model, reference, goal) if parts else _as_score(evaluate(model))  # type: ignore[arg-type]
    if reference is not None and not found.abandoned and not _as_many(reference, found):
        raise QuantizationError(
            asked="compare two networks sample by sample",
            seen=f"evaluate returned {_count(reference)} for the float network and {_count(found)} now",
            remedy="score the same samples in the same order at every call",
        )
    return found


def _scored_in_parts(evaluate: Evaluate, model: Any, reference: Score, goal: Goal) -> Score:
    assert reference.samples is not None
    total = len(reference.samples)
    order = in_order(total)
    seen: list[float] = []
    found = [math.nan] * total
    for number, block in enumerate(order, 1):
        scores = _numbers(evaluate(model, samples=block))
        if len(scores) != block.stop - block.start:
            raise QuantizationError(
                asked="score some of the samples",
                seen=f"evaluate returned {len(scores)} scores for samples={block}",
                remedy="return one score for each sample of that slice, or leave out the keyword samples",
            )
        seen += scores
        found[block] = scores
        if number % (BLOCKS // PARTS) == 0 and number < len(order) and goal.hopeless(reference, seen):
            return Score(metric=math.fsum(seen) / len(seen), samples=tuple(seen), abandoned=True)
    return _as_score(found)


def _takes_slices(evaluate: Evaluate) -> bool:
    return "samples" in inspect.signature(evaluate).parameters


def _as_score(value: Any) -> Score:
    """One number or per-sample scores. A single one is one number in whatever form: its noise cannot be known."""
    samples = _numbers(value)
    if len(samples) == 1:
        return Score(metric=samples[0])
    return Score(metric=math.fsum(samples) / len(samples), samples=samples)


def _numbers(value: Any) -> tuple[float, ...]:
    """Finite numbers, at least one: of a number, a list, an array, a tensor."""
    try:
        found = real(value, "score a network").flatten()
    except QuantizationError as error:
        raise _no_score(f"a {type(value).__name__} ({error.seen})") from error
    if found.numel() == 0:
        raise _no_score("no scores")
    if not bool(torch.isfinite(found).all()):
        raise _no_score("NaN or infinity")
    return tuple(found.tolist())


def _no_score(seen: str) -> QuantizationError:
    return QuantizationError(
        asked="score a network",
        seen=f"evaluate returned {seen}",
        remedy="return one number, or one finite number for every sample",
    )


def _as_many(reference: Score, found: Score) -> bool:
    return _count(reference) == _count(found)


def _count(found: Score) -> str:
    return "one number" if found.samples is None else f"{len(found.samples)} scores"
