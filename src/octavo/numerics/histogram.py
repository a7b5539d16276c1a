"""What was seen at one site: exact counts in logarithmic buckets, read off the float32 bit pattern (paper §3.4).

A bucket is the sign, the exponent and the top 9 mantissa bits of a float32. So no range is needed in advance, nothing
is ever re-binned, merging is addition, and neither the order nor the size of batches can matter. A bucket is at most
1/512 of its lower edge wide: its middle is within 0.098 % of every normal float32 in it, 1/1024 = 0.0977 %.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import QuantizationError

MANTISSA_BITS = 9
SHIFT = 23 - MANTISSA_BITS
NEGATIVE = 1 << (31 - SHIFT)  # the sign bit, shifted: the first bucket of negative numbers
INFINITE = 255 << MANTISSA_BITS  # the first of the buckets that hold inf and NaN
BUCKETS = 2 * NEGATIVE  # 2^18 int64 counts: 2 MiB, allocated only up to the highest bucket in use
CHUNK = 1 << 20  # values keyed at once: 4 MiB of keys stay in the cache between the passes over them

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Buckets:
    """The occupied buckets, in ascending order of value: `counts[i]` values lie in [low[i], high[i]]."""

    low: Floats
    high: Floats
    counts: Counts | Floats

    @property
    def centres(self) -> Floats:
        """The middle of each bucket: within 0.1 % of each value in it."""
        return (self.low + self.high) / 2


class Histogram:
    """Exact counts of the values seen so far, with their exact minimum and maximum. `Histogram()` has seen nothing.

    At most 2 MiB (0.5 MiB for what a ReLU produces), however many batches it sees.
    """

    def __init__(self) -> None:
        self._counts: Counts = np.zeros(0, dtype=np.int64)
        self._bounds: tuple[float, float] | None = None

    @property
    def count(self) -> int:
        """How many values were seen."""
        return int(self._counts.sum())

    @property
    def minimum(self) -> float:
        """The smallest value seen, exactly; QuantizationError if there is none."""
        return self._seen_bounds()[0]

    @property
    def maximum(self) -> float:
        """The largest value seen, exactly; QuantizationError if there is none."""
        return self._seen_bounds()[1]

    def update(self, x: Tensor, *, site: str | None = None) -> None:
        """Count every value of x, in place.

        x       [...]  floating point on any device, rounded to float32; may be empty; dense tensors in any memory
                format (channels-last) are read without a copy
        site    named in the error
        raises  QuantizationError if x holds NaN or infinity (in float32) or is not floating point; nothing is counted
        """
        if not x.is_floating_point():
            raise QuantizationError(
                asked=f"observe a tensor of {x.dtype}",
                seen="only floating-point values are quantized",
                remedy="leave this site out of the plan, or convert the tensor to float in the model",
                site=site,
            )
        if x.numel() == 0:
            return
        flat = _flat(x.detach()).float()
        low, high = (float(bound) for bound in torch.aminmax(flat))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise _not_finite(flat, site)
        for counts in _count(flat):
            self._add(counts)
        self._widen((low, high))

    def merge(self, other: "Histogram") -> "Histogram":
        """The histogram of all values of both, bit for bit that of their concatenation; neither is changed."""
        merged = Histogram()
        for part in (self, other):
            merged._add(part._counts)
            if part._bounds is not None:
                merged._widen(part._bounds)
        return merged

    def buckets(self) -> Buckets:
        """The occupied buckets of the values; edges are cut to the exact minimum and maximum."""
        keys = np.flatnonzero(self._counts)
        negative = keys[keys >= NEGATIVE][::-1]
        positive = keys[keys < NEGATIVE]
        inner, outer = _edges(negative - NEGATIVE)
        low, high = _edges(positive)
        low, high = np.concatenate([-outer, low]), np.concatenate([-inner, high])
        return self._cut(low, high, self._counts[np.concatenate([negative, positive])], self._bounds)

    def magnitudes(self) -> Buckets:
        """The occupied buckets of the absolute values; edges are cut to the exact range of |x|."""
        counts = np.zeros(NEGATIVE, dtype=np.int64)
        for half in (self._counts[:NEGATIVE], self._counts[NEGATIVE:]):
            counts[: len(half)] += half
        keys = np.flatnonzero(counts)
        low, high = _edges(keys)
        if self._bounds is None:
            return self._cut(low, high, counts[keys], None)
        minimum, maximum = self._bounds
        return self._cut(low, high, counts[keys], (max(0.0, minimum, -maximum), max(-minimum, maximum)))

    def state(self) -> dict[str, Tensor]:
        """Its contents as tensors, for safetensors: buckets int32 [k], counts int64 [k], bounds float64 [0 or 2]."""
        keys = np.flatnonzero(self._counts)
        return {
            "buckets": torch.from_numpy(keys.astype(np.int32)),
            "counts": torch.from_numpy(self._counts[keys]),
            "bounds": torch.tensor(self._bounds or (), dtype=torch.float64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The histogram that `state` was taken from; QuantizationError if these are not the tensors of one."""
        keys, counts, bounds = (
            state[name].cpu() if name in state else None for name in ("buckets", "counts", "bounds")
        )
        if keys is None or counts is None or bounds is None or not _consistent(keys, counts, bounds):
            raise QuantizationError(
                asked="restore a histogram",
                seen=f"the stored tensors {sorted(state)} do not describe one",
                remedy="pass exactly what Histogram.state() returned",
            )
        histogram = cls()
        if keys.numel():
            dense = np.zeros(int(keys.max()) + 1, dtype=np.int64)
            dense[keys.numpy()] = counts.numpy()
            histogram._add(dense)
            histogram._widen((float(bounds[0]), float(bounds[1])))
        return histogram

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self._bounds == other._bounds and np.array_equal(self._counts, other._counts)

    __hash__ = None  # type: ignore[assignment]  # it changes in place

    def __repr__(self) -> str:
        seen = "" if self._bounds is None else f" in [{self.minimum:g}, {self.maximum:g}]"
        return f"Histogram({self.count} values{seen})"

    def _seen_bounds(self) -> tuple[float, float]:
        if self._bounds is None:
            raise QuantizationError(
                asked="read the range of a histogram", seen="it has seen no values", remedy="update it with data first"
            )
        return self._bounds

    def _add(self, counts: Counts) -> None:
        if len(counts) > len(self._counts):
            self._counts = np.pad(self._counts, (0, len(counts) - len(self._counts)))
        self._counts[: len(counts)] += counts

    def _widen(self, bounds: tuple[float, float]) -> None:
        low, high = self._bounds or bounds
        self._bounds = min(low, bounds[0]), max(high, bounds[1])

    @staticmethod
    def _cut(low: Floats, high: Floats, counts: Counts, bounds: tuple[float, float] | None) -> Buckets:
        if bounds is not None:
            low, high = np.clip(low, *bounds), np.clip(high, *bounds)
        return Buckets(low=low, high=high, counts=counts)


