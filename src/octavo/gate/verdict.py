"""Met, not met, or not to be told: what is lost, its interval, and what so few samples do not show.

    met             the whole interval lies within what may be lost, and so does what none of the samples shows
    not met         the whole interval lies beyond, or the int8 network returns NaN or infinity
    could not tell  all else: the samples are too few

One number for all samples has no interval: it is met or not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from octavo.exits import Exit
from octavo.gate.measures import Measured
from octavo.workflow.goal import Goal, Verdict, unseen

Word = Literal["met", "not met", "could not tell"]
EXITS: dict[Word, Exit] = {"met": Exit.MET, "not met": Exit.NOT_MET, "could not tell": Exit.COULD_NOT_TELL}
_RANK: dict[Word, int] = {"met": 0, "could not tell": 1, "not met": 2}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A measure, and what it says.

    allowed         what may be lost, in units of the metric
    samples_needed  how many would tell, about; None if these do, or no number would
    """

    word: Word
    measured: Measured
    verdict: Verdict
    allowed: float
    samples_needed: int | None = None


def judged(goal: Goal, measured: Measured) -> Judged:
    """What `measured` says of `goal`.

    raises  QuantizationError for a float metric of 0, of which no share can be lost
    """
    goal.check(measured.reference)
    verdict, allowed = goal.judge(measured.reference, measured.other), goal.allowed(measured.reference)
    hidden = unseen(measured.reference, measured.other) if measured.reference.samples else 0.0
    word = _word(verdict, allowed, hidden, single=_is_single(measured))
    needed = _needed(verdict, allowed, hidden, measured) if word == "could not tell" else None
    return Judged(word=word, measured=measured, verdict=verdict, allowed=allowed, samples_needed=needed)


def worst(found: Sequence[Judged]) -> Judged:
    """Of several outputs the one that is farthest from the goal: it is met where all of them keep it."""
    return max(found, key=lambda one: (_RANK[one.word], one.verdict.drop))


def _is_single(measured: Measured) -> bool:
    return measured.reference.samples is not None and len(measured.reference.samples) == 1


def _word(verdict: Verdict, allowed: float, hidden: float, *, single: bool) -> Word:
    if verdict.interval is None:
        return "could not tell" if single else "met" if verdict.met else "not met"
    low, high = verdict.interval
    if low > allowed:
        return "not met"
    return "met" if high <= allowed and hidden <= allowed else "could not tell"


def _needed(verdict: Verdict, allowed: float, hidden: float, measured: Measured) -> int | None:
    """How many samples would tell: intervals shrink with the root of their number, what is unseen with it."""
    count, room = len(measured.reference.samples or ()), allowed - verdict.drop
    if room == 0 or not count or (room < 0 and verdict.interval is None) or (hidden > 0 and allowed == 0 and room > 0):
        return None
    shares = [hidden / allowed] if room > 0 and allowed > 0 else []
    if verdict.interval is not None:
        low, high = verdict.interval
        reach = high - verdict.drop if room > 0 else verdict.drop - low
        shares.append((reach / room) ** 2)
    needed = math.ceil(count * max(shares, default=0.0))
    return needed if needed > count else count + 1
