"""What a saved network is checked by where it is loaded: a few inputs, and what the simulation returned for them.

A check that held is remembered in the cache, under all that it depends on: the file, the engine and its version, and
the CPU. Anything else is checked anew.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from octavo.engines.check import Outputs, simulated
from octavo.engines.isa import isa
from octavo.engines.native import SOURCES, cache_folder
from octavo.machine import machine, versions
from octavo.network.quantized import Quantized
from octavo.network.samples import Call, calls_of
from octavo.saved.calls import CallRecord, packed, unpacked

MEGABYTES = 4.0  # of outputs that are kept; larger ones are simulated again where they are needed


def evidence(net: Quantized) -> tuple[list[CallRecord], bytes]:
    """(How the samples of `net` are called, safetensors of their inputs and of the simulation's outputs)."""
    calls = calls_of(net.graph, net.samples)
    records, inputs = packed(calls)
    tensors = {f"input.{name}": tensor for name, tensor in inputs.items()}
    if len(records) == len(calls):
        outputs = {
            f"output.{call}.{number}": leaf.contiguous()
            for call, leaves in enumerate(simulated(net, calls))
            for number, leaf in enumerate(leaves)
        }
        if sum(leaf.numel() * leaf.element_size() for leaf in outputs.values()) <= MEGABYTES * 1e6:
            tensors |= outputs
    return records, safetensors.torch.save({name: tensor.clone() for name, tensor in tensors.items()})


def from_evidence(records: list[CallRecord], data: bytes) -> tuple[tuple[Call, ...], Outputs | None]:
    """(The samples, what the simulation returned for them; None if that was not kept)."""
    tensors = safetensors.torch.load(data)
    calls = unpacked(records, _under("input.", tensors))
    outputs = _under("output.", tensors)
    if not outputs:
        return calls, None
    places = sorted(tuple(map(int, name.split("."))) for name in outputs)
    if places[-1][0] >= len(calls):
        raise ValueError(f"there are outputs of call {places[-1][0]}, and {len(calls)} calls")
    return calls, tuple([outputs[f"{c}.{n}"] for c, n in places if c == call] for call in range(len(calls)))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def checked_at(digest: str, engine: str, options: dict[str, Any]) -> Path:
    """Where it is noted that the file with this digest agreed with its simulation here: engine, CPU and versions."""
    cpu = {name: machine()[name] for name in ("cpu", "flags")}
    kernels = [isa().name, *(path.read_text() for path in SOURCES)] if engine == "inductor" else []
    given = {name: repr(value) for name, value in options.items() if name != "network"}
    facts = json.dumps([digest, engine, versions(), cpu, kernels, given], sort_keys=True)
    return cache_folder() / "checks" / sha256(facts.encode()).hexdigest()
