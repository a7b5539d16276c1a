"""`octavo check`: is this int8 network, by whatever tool it was made, still the float one?

open both ─▶ what runs on integers ─▶ outputs, sample by sample ─▶ a measure ─▶ the verdict ─▶ size and latency
"""

from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from octavo.arguments import checked
from octavo.errors import QuantizationError
from octavo.gate.batches import chunks, count_of
from octavo.gate.compare import Compared, compared, constant
from octavo.gate.data import Metric, Samples, metric_of, read_samples
from octavo.gate.evaluate import by_recipe
from octavo.gate.findings import (
    MOST,
    class_rows,
    concluded,
    input_rows,
    notes,
    output_row,
    sample_rows,
    score_row,
    side,
)
from octavo.gate.kinds import opened
from octavo.gate.labels import Right
from octavo.gate.match import placed
from octavo.gate.measures import Choice, by_distance, by_labels
from octavo.gate.network import Array, Opened, Told
from octavo.gate.record import Asked, Check, Data, Latency, Times
from octavo.gate.verdict import EXITS, Judged, judged, worst
from octavo.machine import machine, versions
from octavo.measure import latency_ms
from octavo.workflow.drop import drop_of
from octavo.workflow.goal import Goal

BATCH = 8  # samples in a call, where the network takes any number
SIDES = ("float", "int8")
Network = str | PathLike[str] | Callable[..., Any]


@checked
def check(
    float_network: Network,
    int8_network: Network,
    *,
    data: str | PathLike[str] | Mapping[str, Any],
    evaluate: str | PathLike[str] | None = None,
    max_drop: str | float = 0.01,
    relative: bool | None = None,
    min_int8: float = 0.0,
    confidence: float = 0.95,
    measure: Choice = "auto",
    engine: str | None = None,
    batch: int = BATCH,
    bench: bool = True,
    rounds: int = 20,
) -> Check:
    """Whether `int8_network` loses no more against `float_network` than is allowed, and all that was found on the way.

    float_network, int8_network  a recipe, an ONNX file, an OpenVINO IR, an artifact, "file.py:function"; a torch module
                  or a function
    data          an .npz file or a folder of .npy files: arrays by input name, samples along the first axis, and
                  optionally `labels`; a recipe; a dict of arrays
    evaluate      a recipe whose evaluate() is the metric; without one it is accuracy if there are labels, and else how
                  far the outputs lie apart (see `measures.py`)
    max_drop, relative, confidence  as in `quantize`; of measures in per cent
    min_int8      the share on integers that the goal asks for, too; 0 does not
    measure       without labels: "agreement", "fidelity", or "auto", by what the outputs look like
    engine        that runs ONNX files ("onnxruntime", "openvino") and artifacts
    batch         samples in a call, where a network takes any number
    bench, rounds whether to time both, and how often
    raises        QuantizationError for what cannot be opened, run or compared
    """
    _check_counts(batch, rounds)
    drop, is_share = drop_of(max_drop, relative)
    samples = read_samples(data)
    metric = _metric(data, evaluate)
    goal = Goal(
        max_drop=drop,
        relative=is_share,
        higher_is_better=metric.higher_is_better if metric else True,
        confidence=confidence,
        min_int8=min_int8,
    )
    both = opened(float_network, engine), opened(int8_network, engine)
    for group in samples.groups:
        for network in both:
            placed(network, group)  # what does not fit is said before anything runs
    first = next(chunk for _, chunk in chunks(samples.groups, batch))
    told = _told(both[0], first), _told(both[1], first)
    _check_sides(*told, goal)
    outputs, right = compared(*both, samples, batch)
    broken = tuple(sorted({number for output in outputs for number in output.broken}))
    verdict = None if broken else _judged(goal, both, outputs, right, metric, measure)
    latency = _times(both, first, rounds) if bench else None
    return _record(goal, both, told, samples, outputs, right, verdict, broken, latency)


def _metric(data: Any, evaluate: Any) -> Metric | None:
    """That of `evaluate`, or of a recipe that is the data."""
    for source in (evaluate, None if isinstance(data, Mapping) else data):
        if source is not None and Path(source).suffix == ".py":
            return metric_of(Path(source))
    if evaluate is not None:
        raise QuantizationError(
            asked=f"score by {evaluate}",
            seen="it is no recipe",
            remedy="pass a Python file with model(), calibration() and evaluate(network)",
            site="evaluate",
        )
    return None


def _check_counts(batch: int, rounds: int) -> None:
    if batch < 1 or rounds < 1:
        raise QuantizationError(
            asked=f"check with batch={batch} and rounds={rounds}",
            seen="both count something",
            remedy="pass 1 or more",
        )


