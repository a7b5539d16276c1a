"""How near an engine is to the simulation: of both, with torch and without, the one place that says it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
STEADY = 1e-6  # of an output's power: what varies less than this from sample to sample is no signal


def nearness_db(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """Decibels between an output of the simulation and of the engine, over all samples: 10·log₁₀(signal / noise).

    The signal is what an output says of its inputs: how it varies around its mean over the samples, not the mean, which
    stays where it is when half of the network is lost. For integers and truth values it is −10·log₁₀ of the share that
    differs. −inf for another shape or type, and where only one is NaN or infinite.
    """
    signal = raw = noise = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return -math.inf
        if a.dtype.kind != "f":
            signal, noise = signal + a.size, noise + int((a != b).sum())
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if not np.array_equal(finite, np.isfinite(y)) or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
            return -math.inf
        x, y = np.where(finite, x, 0.0), np.where(finite, y, 0.0)
        mean = x.mean(0) if x.ndim and len(x) > 1 else x.mean() if x.size > 1 else 0.0
        signal += float(np.square(x - mean).sum())
        raw += float(np.square(x).sum())
        noise += float(np.square(x - y).sum())
    signal = max(signal, STEADY * raw)
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
