"""The inner loops, which numba compiles: slow to import, so this file is imported where one of them is run."""

from typing import Any

import numba
import numpy as np


def _count_in_lanes(bits: Any, shift: Any, lanes: Any, counts: Any) -> None:
    """Adds to `counts`; `lanes` are zero before and after."""
    first, second, third, fourth = lanes[0], lanes[1], lanes[2], lanes[3]
    whole = bits.size // 4 * 4
    for i in range(0, whole, 4):
        first[bits[i] >> shift] += 1
        second[bits[i + 1] >> shift] += 1
        third[bits[i + 2] >> shift] += 1
        fourth[bits[i + 3] >> shift] += 1
    for i in range(whole, bits.size):
        first[bits[i] >> shift] += 1
    minus_zero = lanes.shape[1] // 2
    for k in range(lanes.shape[0]):
        lanes[k, 0] += lanes[k, minus_zero]
        lanes[k, minus_zero] = 0
    for k in range(counts.size):
        total = np.int64(first[k]) + second[k] + third[k] + fourth[k]
        if total:
            counts[k] += total
            first[k] = second[k] = third[k] = fourth[k] = 0


def _count_in_channels(bits: Any, first: Any, counts: Any, shift: Any) -> None:
    """Adds to `counts` [channels, signs, slots] the float32 `bits` [outer, channels, inner],
    whose slots are their magnitudes shifted right by `shift`.
    """
    for o in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            lowest, row = first[c], counts[c]
            small = 0  # half the values after a ReLU: not one write to memory each
            for i in range(bits.shape[2]):
                magnitude = np.int64(bits[o, c, i] & np.uint32(0x7FFFFFFF))
                slot = (magnitude >> shift) - lowest + 1
                if slot < 1 or magnitude < (1 << 23):
                    small += 1
                else:
                    row[np.int64(bits[o, c, i] >> np.uint32(31)), slot] += 1
            row[0, 0] += small


def _sums_outwards(weights: Any, zero: Any) -> Any:
    """Sums from zero to the edge of each bucket: outwards, so that one huge value swallows no small ones."""
    kinds, buckets = weights.shape
    sums = np.zeros((kinds, buckets + 1))
    for bucket in range(zero, buckets):  # the sums side by side: an addition waits for that before it
        for kind in range(kinds):
            sums[kind, bucket + 1] = sums[kind, bucket] + weights[kind, bucket]
    for bucket in range(zero - 1, -1, -1):
        for kind in range(kinds):
            sums[kind, bucket] = sums[kind, bucket + 1] - weights[kind, bucket]
    return sums


def _first_not_below(x: Any, high: Any, start: Any) -> Any:
    """The first bucket from `start` on that does not end below x; how many there are, if all do."""
    first, last, step = start, start, 1
    while last < high.size and high[last] < x:
        first, last, step = last + 1, last + step, 2 * step
    last = min(last, high.size)
    while first < last:
        middle = (first + last) >> 1
        if high[middle] < x:
            first = middle + 1
        else:
            last = middle
    return first


def _add_up_between(edges: Any, low: Any, high: Any, weights: Any, sums: Any, found: Any) -> None:
    """Writes to `found` [weights, rows, edges − 1]; `sums` are those of `weights` up to each bucket."""
    cut, share = np.zeros(edges.shape[1], dtype=np.int64), np.zeros(edges.shape[1])
    for row in range(edges.shape[0]):
        bucket = 0
        for edge in range(edges.shape[1]):
            x = edges[row, edge]
            bucket = _first(x, high, bucket)
            cut[edge], share[edge] = bucket, 0.0
            if bucket < high.size and x > low[bucket]:
                width = high[bucket] - low[bucket]
                share[edge] = (x - low[bucket]) / width if width > 0 else 1.0
        for kind in range(weights.shape[0]):
            before = 0.0
            for edge in range(edges.shape[1]):
                upto = sums[kind, cut[edge]]
                if share[edge] > 0:
                    upto += weights[kind, cut[edge]] * share[edge]
                if edge:
                    found[kind, row, edge - 1] = upto - before
                before = upto


_compiled = numba.njit(nogil=True, cache=True)
count_in_lanes = _compiled(_count_in_lanes)
count_in_channels = _compiled(_count_in_channels)
sums_outwards = _compiled(_sums_outwards)
_first = _compiled(_first_not_below)
add_up_between = _compiled(_add_up_between)
