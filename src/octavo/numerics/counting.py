"""Counting by bucket: the one inner loop that decides what calibration costs.

Half the values after a ReLU are zero, and a processor that adds to one counter twice in a row waits for its own write.
So four neighbours add to four tables, which are summed at the end: measured on 6.4 million such values on one core,
4.6 ms, against 36 ms for `torch.bincount` in the same minute.
"""

import threading

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
    from octavo.numerics.loops import count_in_lanes  # noqa: PLC0415 (numba is slow to import)

    buckets = 1 << (32 - shift)
    if flat.device.type != "cpu":
        keys = (flat.view(torch.int32) >> shift).bitwise_and_(buckets - 1)
        keys[keys == buckets // 2] = 0
        counts += torch.bincount(keys, minlength=len(counts)).cpu().numpy()
        return
    if getattr(_scratch, "lanes", None) is None:
        _scratch.lanes = np.zeros((LANES, buckets), dtype=np.int32)  # all buckets: no bit pattern lies outside
    count_in_lanes(flat.numpy().view(np.uint32), np.uint32(shift), _scratch.lanes, counts)
