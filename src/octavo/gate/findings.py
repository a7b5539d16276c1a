"""What a check found, as the rows of its record."""

import math
from collections.abc import Sequence

import numpy as np

from octavo.engines.ran import per_cent
from octavo.gate.compare import Compared
from octavo.gate.data import Samples
from octavo.gate.labels import Right
from octavo.gate.measures import Measured
from octavo.gate.names import quoted
from octavo.gate.network import Array, Opened, Told
from octavo.gate.record import Class, Input, Layer, Output, Ran, Sample, Score, Side, finite
from octavo.gate.verdict import Judged, Word
from octavo.numerics.decibels import decibels
from octavo.workflow.goal import Goal

MOST = 10  # samples, classes, and layers in float that are listed


def concluded(goal: Goal, found: Judged | None, told: Told, broken: Sequence[int], samples: int) -> tuple[Word, str]:
    """The verdict, and why, in one sentence."""
    if found is None:
        where = f"in {len(broken)} of {samples} samples, first in {broken[0]}" if broken else "while it is scored"
        return "not met", f"The int8 network returns NaN or infinity {where}."
    if goal.min_int8 > 0 and found.word != "not met" and (told.share or 0.0) < goal.min_int8:
        kept = "; what may be lost is kept" if found.word == "met" else ""
        asked = f"{per_cent(told.share or 0.0)} of it runs on integers, and {per_cent(goal.min_int8)} are asked for"
        return "not met", f"{asked}{kept}."
    return found.word, _sentence(goal, found)


def _sentence(goal: Goal, found: Judged) -> str:
    verdict, measured = found.verdict, found.measured
    what = f"{measured.name} of {quoted(measured.output)}" if measured.output else measured.name
    lost = f"{what} {measured.reference.metric:.5g} → {measured.other.metric:.5g}: a drop of {verdict.drop:.3g}"
    if verdict.interval is not None and math.isfinite(verdict.interval[0]):
        low, high = verdict.interval
        lost += f" ({100 * goal.confidence:g} % interval {low:.3g} … {high:.3g}, {verdict.samples} samples)"
    lost += f", of which {found.allowed:.3g} is allowed"
    if found.word == "could not tell":
        if found.samples_needed is not None:
            return f"{lost}. That is too few samples to tell; about {found.samples_needed} would do."
        return (
            f"{lost}. {'That is too few samples to tell' if found.allowed else 'No number of samples would tell that'}."
        )
    return f"{lost}." if verdict.interval is not None else f"{lost}. One number has no interval."


def side(network: Opened, told: Told) -> Side:
    """One network, and what ran of it."""
    return Side(
        name=network.name,
        kind=network.kind,
        runtime=network.runtime,
        size_mb=None if network.size_mb is None else round(network.size_mb, 6),
        ran=ran_row(told),
    )


def ran_row(told: Told) -> Ran:
    """What ran on integers, and the first layers that did not."""
    left = [Layer(layer=one.layer, kernel=one.kernel) for one in told.products or () if not one.on_integers]
    return Ran(
        by=told.by,
        products=None if told.products is None else len(told.products),
        on_integers=None if told.products is None else told.on_integers,
        share_of_multiplications=told.share_of_work,
        in_float=left[:MOST],
    )


def input_rows(samples: Samples) -> dict[str, Input]:
    """What both read."""
    return {name: Input(dtype=dtype, shape=list(shape)) for name, (dtype, shape) in samples.shapes().items()}


def score_row(found: Judged) -> Score:
    """The measure that judged."""
    measured, verdict = found.measured, found.verdict
    bounds = verdict.interval
    return Score(
        measure=measured.name,
        output=measured.output,
        why=measured.why,
        higher_is_better=measured.higher_is_better,
        float_score=measured.reference.metric,
        int8_score=measured.other.metric,
        drop=verdict.drop,
        allowed=found.allowed,
        interval=bounds if bounds is not None and all(map(math.isfinite, bounds)) else None,
        samples=None if measured.reference.samples is None else len(measured.reference.samples),
        samples_needed=found.samples_needed,
    )


