"""What is right by the labels: how often each network meets them, by samples and by classes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.errors import QuantizationError
from octavo.gate.batches import Rows
from octavo.gate.network import Array, shaped

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Right:
    """How both networks did on labelled samples.

    output        the output that has the classes
    reference, other  [N] share of positions that are right, of the float and the int8 network
    decided       [N, 2] the classes that the two chose, where there is one label a sample; else None
    classes       [classes, 3] labels of the class, and how many of them the float and the int8 network gets right
    """

    output: str
    reference: Numbers
    other: Numbers
    decided: npt.NDArray[np.int64] | None
    classes: npt.NDArray[np.int64]


def labelled(outputs: Mapping[str, Rows], labels: Array) -> str:
    """The first output with scores of classes for every label."""
    for name, rows in outputs.items():
        scores = isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and rows.ndim == labels.ndim + 1
        if scores and np.shape(rows)[:-1] == labels.shape and np.shape(rows)[-1] > 1:
            return name
    given = ", ".join(f"{name} {_described(rows)}" for name, rows in outputs.items())
    raise QuantizationError(
        asked=f"score outputs by labels {shaped(labels.shape)}",
        seen=f"no output has scores of classes for each of them: {given}",
        remedy="give labels [samples, …] for an output [samples, …, classes]; for another metric, --evaluate recipe.py",
        site="labels",
    )


def _described(rows: Rows) -> str:
    return f"{rows.dtype} {shaped(rows.shape)}" if isinstance(rows, np.ndarray) else "of shapes that vary"


class Count:
    """What is right by the labels so far."""

    def __init__(self, output: str, outputs: Mapping[str, Rows]) -> None:
        self.output, self.count = output, np.asarray(outputs[output]).shape[-1]
        self.classes = np.zeros((self.count, 3), dtype=np.int64)
        self.parts: list[tuple[Numbers, Numbers, npt.NDArray[np.int64] | None]] = []

    def add(self, wanted: Rows, found: Rows, labels: Array, start: int) -> None:
        """Count more samples."""
        outside = (labels < 0) | (labels >= self.count)
        if outside.any():
            place = int(np.argmax(outside.reshape(len(labels), -1).any(axis=1)))
            raise QuantizationError(
                asked=f"score {self.output} by labels",
                seen=f"the label {int(labels[outside][0])} of sample {start + place} is none of {self.count} classes",
                remedy=f"give labels from 0 to {self.count - 1}",
                site="labels",
            )
        chosen = [np.asarray(rows).argmax(axis=-1) for rows in (wanted, found)]
        right = [one == labels for one in chosen]
        for column, of in enumerate((np.ones_like(right[0]), *right)):
            self.classes[:, column] += np.bincount(labels[of].astype(np.int64), minlength=self.count)
        axes = tuple(range(1, labels.ndim))
        shares = [one.mean(axis=axes, dtype=np.float64) if axes else one.astype(np.float64) for one in right]
        self.parts.append((shares[0], shares[1], None if axes else np.stack(chosen, axis=1).astype(np.int64)))

    def result(self) -> Right:
        """All of it."""
        decided = [part[2] for part in self.parts if part[2] is not None]
        return Right(
            output=self.output,
            reference=np.concatenate([part[0] for part in self.parts]),
            other=np.concatenate([part[1] for part in self.parts]),
            decided=np.concatenate(decided) if decided else None,
            classes=self.classes,
        )
