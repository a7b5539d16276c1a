"""What was seen at one site: exact counts in logarithmic buckets, read off the float32 bit pattern (paper §3.4).

A bucket is the sign, the exponent and the top 9 mantissa bits of a float32. So no range is needed in advance, nothing
is ever re-binned, merging is addition, and neither the order nor the size of batches can matter. A bucket is at most
1/512 of its lower edge wide: its middle is within 0.098 % of every normal float32 in it, 1/1024 = 0.0977 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import QuantizationError
from octavo.numerics.counting import count_into

MANTISSA_BITS = 9
SHIFT = 23 - MANTISSA_BITS
NEGATIVE = 1 << (31 - SHIFT)  # the sign bit, shifted: the first bucket of negative numbers
INFINITE = 255 << MANTISSA_BITS  # the first of the buckets that hold inf and NaN
BUCKETS = 2 * NEGATIVE  # 2^18 int64 counts: 2 MiB, allocated only up to the highest bucket in use

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

    At most 2 MiB (1 MiB for what a ReLU produces), however many batches it sees.
    """

    def __init__(self) -> None:
        self._counts: Counts = np.zeros(0, dtype=np.int64)
        self._keys: Counts | None = None  # of the buckets that hold anything, ascending, where that is known already
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
        flat, bounds = checked_bounds(_flat(x.detach()), site)
        if bounds is None:
            return
        self._widen(bounds)  # makes room first: counting does not check that a bucket is there
        self._keys = None
        count_into(self._counts, flat, SHIFT)

    def merge(self, other: "Histogram") -> "Histogram":
        """The histogram of all values of both, bit for bit that of their concatenation; neither is changed."""
        merged = Histogram()
        for part in (self, other):
            if part._bounds is not None:
                merged._widen(part._bounds)
                merged._counts[: len(part._counts)] += part._counts
        return merged

    def buckets(self) -> Buckets:
        """The occupied buckets of the values; edges are cut to the exact minimum and maximum."""
        positive, negative = self._occupied()
        inner, outer = _edges(negative[::-1] - NEGATIVE)
        low, high = _edges(positive)
        low, high = np.concatenate([-outer, low]), np.concatenate([-inner, high])
        return self._cut(low, high, self._counts[np.concatenate([negative[::-1], positive])], self._bounds)

    def magnitudes(self) -> Buckets:
        """The occupied buckets of the absolute values; edges are cut to the exact range of |x|."""
        keys, negative = self._occupied()
        counts = self._counts[keys]
        if len(negative):
            keys, counts = _summed(keys, counts, negative - NEGATIVE, self._counts[negative])
        low, high = _edges(keys)
        if self._bounds is None:
            return self._cut(low, high, counts, None)
        minimum, maximum = self._bounds
        return self._cut(low, high, counts, (max(0.0, minimum, -maximum), max(-minimum, maximum)))

    def state(self) -> dict[str, Tensor]:
        """Its contents as tensors, for safetensors: buckets int32 [k], counts int64 [k], bounds float64 [0 or 2]."""
        keys = np.concatenate(self._occupied())
        return {
            "buckets": torch.from_numpy(keys.astype(np.int32)),
            "counts": torch.from_numpy(self._counts[keys]),
            "bounds": torch.tensor(self._bounds or (), dtype=torch.float64),
        }

    @classmethod
    def filled(cls, keys: Counts, counts: Counts, bounds: tuple[float, float]) -> Self:
        """The histogram with these counts in these buckets, which ascend, of values within `bounds`."""
        histogram = cls()
        histogram._widen(bounds)
        histogram._counts[keys] = counts
        histogram._keys = keys[counts > 0]
        return histogram

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The histogram that `state` was taken from; QuantizationError if these are not the tensors of one."""
        keys, counts, bounds = (
            state[name].cpu() if name in state else None for name in ("buckets", "counts", "bounds")
        )
        histogram = cls()
        if keys is not None and counts is not None and bounds is not None and _consistent(keys, counts, bounds):
            if keys.numel():
                histogram._widen((float(bounds[0]), float(bounds[1])))
            if not keys.numel() or int(keys[-1]) < len(histogram._counts):
                histogram._counts[keys.numpy()] = counts.numpy()
                return histogram
        raise QuantizationError(
            asked="restore a histogram",
            seen=f"the stored tensors {sorted(state)} do not describe one",
            remedy="pass exactly what Histogram.state() returned",
        )

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

    def _widen(self, bounds: tuple[float, float]) -> None:
        """Take values in these bounds as seen, and make room for their buckets: as much as the bounds need, no more."""
        low, high = self._bounds or bounds
        low, high = self._bounds = min(low, bounds[0]) + 0.0, max(high, bounds[1]) + 0.0  # +0.0 makes −0.0 zero
        last = bucket(high) if low >= 0 else bucket(low)
        if last >= len(self._counts):
            counts, self._counts = self._counts, np.zeros(last + 1, dtype=np.int64)
            self._counts[: len(counts)] = counts

    def _occupied(self) -> tuple[Counts, Counts]:
        """The buckets that hold anything, ascending: of positive values and zero, and of negative ones."""
        # numpy finds what is true four times as fast as what is not zero.
        keys = np.flatnonzero(self._counts != 0) if self._keys is None else self._keys
        first = np.searchsorted(keys, NEGATIVE)
        return keys[:first], keys[first:]

    @staticmethod
    def _cut(low: Floats, high: Floats, counts: Counts, bounds: tuple[float, float] | None) -> Buckets:
        if bounds is not None:
            low, high = np.clip(low, *bounds), np.clip(high, *bounds)
        return Buckets(low=low, high=high, counts=counts)


def checked_bounds(x: Tensor, site: str | None) -> tuple[Tensor, tuple[float, float] | None]:
    """(x without its gradient, in float32; its smallest and largest value, None if it has none).

    raises  QuantizationError that names `site` if x is not floating point, or holds NaN or infinity in float32
    """
    if not x.is_floating_point():
        raise QuantizationError(
            asked=f"observe a tensor of {x.dtype}",
            seen="only floating-point values are quantized",
            remedy="leave this site out of the plan, or convert the tensor to float in the model",
            site=site,
        )
    values = x.detach().float()
    if not values.numel():
        return values, None
    low, high = (float(bound) for bound in torch.aminmax(values))
    if not (np.isfinite(low) and np.isfinite(high)):
        nans, infinities = int(torch.isnan(values).sum()), int(torch.isinf(values).sum())
        raise QuantizationError(
            asked="observe a tensor",
            seen=f"{nans} NaN and {infinities} infinite values were among its {values.numel()}",
            remedy="find the operation or the sample that made them: no range holds them",
            site=site,
        )
    return values, (low, high)


def _flat(x: Tensor) -> Tensor:
    """x in the order of its memory, [x.numel()]: counting needs no other, and a dense tensor is not copied."""
    strides = x.stride()
    by_stride = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    return x.permute(by_stride).reshape(-1)


def bucket(x: float) -> int:
    """The bucket that x falls into."""
    return int(np.float32(x).view(np.uint32)) >> SHIFT


def _summed(keys: Counts, counts: Counts, others: Counts, more: Counts) -> tuple[Counts, Counts]:
    """What `keys` or `others` name, ascending, and its counts together."""
    end = max(keys.max(initial=0), others.max(initial=0)) + 1
    occupied, total = np.zeros(end, dtype=bool), np.zeros(end, dtype=np.int64)
    total[keys] = counts
    total[others] += more
    occupied[keys] = occupied[others] = True
    union = np.flatnonzero(occupied)
    return union, total[union]


def _edges(magnitude_keys: npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Lower and upper edges of buckets of positive numbers; the first, |x| < 2^-135, counts as zero."""
    keys = magnitude_keys.astype(np.int32)
    low = (keys << SHIFT).view(np.float32).astype(np.float64)
    high = ((keys + 1) << SHIFT).view(np.float32).astype(np.float64)
    # The last finite bucket ends at 2^128, which float32 calls infinity.
    return low, np.where(keys == 0, 0.0, np.minimum(high, 2.0**128))


def _consistent(keys: Tensor, counts: Tensor, bounds: Tensor) -> bool:
    if (keys.dtype, counts.dtype, bounds.dtype) != (torch.int32, torch.int64, torch.float64):
        return False
    if keys.ndim != 1 or keys.shape != counts.shape or bounds.numel() != (2 if keys.numel() else 0):
        return False
    finite = (keys >= 0) & (keys < BUCKETS) & (keys % NEGATIVE < INFINITE)
    ordered = bool((keys[1:] > keys[:-1]).all()) and bounds.tolist() == sorted(bounds.tolist())
    return ordered and bool(finite.all() & (counts > 0).all() & torch.isfinite(bounds.float()).all())
