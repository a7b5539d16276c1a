"""The stages of the paper's workflow, in order (Wu et al. 2020, §6): one is tried if those before missed the goal.

What costs the served network nothing comes first: ranges, then repairs. Then what costs it time, the least first.

A stage is a function of the search; it measures candidates until it has none left. A new technique is a new row of
`STAGES`.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice

from octavo.network.partial import layers
from octavo.network.plan import Plan
from octavo.network.work import share, work_of
from octavo.recovery.repair import REPAIRS
from octavo.recovery.sensitivity import Sensitivity, exact
from octavo.workflow.kept import parsed
from octavo.workflow.search import Prefer, Search
from octavo.workflow.study import Trial
from octavo.workflow.trial import Candidate, candidate_of, fitted, placed, quantized

PAPER_METHODS = ("max", "entropy", "99.99", "99.999")
MORE_METHODS = ("99.9", "99.9999", "mse")
SENSITIVITY_BATCHES = 2  # of the calibration data: ranks what full evaluations then decide

Stage = Callable[[Search], None]


def calibration(search: Search) -> None:
    """Stage a: post-training quantization by the methods that the paper compares."""
    search.measure([Candidate(method=method) for method in PAPER_METHODS], "ptq")


def more_calibration(search: Search) -> None:
    """Stage a, continued: the percentiles further out, and least squares."""
    search.measure([Candidate(method=method) for method in MORE_METHODS], "ptq_more")


def tensor(search: Search) -> None:
    """Stage a, continued: one scale a tensor where the target has one for each channel of some (§3.2).

    A channel that few samples excite has a range that others leave: the best method first, and if it is better so, all.
    """
    best, context = search.best(), search.context
    if best is None or not context.plan.target.channels:
        return
    candidate = replace(candidate_of(best), channels=False)
    if placed(context, candidate)[0].quantizers == context.plan.quantizers:
        return
    (trial,) = search.measure([candidate], "tensor")
    if not search.settles(trial) and _better(search, trial, best):
        search.measure([Candidate(method=method, channels=False) for method in PAPER_METHODS], "tensor")


def repairs(search: Search) -> None:
    """Stage b: repairs of the best calibration so far, each kept if the metric is better for it."""
    best = search.best()
    for name in REPAIRS if best is not None else ():
        assert best is not None
        candidate = replace(candidate_of(best), repairs=(*best.repairs, name))
        (trial,) = search.measure([candidate], "repair")
        if search.settles(trial):
            return
        if _better(search, trial, best):
            best = trial


def _better(search: Search, trial: Trial, than: Trial) -> bool:
    """Whether `trial` loses less."""
    return trial.error is None and not trial.abandoned and search.verdict(trial).drop < search.verdict(than).drop


def rows(search: Search) -> None:
    """Stage c: what linears and matmuls read, rounded by rows, where they are most of the network (§3.2).

    No range of theirs is calibrated then, so outlying tokens or samples coarsen no others. It costs some of the time
    that int8 won, and a layer in float all that it won there.
    """
    best, context = search.best(), search.context
    if best is None or context.plan.target.rows:
        return
    candidate = Candidate(method=best.method, rows=True, channels=best.channels)
    if mostly_rows(placed(context, candidate)[0]):
        search.measure([candidate], "rows")


def mostly_rows(plan: Plan) -> bool:
    """Whether half of what `plan` quantizes, or more, reads rows on scales of their own."""
    found = {site.layer for q in plan.quantizers if q.scheme.rows for site in q.sites}
    return 0 < plan.coverage.quantized <= 2 * len(found)


def train(search: Search) -> None:
    """Stage e: training with rounding, from the best calibrated and repaired network with no layer in float (§5.2)."""
    whole = [trial for trial in search.trials if trial.error is None and not trial.kept_float]
    if search.context.train is None or not whole:
        return
    best = min(whole, key=lambda trial: search.verdict(trial).drop)
    search.view.doing("training")
    search.measure([replace(candidate_of(best), trained=True)], "train")


def partial(search: Search) -> None:
    """Stage d: the smallest set of layers left in float that meets the goal, from the best candidate not yet fitted.

    No larger one is tried than leaves the goal's share of the multiplications on integers.

    What is fitted to the rounding of all layers is wrong when some are no longer rounded: of ResNet-20 with activations
    of four bits 12 layers would stay in float instead of 6.
    """
    best = search.best(lambda trial: not fitted(candidate_of(trial)))
    if best is None:
        return
    start = candidate_of(best)
    plan = quantized(search.context, start).plan
    order = layers(plan)
    search.view.doing("sensitivity of every layer")
    search.sensitivities = _sensitivities(search, start)
    ranked = [row.layer for row in sorted(search.sensitivities, key=_gain(search.prefer), reverse=True)]

    def works(kept: Sequence[str]) -> bool:
        (trial,) = search.measure([replace(start, kept_float=_in_order(kept, order))], "partial")
        return search.settles(trial)

    allowed = _within(search.context.goal.min_int8, plan, ranked)
    smallest_set(allowed, works, trims=math.floor(math.log2(len(allowed))) + TRIMS if allowed else 0)


def _within(least: float, plan: Plan, ranked: Sequence[str]) -> Sequence[str]:
    """As many of `ranked`, from the front, as may be left in float, and one more: `smallest_set` never leaves all."""
    work, allowed = work_of(plan), 0
    while allowed < len(ranked):
        left = set(ranked[: allowed + 1])
        if share(work, [layer for layer in plan.coverage.layers if layer not in left]) < least:
            break
        allowed += 1
    return ranked[: allowed + 1]


TRIMS = 8  # attempts to put a layer back, beyond log₂ of their number


def smallest_set(
    ranked: Sequence[str], works: Callable[[Sequence[str]], bool], *, trims: int
) -> tuple[str, ...] | None:
    """The fewest layers to leave in float: the first k of `ranked`, k by bisection, then each put back if it can be.

    ranked   layers, the one to leave in float first at the front
    works    whether leaving these in float meets the goal; called at most ⌈log₂ N⌉ + trims times
    returns  None if even leaving all but one in float does not work
    """
    fails, holds = 0, len(ranked)  # nothing in float is known to fail; everything in float is no quantized network
    while holds - fails > 1:
        middle = (fails + holds) // 2
        fails, holds = (fails, middle) if works(ranked[:middle]) else (middle, holds)
    if holds == len(ranked):
        return None
    kept = list(ranked[:holds])
    for layer in kept[-2::-1][:trims]:  # without the last it was found to fail
        without = [other for other in kept if other != layer]
        if works(without):
            kept = without
    return tuple(kept)


def _sensitivities(search: Search, start: Candidate) -> tuple[Sensitivity, ...]:
    """One layer at a time, on some of the calibration data; kept in the study."""
    context = search.context

    def measure() -> bytes:
        batches = list(islice(search.calibration, SENSITIVITY_BATCHES))
        rows = exact(quantized(context, start), batches)
        return json.dumps([asdict(row) for row in rows]).encode()

    kept = search.study.once(f"sensitivity-{context.model}-{context.data}-{start}-{_rules(search)}", measure)
    return parsed(tuple[Sensitivity, ...], kept)


def _rules(search: Search) -> str:
    plan = search.context.plan
    return f"{plan.target.name}-{'-'.join(map(str, plan.rules))}"


def _gain(prefer: Prefer) -> Callable[[Sensitivity], float]:
    """What leaving a layer in float is worth: accuracy, or accuracy per millisecond."""
    if prefer == "accuracy":
        return lambda row: row.loss
    return lambda row: row.loss / max(row.latency_ms, 1e-6)


def _in_order(kept: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    return tuple(layer for layer in order if layer in set(kept))


STAGES: Mapping[str, Stage] = {
    "ptq": calibration,
    "ptq_more": more_calibration,
    "tensor": tensor,
    "repair": repairs,
    "rows": rows,
    "partial": partial,
    "train": train,
}


def walk(search: Search) -> Iterator[str]:
    """Try stage after stage, naming each, until the goal is settled."""
    for name, stage in STAGES.items():
        if search.settled():
            return
        yield name
        stage(search)