def _flat(x: Tensor) -> Tensor:
    """x in the order of its memory, [x.numel()]: counting needs no other, and a dense tensor is not copied."""
    strides = x.stride()
    by_stride = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    return x.permute(by_stride).reshape(-1)


def _count(flat: Tensor) -> Iterator[Counts]:
    """Counts by bucket of each chunk, as long as its highest bucket needs."""
    for chunk in torch.split(flat, CHUNK):
        keys = (chunk.view(torch.int32) >> SHIFT).bitwise_and_(BUCKETS - 1)
        yield torch.bincount(keys).cpu().numpy()


def _edges(magnitude_keys: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Lower and upper edges of buckets of positive numbers; the first, |x| < 2^-135, counts as zero."""
    keys = magnitude_keys.astype(np.int32)
    low = (keys << SHIFT).view(np.float32).astype(np.float64)
    high = ((keys + 1) << SHIFT).view(np.float32).astype(np.float64)
    # The last finite bucket ends at 2^128, which float32 calls infinity.
    return low, np.where(keys == 0, 0.0, np.minimum(high, 2.0**128))


def _consistent(keys: Tensor, counts: Tensor, bounds: Tensor) -> bool:
    shapes_fit = keys.ndim == 1 and keys.shape == counts.shape and bounds.numel() == (2 if keys.numel() else 0)
    in_place = bool(((keys >= 0) & (keys < BUCKETS) & (keys % NEGATIVE < INFINITE)).all()) and bool((counts > 0).all())
    return shapes_fit and keys.dtype == torch.int32 and counts.dtype == torch.int64 and in_place


def _not_finite(flat: Tensor, site: str | None) -> QuantizationError:
    nans, infinities = int(torch.isnan(flat).sum()), int(torch.isinf(flat).sum())
    return QuantizationError(
        asked="observe a tensor",
        seen=f"{nans} NaN and {infinities} infinite values were among its {flat.numel()}",
        remedy="find the operation or the sample that made them: no range holds them",
        site=site,
    )
