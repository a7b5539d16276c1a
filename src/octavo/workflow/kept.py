"""What a study keeps beside its trials: statistics, scores and weights as bytes, and back. Data, checked when read."""

import json
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import TypeVar

import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor

from octavo.errors import reading
from octavo.network.calibrate import Stats
from octavo.numerics.channels import ChannelHistogram, restored
from octavo.numerics.histogram import Histogram
from octavo.saved import calls

T = TypeVar("T")
_DAMAGED = "search in another folder, and see whether the disk is full or failing"


def parsed(kind: type[T], data: bytes) -> T:
    """What a study keeps as JSON, as a value of `kind`; QuantizationError for anything else."""
    with reading(asked="use the study", seen="what it keeps is damaged", remedy=_DAMAGED):
        found: T = TypeAdapter(kind).validate_json(data)
        return found


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """The safetensors that a study keeps; QuantizationError for anything else."""
    with reading(asked="use the study", seen="what it keeps is damaged", remedy=_DAMAGED):
        return safetensors.torch.load(data)


def pack_stats(stats: Mapping[str, Histogram | ChannelHistogram]) -> bytes:
    """Histograms and samples as safetensors, after the SHA-256 of those bytes; a histogram of several names once."""
    different = {id(histogram): histogram.state() for histogram in stats.values()}
    sites = json.dumps({name: list(different).index(id(histogram)) for name, histogram in stats.items()})
    tensors = {f"{n}.{part}": tensor for n, state in enumerate(different.values()) for part, tensor in state.items()}
    tensors["sites"] = torch.frombuffer(bytearray(sites.encode()), dtype=torch.uint8)
    records, values = calls.packed(stats.samples if isinstance(stats, Stats) else ())
    if records:
        written = json.dumps([record.model_dump() for record in records])
        tensors["calls"] = torch.frombuffer(bytearray(written.encode()), dtype=torch.uint8)
        tensors |= {f"call.{name}": value for name, value in values.items()}
    packed = safetensors.torch.save(tensors)
    return sha256(packed).digest() + packed


def unpack_stats(data: bytes) -> Stats:
    """The histograms and samples that `pack_stats` stored; names that shared one share one again.

    raises  QuantizationError if a single bit is not as it was
    """
    with reading(asked="restore calibration statistics", seen="their bytes are damaged", remedy=_DAMAGED):
        return _stats(data)


def _stats(data: bytes) -> Stats:
    if sha256(data[32:]).digest() != data[:32]:
        raise ValueError("the digest is another")
    tensors = safetensors.torch.load(data[32:])
    sites: dict[str, int] = json.loads(tensors["sites"].numpy().tobytes())
    states: list[dict[str, Tensor]] = [{} for _ in {*sites.values()}]
    for name, tensor in tensors.items():
        number, _, part = name.partition(".")
        if number.isdecimal():
            states[int(number)][part] = tensor
    histograms = [restored(state) for state in states]
    records = json.loads(tensors["calls"].numpy().tobytes()) if "calls" in tensors else []
    values = {name.removeprefix("call."): tensor for name, tensor in tensors.items() if name.startswith("call.")}
    return Stats(
        MappingProxyType({name: histograms[number] for name, number in sites.items()}),
        calls.unpacked([calls.CallRecord.model_validate(call) for call in records], values),
    )