def output_row(output: Compared) -> Output:
    """How far one output of the two lies apart."""
    noise = float(output.noise.mean())
    return Output(
        name=output.name,
        dtype=output.dtype,
        shape=list(output.shape),
        sqnr_db=finite(output.sqnr_db),
        identical=noise == 0.0 and not output.broken and (output.floating or output.agreement == 100.0),
        agreement=output.agreement,
        largest_error=float(output.largest.max()),
        fidelity=100.0 * (1.0 - noise / output.variance) if output.variance > 0 else None,
    )


def sample_rows(
    measured: Measured, outputs: Sequence[Compared], right: Right | None, labels: Array | None
) -> list[Sample]:
    """The samples that lose most: by their scores, then by their distance."""
    reference, other = measured.reference.samples, measured.other.samples
    if reference is None or other is None:
        return []
    sign = 1.0 if measured.higher_is_better else -1.0
    lost = sign * (np.asarray(reference) - np.asarray(other))
    output = next((one for one in outputs if one.name == measured.output), None)
    noise = output.noise if output is not None else np.zeros(len(lost))
    order = [int(number) for number in np.lexsort((np.arange(len(lost)), -noise, -lost)) if lost[number] > 0]
    return [
        Sample(
            sample=number,
            float_score=reference[number],
            int8_score=other[number],
            sqnr_db=None if output is None else finite(decibels(float(output.power[number]), float(noise[number]))),
            **_classes(number, measured, right, labels),
        )
        for number in order[:MOST]
    ]


def _classes(number: int, measured: Measured, right: Right | None, labels: Array | None) -> dict[str, int]:
    if right is None or right.decided is None or labels is None or measured.name != "accuracy":
        return {}
    wanted, found = right.decided[number].tolist()
    return {"label": int(labels[number]), "float_class": wanted, "int8_class": found}


def class_rows(right: Right) -> list[Class]:
    """The classes of which most is lost, as a share of their samples."""
    rows = [
        Class(
            label=label,
            samples=total,
            float_recall=100.0 * wanted / total,
            int8_recall=100.0 * found / total,
        )
        for label, (total, wanted, found) in enumerate(right.classes.tolist())
        if total and found < wanted
    ]
    return sorted(rows, key=lambda row: (row.int8_recall - row.float_recall, row.label))[:MOST]


def notes(
    told: tuple[Told, Told],
    samples: Samples,
    both: tuple[Opened, Opened],
    outputs: Sequence[Compared],
    found: Judged | None,
) -> list[str]:
    """What a reader has to know beside the numbers."""
    return [*_of_runs(told, both), *_of_data(samples, both), *_of_outputs(outputs, found)]


def _of_runs(told: tuple[Told, Told], both: tuple[Opened, Opened]) -> list[str]:
    """What ran on integers, or did not."""
    found = []
    reference, other = told
    if other.products is None:
        found.append(f"What runs on integers in {quoted(both[1].name)} is unknown: it is told by {other.by}.")
    elif not other.products:
        found.append(f"{quoted(both[1].name)} has no convolution, matrix product or recurrent layer.")
    elif not other.on_integers:
        found.append(f"Nothing in {quoted(both[1].name)} runs on integers.")
    if reference.on_integers:
        share = f"{reference.on_integers} of {len(reference.products or ())} products on integers"
        found.append(f"{quoted(both[0].name)}, the float network, runs {share}.")
    if other.by_batch:
        how = "takes scales from each batch while it runs: scores depend on how many samples are in it"
        found.append(f"{quoted(both[1].name)} {how}.")
    return found


def _of_data(samples: Samples, both: tuple[Opened, Opened]) -> list[str]:
    """Which arrays no network reads."""
    if not all(network.inputs for network in both):
        return []
    unread = _unread(samples, {port.name for network in both for port in network.inputs or ()})
    return [f"No network reads {', '.join(map(quoted, unread))} of the data."] * bool(unread)


def _of_outputs(outputs: Sequence[Compared], found: Judged | None) -> list[str]:
    """Which outputs the labels leave out."""
    if found is None or found.measured.name != "accuracy" or len(outputs) < 2:
        return []
    others = [quoted(one.name) for one in outputs if one.name != found.measured.output]
    return [f"The labels judge {quoted(str(found.measured.output))} alone: nothing is asked of {', '.join(others)}."]


def _unread(samples: Samples, known: set[str]) -> list[str]:
    """The arrays that no input has the name of; none where they went in by their order."""
    names = list(samples.groups[0])
    return [name for name in names if name not in known] if known & set(names) else []
