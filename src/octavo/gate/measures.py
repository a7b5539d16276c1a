"""What judges: a score for every sample of both networks, by labels, by a recipe, or by how far the outputs lie apart.

    accuracy    per cent of the labels that are met
    evaluate    what a recipe's evaluate() returns
    agreement   without labels, of outputs that decide: per cent of the float network's decisions that stay as they are.
                What labels would say can be lost is at most what has changed
    fidelity    without labels, of other outputs: 100 · (1 − noise / variance), per cent of the variance of the float
                output over the samples that is kept. 99 is 20 dB below what differs between samples

The float network scores 100 by the last two: 1 % may change, or be noise. All outputs are judged, and the worst counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from octavo.errors import QuantizationError
from octavo.gate.compare import Compared
from octavo.gate.labels import Right
from octavo.gate.names import quoted
from octavo.workflow.goal import Score

Choice = Literal["auto", "agreement", "fidelity"]
Name = Literal["accuracy", "evaluate", "agreement", "fidelity"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Scores of both networks, and of what.

    name              "accuracy", "evaluate", "agreement", "fidelity"
    output            the output that it reads; None for evaluate
    why               this measure
    higher_is_better  of the scores
    """

    name: Name
    output: str | None
    why: str
    reference: Score
    other: Score
    higher_is_better: bool = True


def by_labels(right: Right) -> Measured:
    """Accuracy on labelled samples."""
    why = f"there are labels, and {quoted(right.output)} has scores of their classes"
    return Measured(
        name="accuracy", output=right.output, why=why, reference=_score(right.reference), other=_score(right.other)
    )


def by_distance(outputs: Sequence[Compared], choice: Choice) -> list[Measured]:
    """Agreement or fidelity of every output.

    choice  "auto" takes agreement for class scores
    raises  QuantizationError for agreement of outputs that decide nothing
    """
    if choice not in get_args(Choice):
        raise QuantizationError(
            asked=f"measure {choice!r}", seen="there is no such measure", remedy=f"choose {', '.join(get_args(Choice))}"
        )
    return [_MEASURES[choice](output) for output in outputs]


def _auto(output: Compared) -> Measured:
    if not output.floating:
        return _agreement(output, f"{quoted(output.name)} is {output.dtype}: equal or not")
    if output.rows == "probabilities":
        return _decided(output, f"{quoted(output.name)} holds probabilities")
    if output.rows == "directions":
        return _fidelity(output, f"the rows of {quoted(output.name)} have length 1: directions, not class scores")
    if len(output.shape) == 1 and output.same is not None:
        return _decided(output, f"{quoted(output.name)} looks like scores of {output.shape[0]} classes")
    return _fidelity(output, f"{quoted(output.name)} does not look like scores of classes")


def _decided(output: Compared, why: str) -> Measured:
    """Agreement, if the float network decides at all: where one entry is always the largest, nobody can disagree."""
    if output.winners < 2:
        return _fidelity(output, f"{why}, but one of them is the largest in every sample")
    return _agreement(output, why)


def _agreement(output: Compared, why: str = "it was asked for") -> Measured:
    if output.same is None or (output.floating and output.winners < 2):
        raise QuantizationError(
            asked=f"measure the agreement of {quoted(output.name)}",
            seen="the largest entry is always the same one" if output.winners else "it has no axis of classes",
            remedy="measure its fidelity, or give labels",
            site=output.name,
        )
    return _measured("agreement", output, why, output.same)


def _fidelity(output: Compared, why: str = "it was asked for") -> Measured:
    if output.variance == 0.0:  # the same for every sample, while other outputs are not
        kept = np.where(output.noise == 0.0, 1.0, 0.0)
        return _measured(
            "fidelity", output, f"{why}; it is the same for every sample, so any change is one too much", kept
        )
    return _measured("fidelity", output, why, 1.0 - output.noise / output.variance)


def _measured(name: Name, output: Compared, why: str, kept: np.ndarray) -> Measured:
    return Measured(name=name, output=output.name, why=why, reference=_score(np.ones(len(kept))), other=_score(kept))


def _score(shares: np.ndarray) -> Score:
    """Per cent, sample by sample."""
    return Score(metric=100.0 * float(shares.mean()), samples=tuple((100.0 * shares).tolist()))


_MEASURES: dict[str, Callable[[Compared], Measured]] = {"auto": _auto, "agreement": _agreement, "fidelity": _fidelity}
