"""How much of a histogram lies between edges: the inner loop of a search by entropy, which is run for every channel.

The edges of one threshold ascend as the buckets do, so the bucket that an edge cuts is looked for from that of the edge
before, once for all sums. `numpy.searchsorted`, anew for each sum, was more than half of what a search took.
"""

from typing import Any

import numba
import numpy as np

from octavo.numerics.histogram import Buckets, Counts, Floats


def between(edges: Floats, values: Buckets, *weights: Floats | Counts) -> Floats:
    """Σ weight of what lies between neighbouring edges, [weights, rows, edges − 1], each bucket's being even over it.

    edges    [rows, edges]  ascending in each row; may be infinite
    weights  [buckets] each
    """
    stacked = np.stack(weights).astype(np.float64, copy=False)
    found = np.empty((len(weights), len(edges), edges.shape[1] - 1))
    zero = np.searchsorted(values.low, 0.0)  # no bucket straddles it
    _add_up(edges, values.low, values.high, stacked, _sums(stacked, zero), found)
    return found


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


_sums = numba.njit(nogil=True, cache=True)(_sums_outwards)
_first = numba.njit(nogil=True, cache=True)(_first_not_below)
_add_up = numba.njit(nogil=True, cache=True)(_add_up_between)
