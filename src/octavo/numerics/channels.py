"""What was seen at one site, channel by channel: a table of counts for each, small enough for thousands of channels.

A bucket is the sign, the exponent and the top 7 mantissa bits of a float32: its middle is within 0.4 % of every value
in it. Only the 18 octaves below the largest magnitude of a channel are told apart; what is smaller counts as zero, less
than a thousandth of a step of eight bits. What is kept depends on nothing but the values seen, so merging is exact and
neither the order nor the size of batches can matter.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import QuantizationError
from octavo.numerics.histogram import MANTISSA_BITS, NEGATIVE, Counts, Floats, Histogram, bucket, checked_bounds

MANTISSA = 7
OCTAVES = 18
SLOTS = 1 + (OCTAVES << MANTISSA)  # the first for zero and what is too small: 18 KiB of int64, twice with a sign
_PARTS = 1 << (MANTISSA_BITS - MANTISSA)  # buckets of a `Histogram` in one of these
_PART = np.arange(_PARTS)

Keys = npt.NDArray[np.int64]


class ChannelHistogram:
    """Counts of the values seen so far along one axis, with the exact minimum and maximum of each channel.

    At most 36 KiB a channel (18 KiB for what a ReLU produces), however many batches it sees.

    axis  of the tensors, along which the channels lie
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._counts: Counts = np.zeros((0, 1, SLOTS), dtype=np.int64)  # [channels, signs in use, slots]
        self._low: Floats = np.zeros(0)
        self._high: Floats = np.zeros(0)

    @property
    def channels(self) -> int:
        """How many channels there are; 0 before the first update."""
        return len(self._low)

    @property
    def count(self) -> int:
        """How many values were seen, in all channels together."""
        return int(self._counts.sum())

    def update(self, x: Tensor, *, site: str | None = None) -> None:
        """Count every value of x in its channel, in place.

        x       [...] floating point on any device, rounded to float32; its size along `axis` is always the same
        site    named in the error
        raises  QuantizationError if x holds NaN or infinity, is not floating point, or has another number of channels;
                nothing is counted
        """
        values, bounds = checked_bounds(x, site)
        if bounds is None:
            return
        axis = self.axis % x.ndim
        outer = int(np.prod(x.shape[:axis], dtype=np.int64))
        parts = values.cpu().reshape(outer, x.shape[axis], -1)
        low, high = (bound.double().numpy() for bound in (parts.amin((0, 2)), parts.amax((0, 2))))
        self._widen(low, high, site)
        from octavo.numerics.loops import count_in_channels  # noqa: PLC0415 (numba is slow to import)

        bits = parts.contiguous().numpy().view(np.uint32)
        count_in_channels(bits, _first_keys(self._exponents()), self._counts, 23 - MANTISSA)

    def merge(self, other: Self) -> Self:
        """The counts of all values of both, bit for bit those of their concatenation; neither is changed."""
        merged = type(self)(self.axis)
        for part in (self, other):
            if part.channels:
                merged._widen(part._low, part._high, None)
        for part in (self, other):
            if part.channels:
                merged._make_room(part._counts.shape[1])
                raised = _raised(part._counts, merged._exponents() - part._exponents())
                merged._counts[:, : raised.shape[1]] += raised
        return merged

    def channel(self, index: int) -> Histogram:
        """The histogram of one channel: each count is spread evenly over the finer buckets of a `Histogram`."""
        low, high = float(self._low[index]), float(self._high[index])
        first, rows = int(_first_keys(self._exponents())[index]), self._counts[index]
        keys, counts = [np.zeros(1, dtype=np.int64)], [rows[:1, 0]]
        for row, sign, nearest, farthest in zip(rows, (0, NEGATIVE), (low, -high), (high, -low), strict=False):
            slots = np.flatnonzero(row[1:])
            parts = ((slots + first)[:, None] * _PARTS) + _PART
            start, stop = (
                np.clip(bucket(max(bound, 0.0)) + after - parts[:, :1], 0, _PARTS)
                for bound, after in ((nearest, 0), (farthest, 1))
            )
            each, more = np.divmod(row[1:][slots][:, None], stop - start)
            inside = (start <= _PART) & (stop > _PART)
            keys.append(parts[inside] + sign)
            counts.append((each + (start + more > _PART))[inside])
        return Histogram.filled(np.concatenate(keys), np.concatenate(counts), (low, high))

    def whole(self) -> Histogram:
        """The histogram of all channels together: of the same values, each within 0.4 %, minimum and maximum exact."""
        return reduce(Histogram.merge, map(self.channel, range(self.channels)), Histogram())

    def state(self) -> dict[str, Tensor]:
        """Its contents as tensors, for safetensors.

        axis int64 [1], buckets int32 [k], counts int64 [k], bounds float64 [2, channels]; a bucket is numbered
        (channel · 2 + sign) · SLOTS + slot.
        """
        channel, sign, slot = np.nonzero(self._counts)
        numbers = ((channel * 2 + sign) * SLOTS + slot).astype(np.int32)
        return {
            "axis": torch.tensor([self.axis]),
            "buckets": torch.from_numpy(numbers),
            "counts": torch.from_numpy(self._counts[channel, sign, slot]),
            "bounds": torch.from_numpy(np.stack([self._low, self._high])),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """What `state` was taken from; QuantizationError if these are not the tensors of one."""
        if not _consistent(state):
            raise QuantizationError(
                asked="restore the histograms of channels",
                seen=f"the stored tensors {sorted(state)} do not describe them",
                remedy="pass exactly what ChannelHistogram.state() returned",
            )
        found = cls(int(state["axis"]))
        low, high = state["bounds"].cpu().numpy()
        if len(low):
            found._widen(low, high, None)
        numbers = state["buckets"].cpu().numpy().astype(np.int64)
        channel, sign, slot = numbers // (2 * SLOTS), numbers // SLOTS % 2, numbers % SLOTS
        found._make_room(1 + int(sign.max(initial=0)))
        found._counts[channel, sign, slot] = state["counts"].cpu().numpy()
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelHistogram):
            return NotImplemented
        mine, theirs = self.state(), other.state()
        return all(torch.equal(mine[part], theirs[part]) for part in mine)

    __hash__ = None  # type: ignore[assignment]  # it changes in place

    def __repr__(self) -> str:
        return f"ChannelHistogram({self.count} values in {self.channels} channels along axis {self.axis})"

    def _exponents(self) -> Keys:
        """Of the largest magnitude in each channel, biased as in float32."""
        largest = np.maximum(np.abs(self._low), np.abs(self._high)).astype(np.float32)
        return largest.view(np.uint32).astype(np.int64) >> 23

    def _widen(self, low: Floats, high: Floats, site: str | None) -> None:
        """Take values in these bounds as seen, and make room for their buckets."""
        if not self.channels:
            self._counts = np.zeros((len(low), 1, SLOTS), dtype=np.int64)
            self._low, self._high = low + 0.0, high + 0.0  # +0.0 makes −0.0 zero
        elif len(low) != self.channels:
            raise QuantizationError(
                asked=f"observe the {self.channels} channels along axis {self.axis}",
                seen=f"a batch has {len(low)}",
                remedy="give batches of one size along this axis, or this site a scheme without axis",
                site=site,
            )
        else:
            before = self._exponents()
            self._low, self._high = np.minimum(self._low, low) + 0.0, np.maximum(self._high, high) + 0.0
            self._counts = _raised(self._counts, self._exponents() - before)
        self._make_room(1 + int((low < 0).any()))

    def _make_room(self, signs: int) -> None:
        if signs > self._counts.shape[1]:
            self._counts = np.pad(self._counts, ((0, 0), (0, 1), (0, 0)))


