"""Whether an engine computes here what the network computed where it was saved: as `octavo.engines.check`, on arrays.

The simulation's outputs for a few samples lie in the file, and so does what rounding at ties accounts for (`bars_db`).
A check that held is remembered in the cache, under all that it depends on.
"""

import json
import math
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
STEADY = 1e-6  # of an output's power: what varies less than this from sample to sample is no signal


def nearness_db(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """Decibels between an output of the simulation and of the engine, over all samples: 10·log₁₀(signal / noise).

    The signal is how it varies around its mean. For integers and truth values it is −10·log₁₀ of the share that
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


def was_checked(place: Path | None) -> bool:
    """Whether the check of that name held here before."""
    return place is not None and place.is_file()


def remember(place: Path | None) -> None:
    """Note that it did. A cache that cannot be written is no error: the next process checks again."""
    if place is None:
        return
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def place_of(digest: str, engine: str, version: str) -> Path | None:
    """Where it is noted that the file with this digest was right on this version of an engine, on this CPU.

    None where there is no such place.
    """
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))} or lines)
    facts = json.dumps([digest, engine, version, kind])
    cache = _cache_folder()
    return None if cache is None else cache / "served" / sha256(facts.encode()).hexdigest()


def _cache_folder() -> Path | None:
    """$OCTAVO_CACHE, or octavo/ in the user's cache folder; None for a user without a home, as in some containers."""
    named, home = os.environ.get("OCTAVO_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named) if named else Path(home or Path.home() / ".cache") / "octavo"
    except RuntimeError:
        return None
