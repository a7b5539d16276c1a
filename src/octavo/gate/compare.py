"""What the outputs of two networks have in common, sample by sample, without keeping them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import QuantizationError
from octavo.gate.batches import Rows, chunks, outputs_of
from octavo.gate.data import Samples
from octavo.gate.labels import Count, Right, labelled
from octavo.gate.match import paired_outputs
from octavo.gate.network import Array, Opened, shaped
from octavo.numerics.decibels import decibels

Numbers = npt.NDArray[np.float64]
CLOSE = 1e-3  # how near to 1 the sum, or the length, of a row is taken for 1: of float16 outputs, too
MANY = 1000  # winners that are told apart; to know that there is more than one is what matters


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One output of both networks on all samples.

    name, other  what the float and the int8 network call it
    dtype        of the float one
    shape        of one sample; None where it varies
    noise        [N] sums of (float − int8)²
    power        [N] sums of float²
    largest      [N] largest |float − int8|
    same         [N] shares of equal decisions: of the places of the largest entry along the last axis; of equal
                 numbers, if the output is no float; None where there is nothing to decide
    variance     of the float output over the samples: mean of |float − its mean over the samples|²
    winners      how many different places the largest entry of the float output has
    rows         "probabilities" if they are positive and sum to 1, "directions" if their length is 1, else ""
    broken       the samples in which the int8 output is NaN or infinite
    """

    name: str
    other: str
    dtype: str
    shape: tuple[int | None, ...]
    noise: Numbers
    power: Numbers
    largest: Numbers
    same: Numbers | None
    variance: float
    winners: int
    rows: str
    broken: tuple[int, ...]

    @property
    def floating(self) -> bool:
        """Whether the float network returns real numbers here, and no indices."""
        return np.dtype(self.dtype).kind == "f"

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise over all samples, in decibels."""
        return decibels(float(self.power.sum()), float(self.noise.sum()))

    @property
    def agreement(self) -> float | None:
        """Percentage of equal decisions; None where there is nothing to decide."""
        return None if self.same is None else 100.0 * float(self.same.mean())


def compared(
    reference: Opened, other: Opened, samples: Samples, size: int
) -> tuple[tuple[Compared, ...], Right | None]:
    """Both networks on all samples, `size` at a time: (every output, what is right by the labels, if there are any).

    raises  QuantizationError for outputs that cannot be compared, NaN or infinity in the float ones, and labels that
            fit none of them, or are no classes
    """
    tallies: dict[str, _Tally] = {}
    right: Count | None = None
    for place, chunk in chunks(samples.groups, size):
        wanted, found = outputs_of(reference, chunk), outputs_of(other, chunk)
        pairs = paired_outputs(list(wanted), list(found))
        if not tallies:
            tallies = {name: _Tally(name, pairs[name]) for name in wanted}
            right = None if samples.labels is None else Count(labelled(wanted, samples.labels[place]), wanted)
        for name, rows in wanted.items():
            tallies[name].add(place.start, rows, found[pairs[name]])
        if right is not None and samples.labels is not None:
            right.add(wanted[right.output], found[pairs[right.output]], samples.labels[place], place.start)
    return tuple(tally.result() for tally in tallies.values()), None if right is None else right.result()


@dataclass
class _Tally:
    """What is known of one output so far; numbers are counted from its first sample, so that sums stay exact."""

    name: str
    other: str
    parts: list[tuple[Numbers, Numbers, Numbers, Numbers | None]] = field(default_factory=list)
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    dtype: str = ""
    origin: Any = None
    total: Any = 0.0
    squares: float = 0.0
    entries: int = 0
    winners: set[int] = field(default_factory=set)
    probabilities: bool = True
    directions: bool = True
    broken: list[int] = field(default_factory=list)

    def add(self, start: int, wanted: Rows, found: Rows) -> None:
        """Count more samples, the first of them number `start`."""
        if isinstance(wanted, np.ndarray) and isinstance(found, np.ndarray) and wanted.shape == found.shape:
            self._add(start, wanted, found)
        else:
            for number, (want, have) in enumerate(zip(wanted, found, strict=True), start):
                self._add(number, np.asarray(want)[None], np.asarray(have)[None])

    def _add(self, start: int, wanted: Array, found: Array) -> None:
        _check_alike(self.name, wanted, found)
        _check_finite(self.name, start, wanted)
        finite = np.isfinite(found).reshape(len(found), -1).all(axis=1)
        self.broken += [start + int(number) for number in np.flatnonzero(~finite)]
        self.dtype = str(wanted.dtype)
        self.shapes.add(wanted.shape[1:])
        axes = tuple(range(1, wanted.ndim))
        want, have = wanted.astype(np.float64), np.nan_to_num(found.astype(np.float64), posinf=0.0, neginf=0.0)
        error = want - have
        largest = np.abs(error).max(axis=axes, initial=0.0)
        self.parts.append(((error**2).sum(axis=axes), (want**2).sum(axis=axes), largest, _same(wanted, found)))
        self._spread(want)
        if wanted.dtype.kind == "f" and wanted.ndim > 1 and wanted.shape[-1] > 1:
            self._look(want)

    def _spread(self, want: Numbers) -> None:
        """Sums for the variance: of every entry by itself, as long as all samples have one shape."""
        if len(self.shapes) > 1:
            return
        if self.origin is None:
            self.origin = want[0].copy()
        away = want - self.origin
        self.total = self.total + away.sum(axis=0)
        self.squares += float((away**2).sum())
        self.entries += len(want)

    def _look(self, want: Numbers) -> None:
        """What the rows along the last axis may be."""
        if len(self.winners) < MANY:
            self.winners |= set(np.unique(want.argmax(axis=-1)).tolist())
        self.probabilities &= bool((want >= 0).all() and np.allclose(want.sum(axis=-1), 1.0, atol=CLOSE))
        self.directions &= bool(np.allclose((want**2).sum(axis=-1), 1.0, atol=CLOSE))

    def result(self) -> Compared:
        """All of it."""
        noise, power, largest = (np.concatenate([part[number] for part in self.parts]) for number in range(3))
        same = [part[3] for part in self.parts if part[3] is not None]
        rows = "probabilities" if self.probabilities else "directions" if self.directions else ""
        return Compared(
            name=self.name,
            other=self.other,
            dtype=self.dtype,
            shape=_common(self.shapes),
            noise=noise,
            power=power,
            largest=largest,
            same=np.concatenate(same) if len(same) == len(self.parts) else None,
            variance=self._variance(power),
            winners=len(self.winners),
            rows=rows if self.winners else "",
            broken=tuple(self.broken),
        )

    def _variance(self, power: Numbers) -> float:
        """Mean of |float − mean|²; of outputs whose shape varies, of |float|², which has no mean."""
        if len(self.shapes) > 1:
            return float(power.mean())
        mean = self.total / self.entries
        return max(0.0, self.squares / self.entries - float((mean**2).sum()))


def _check_alike(name: str, wanted: Array, found: Array) -> None:
    if wanted.shape == found.shape and (wanted.dtype.kind == "f") == (found.dtype.kind == "f"):
        return
    described = [f"{array.dtype} {shaped(array.shape[1:])}" for array in (wanted, found)]
    raise QuantizationError(
        asked="compare the outputs of two networks",
        seen=f"of a sample the float one returns {described[0]} and the int8 one {described[1]}",
        remedy="check networks that return the same shapes and types of numbers",
        site=name,
    )


def _check_finite(name: str, start: int, wanted: Array) -> None:
    finite = np.isfinite(wanted).reshape(len(wanted), -1).all(axis=1)
    if not finite.all():
        raise QuantizationError(
            asked="compare with the float network",
            seen=f"its output holds NaN or infinity, first in sample {start + int(np.argmin(finite))}",
            remedy="see that it is the float network, and that the samples are what it takes",
            site=name,
        )


def _same(wanted: Array, found: Array) -> Numbers | None:
    """The share of equal decisions in every sample; None where there is nothing to decide."""
    axes = tuple(range(1, wanted.ndim))
    if wanted.dtype.kind != "f":
        equal = (wanted == found).reshape(len(wanted), -1)
        return equal.mean(axis=1, dtype=np.float64) if equal.size else np.ones(len(wanted))
    if wanted.ndim < 2 or wanted.shape[-1] < 2 or not wanted.size:
        return None
    return np.asarray((wanted.argmax(axis=-1) == found.argmax(axis=-1)).mean(axis=axes[:-1]), dtype=np.float64)


def _common(shapes: set[tuple[int, ...]]) -> tuple[int | None, ...]:
    if len({len(shape) for shape in shapes}) > 1:
        return (None,)
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))


def constant(outputs: Sequence[Compared]) -> bool:
    """Whether the float network returns the same for every sample."""
    return all(output.variance == 0.0 for output in outputs)