def restored(state: Mapping[str, Tensor]) -> Histogram | ChannelHistogram:
    """The histogram, or those of channels, that `state` was taken from; QuantizationError if it is neither's."""
    return ChannelHistogram.from_state(state) if "axis" in state else Histogram.from_state(state)


def _first_keys(exponents: Keys) -> Keys:
    """What the second slot of each channel stands for: a magnitude's exponent and top mantissa bits."""
    return (exponents + 1 - OCTAVES) << MANTISSA


def _raised(counts: Counts, octaves: Keys) -> Counts:
    """`counts` of channels whose largest magnitude is this many octaves higher: the smallest values count as zero."""
    if not octaves.any():
        return counts
    found = counts.copy()
    for channel in np.flatnonzero(octaves):
        gone = min(int(octaves[channel]), OCTAVES) << MANTISSA
        old, new = counts[channel], found[channel]
        new[:, 1:] = 0
        new[:, 1 : SLOTS - gone] = old[:, 1 + gone :]
        new[0, 0] += old[:, 1 : 1 + gone].sum()
    return found


def _consistent(state: Mapping[str, Tensor]) -> bool:
    kinds = {"axis": torch.int64, "buckets": torch.int32, "counts": torch.int64, "bounds": torch.float64}
    if {name: tensor.dtype for name, tensor in state.items()} != kinds:
        return False
    axis, buckets, counts, bounds = (state[name] for name in kinds)
    if axis.numel() != 1 or buckets.ndim != 1 or counts.shape != buckets.shape or bounds.ndim != 2 or len(bounds) != 2:
        return False
    if not bool(torch.isfinite(bounds.float()).all() & (bounds[0] <= bounds[1]).all() & (counts > 0).all()):
        return False
    inside = (buckets >= 0) & (buckets < bounds.shape[1] * 2 * SLOTS)
    return bool(inside.all() & (buckets[1:] > buckets[:-1]).all())