def _first(network: Opened, chunk: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of a call with the first samples; as many as the network takes."""
    given, size = placed(network, chunk), network.fixed_batch
    count = count_of(given)
    if size is None or size == count:
        return given
    return {name: array[[place % count for place in range(size)]] for name, array in given.items()}


def _told(network: Opened, chunk: Mapping[str, Array]) -> Told:
    return network.told(_first(network, chunk))


def _check_sides(reference: Told, other: Told, goal: Goal) -> None:
    """Refuse networks that are swapped, and a share on integers of what does not tell."""
    if reference.on_integers and other.products is not None and not other.on_integers:
        raise QuantizationError(
            asked="check an int8 network against a float one",
            seen=f"of the first, {reference.on_integers} of {len(reference.products or ())} products run on integers, "
            "and none of the second",
            remedy="swap them: the float network comes first",
        )
    if goal.min_int8 > 0 and other.share is None:
        seen = "it has no product" if other.products == () else f"what runs there is told by {other.by}"
        raise QuantizationError(
            asked=f"have a share of {goal.min_int8:g} run on integers",
            seen=seen,
            remedy="check the file that is deployed, or leave --min-int8 out",
            site="min_int8",
        )


def _judged(
    goal: Goal,
    both: tuple[Opened, Opened],
    outputs: tuple[Compared, ...],
    right: Right | None,
    metric: Metric | None,
    choice: Choice,
) -> Judged | None:
    """The verdict of the recipe, else of the labels, else of the distance; None for NaN where a recipe scores."""
    if metric is not None:
        measured = by_recipe(metric, *both)
        return None if measured is None else judged(goal, measured)
    _check_varied(outputs)
    if right is not None:
        _check_classes(right)
        return judged(goal, by_labels(right))
    return worst([judged(goal, one) for one in by_distance(outputs, choice)])


def _check_varied(outputs: tuple[Compared, ...]) -> None:
    if len(outputs[0].noise) > 1 and constant(outputs):
        raise QuantizationError(
            asked="compare with the float network",
            seen=f"it returns the same for all {len(outputs[0].noise)} samples",
            remedy="see that it is trained, and that the samples differ and are what it takes",
        )


def _check_classes(right: Right) -> None:
    """Refuse labels that a network meets which always answers the same."""
    present = right.classes[:, 0].nonzero()[0]
    if len(right.reference) > 1 and len(present) == 1:
        raise QuantizationError(
            asked="score by labels",
            seen=f"all {right.classes[present[0], 0]} labels are {present[0]}: who always says that is right",
            remedy="give samples of other classes, too, or leave the labels out",
            site="labels",
        )


def _times(both: tuple[Opened, Opened], chunk: Mapping[str, Array], rounds: int) -> Latency | None:
    """Both on the same samples, turn by turn; None where each takes another number of them."""
    given = [_first(network, chunk) for network in both]
    counts = {count_of(arrays) for arrays in given}
    if len(counts) > 1:
        return None
    times = latency_ms(
        {side: partial(network.call, arrays) for side, network, arrays in zip(SIDES, both, given, strict=True)},
        rounds=rounds,
    )
    rows = [
        Times(median_ms=round(one.median_ms, 4), p10_ms=round(one.p10_ms, 4), p90_ms=round(one.p90_ms, 4))
        for one in times.values()
    ]
    faster = round(times.ratio(*SIDES), 3)
    return Latency(batch=counts.pop(), rounds=rounds, float_times=rows[0], int8_times=rows[1], int8_is_faster_by=faster)


def _record(
    goal: Goal,
    both: tuple[Opened, Opened],
    told: tuple[Told, Told],
    samples: Samples,
    outputs: tuple[Compared, ...],
    right: Right | None,
    found: Judged | None,
    broken: tuple[int, ...],
    latency: Latency | None,
) -> Check:
    word, reason = concluded(goal, found, told[1], broken, samples.count)
    return Check(
        verdict=word,
        exit_code=EXITS[word],
        reason=reason,
        float_network=side(both[0], told[0]),
        int8_network=side(both[1], told[1]),
        data=Data(
            source=samples.source,
            samples=samples.count,
            labels=samples.labels is not None,
            inputs=input_rows(samples),
        ),
        asked=Asked(max_drop=goal.max_drop, relative=goal.relative, confidence=goal.confidence, min_int8=goal.min_int8),
        score=None if found is None else score_row(found),
        outputs=[output_row(output) for output in outputs],
        broken_samples=list(broken[:MOST]),
        worst_samples=[] if found is None else sample_rows(found.measured, outputs, right, samples.labels),
        worst_classes=[] if right is None else class_rows(right),
        latency=latency,
        notes=notes(told, samples, both, outputs, found),
        versions=versions(),
        machine=machine(),
    )
