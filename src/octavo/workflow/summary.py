"""What a search did and why it stopped, in one paragraph: what is lost, how sure that is, what runs on integers."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from octavo.engines.ran import per_cent
from octavo.machine import adds_int8_pairs_in_16_bits
from octavo.network.work import work_of

if TYPE_CHECKING:
    from octavo.workflow.outcome import Result

MOST_IN_FLOAT = 5  # operations that are named, the heaviest first
SAFE_BITS = 7  # of a weight, for such a CPU; fewer were asked for
NO_VNNI = "this CPU has no VNNI: it adds pairs of int8 products in 16 bits, which weights of eight bits would overflow"


def summary(result: "Result") -> str:
    """What was done and why it stopped, in one paragraph."""
    best = result.best
    lines = [
        f"The float network scores {result.reference.metric:.6g}; the goal allows a drop of {_allowed(result)}.",
        f"Of {_count(len(result.trials), 'trial')} on {_stages(result)} the best is {best.method} calibration"
        f"{_made(result)}: {best.metric:.6g}, {_drop(result)} on the engine {result.engine}.",
        f"The goal is {_outcome(result)}; the search ended because {result.stopped}.",
        *_arithmetic(result),
        *_doubts(result),
    ]
    return " ".join(lines)


def _allowed(result: "Result") -> str:
    """The goal both ways, as a share and in the metric's own unit: one is easily taken for the other."""
    goal, reference = result.goal, result.reference
    allowed = goal.allowed(reference)
    if goal.relative:
        return f"{goal}, {allowed:.4g}"
    share = f": {100 * allowed / abs(reference.metric):.3g} % of the float score" if reference.metric else ""
    return f"{goal}{share}"


def _made(result: "Result") -> str:
    """What was done beside calibrating, repairs with the number of layers that they changed."""
    best = result.best
    made = ["scales of rows"] * best.rows + ["one scale a tensor"] * (not best.channels)
    for name in best.repairs:
        layers = f" ({_count(result.repaired[name], 'layer')})" if name in result.repaired else ""
        made.append(f"{name.replace('_', ' ')}{layers}")
    made += ["training"] * best.trained
    kept = f" with {_count(len(best.kept_float), 'layer')} left in float" if best.kept_float else ""
    return "".join(f", {one}" for one in made) + kept


def _arithmetic(result: "Result") -> Iterator[str]:
    """What runs on how many bits, and what does not."""
    told, coverage = result.ran, result.coverage
    planned = f"{coverage.quantized} of {coverage.total} compute-heavy operations planned int8"
    in_float = _in_float(result)
    named = ", ".join(f"{layer} ({why})" for layer, why in in_float[:MOST_IN_FLOAT])
    more = f" and {len(in_float) - MOST_IN_FLOAT} more" if len(in_float) > MOST_IN_FLOAT else ""
    yield f"{told.counts if told else planned}{f'; in float: {named}{more}' if named else ''}."
    yield from _narrow_weights(result)
    notes = result.net.notes
    if notes:
        yield f"Noted: {notes[0]}{f' ({len(notes) - 1} more in notes)' if len(notes) > 1 else ''}."


def _in_float(result: "Result") -> list[tuple[str, str]]:
    """(layer, why) of every compute-heavy operation in float, the heaviest first: as planned, and as the engine ran."""
    told, work = result.ran, work_of(result.net.plan)
    chosen = dict.fromkeys(result.kept_float, "the search left it in float")
    found = {kept.site: chosen.get(kept.site, kept.reason) for kept in result.coverage.kept_float}
    if told is not None:
        found |= {layer: f"planned int8, runs as {told.kernel(layer)}" for layer in told.in_float}
    return sorted(found.items(), key=lambda one: -work.get(one[0], 0.0))


def _narrow_weights(result: "Result") -> Iterator[str]:
    """How many weights have fewer than eight bits, and why."""
    plan = result.net.plan
    bits = Counter(quantizer.scheme.bits for quantizer in plan.quantizers if quantizer.constant)
    for number, count in sorted(bits.items(), reverse=True):
        if number >= 8:
            continue
        because = ""
        if number == plan.target.weight.bits == SAFE_BITS and adds_int8_pairs_in_16_bits():
            because = f", because {NO_VNNI}"
        verb = "has" if count == 1 else "have"
        yield f"{count} of {_count(bits.total(), 'weight')} {verb} {number} bits{because}."


def _doubts(result: "Result") -> Iterator[str]:
    """What makes the verdict less sure than it looks."""
    goal, verdict = result.goal, result.verdict
    if result.overlap is not None and result.overlap.scored_too:
        yield f"{result.overlap}."
    if result.too_few and verdict.interval:
        enough = f"; about {result.samples_needed} would do" if result.samples_needed else ""
        reaches = f"the interval of all of them reaches {verdict.interval[1]:.4g}"
        yield f"There are too few samples to certify {goal}: {reaches}{enough}."
    if verdict.interval is None and result.reference.samples is None:
        yield "evaluate returned one number, so there is no interval; per-sample scores would give one."


def _drop(result: "Result") -> str:
    """What is lost, on which samples."""
    lost = f"a drop of {result.verdict.drop:.4g}{_interval(result)}"
    if result.verdict.samples is None or result.too_few or result.best.abandoned:
        return lost
    return f"{lost} on the {result.verdict.samples} samples that did not choose it,"


def _outcome(result: "Result") -> str:
    """Whether the goal is met, and how sure that is."""
    if result.int8_share < result.goal.min_int8:
        found, asked = per_cent(result.int8_share), per_cent(result.goal.min_int8)
        return f"not met: {found} of the multiplications run on integers, and {asked} are asked for"
    if result.certified:
        return "met, and certified"
    if result.verdict.interval is None or result.too_few:
        return "met" if result.met else "not met"
    return "met, but not certified" if result.met else "not met on the samples that did not choose it"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _stages(result: "Result") -> str:
    names = [stage.stage for stage in result.stages]
    return f"the stage{'' if len(names) == 1 else 's'} {', '.join(names)}"


def _interval(result: "Result") -> str:
    if result.verdict.interval is None:
        return ""
    low, high = result.verdict.interval
    return f" ({100 * result.goal.confidence:g} % interval {low:.4g} … {high:.4g})"
