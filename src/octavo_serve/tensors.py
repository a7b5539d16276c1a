"""Tensors in a safetensors file: a JSON header, and then the bytes of all of them."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo_serve.errors import refused

AXES = 64  # of a tensor, as in numpy: the product of many large sizes takes longer than any of them
HEADER = 8  # bytes that hold the length of the header
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies in its file: bytes from `first` up to `last`."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


def places(file: bytes) -> dict[str, Place]:
    """{name: where it lies}, none beyond the file.

    raises  QuantizationError for what is no safetensors file
    """
    try:
        start = HEADER + int.from_bytes(file[:HEADER], "little")
        rows: dict[str, Any] = json.loads(file[HEADER:start])
        return {name: _place(row, start, len(file)) for name, row in rows.items() if name != "__metadata__"}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise refused(None, "its tensors are no safetensors file") from error


def _place(row: Mapping[str, Any], start: int, end: int) -> Place:
    first, last = (start + int(offset) for offset in row["data_offsets"])
    shape = tuple(int(size) for size in row["shape"])
    if not start <= first <= last <= end or min(shape, default=0) < 0 or len(shape) > AXES:
        raise ValueError("a tensor lies beyond its file")
    return Place(dtype=str(row["dtype"]), shape=shape, first=first, last=last)


def array_of(file: bytes, place: Place) -> npt.NDArray[Any]:
    """The tensor at `place`, in the memory of `file`; QuantizationError for a type that numpy does not have."""
    kind = DTYPES.get(place.dtype)
    if kind is None or math.prod(place.shape) * np.dtype(kind).itemsize != place.last - place.first:
        raise refused(None, f"a tensor of it is of the type {place.dtype[:20]!r}, or of another length than its shape")
    return np.frombuffer(file, kind, math.prod(place.shape), place.first).reshape(place.shape)
