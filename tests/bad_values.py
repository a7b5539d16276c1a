"""Bad arguments of the public functions, as data: for each function good arguments, and for each argument what is not.

`cases(table(kit))` makes of it a list of calls, each with one bad argument among good ones.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from octavo.network.calibrate import Stats

NAN = float("nan")
Row = tuple[Callable[..., object], dict[str, Any], dict[str, dict[str, Any]]]  # function, good arguments, bad ones


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call with one bad input, and the words of which one has to be in the error."""

    function: str
    bad: str
    call: Callable[[], object]
    named: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.function}: {self.bad}"


@dataclass(frozen=True, kw_only=True)
class Kit:
    """One network captured, calibrated and compiled, and another to confuse it with."""

    model: nn.Module
    example: Tensor
    graph: octavo.Graph
    plan: octavo.Plan
    stats: Stats
    params: octavo.Quantized
    other_stats: Stats
    folder: Path

    @property
    def batches(self) -> list[Tensor]:
        return [self.example, self.example]


# How an error may name an argument, if not by its own name: by the network's input, the layer, or what it is.
INPUT = ("x:", "conv.input:", "conv:", "example", "batch", "calibrate")
NAMED: dict[str, tuple[str, ...]] = {
    "batches": INPUT, "train": INPUT, "inputs": INPUT, "example": INPUT, "net": ("plan", "parameters"),
    "stats": ("statistics",), "path": ("saved network",), "names": ("repair",), "by": ("percentile",),
    "threads": ("THREADS",), "calibration": INPUT, "max_drop": ("drop",), "budget": ("search within",),
    "trials": ("search within",), "out": ("folder", "study"),
    "reference": ("of two networks", "two networks agree", "sample by sample", "noise"),
    "other": ("of two networks", "two networks agree", "sample by sample", "noise"),
    "what": ("measure a size",),
    "optimizer": ("optimizer",), "loss": ("loss",),
}  # fmt: skip

# What is none of our values, whatever the argument: each comes in the place of every argument below.
JUNK: dict[str, Any] = {
    "None": None,
    "a number": 3,
    "a string": "text",
    "an empty list": [],
    "a list of strings": ["a"],
    "a dict": {"a": 1},
    "an object": object(),
}
NUMBERS: dict[str, Any] = {"None": None, "a string": "3", "NaN": NAN, "minus one": -1, "a list": [1], "infinity": 1e999}
FLAGS: dict[str, Any] = {"a string": "yes", "None": None, "a list": []}


def batches_of(kit: Kit) -> dict[str, Any]:
    x = kit.example
    return {
        **JUNK,
        "a tensor alone": x,
        "an empty generator": iter(()),
        "arrays": [x.numpy()],
        "lists of numbers": [x.tolist()],
        "None among them": [x, None],
        "strings": ["text"],
        "dicts": [{"x": x}],
        "empty tuples": [()],
        "another dtype": [x.double()],
        "integers": [x.long()],
        "another rank": [x[0]],
        "other channels": [x[:, :3]],
        "first right, then wrong": [x, x[:, :3]],
        "two structures": [x, {"x": x}],
        "a tensor of NaN": [x * NAN],
        "meta": [x.to("meta")],
        "sparse": [x.to_sparse()],
        "complex": [x.to(torch.complex64)],
        "modules": [kit.model],
    }


def table(kit: Kit) -> Iterator[Row]:
    """(function, good arguments, {argument: {what is bad: value}})."""
    foreign = {"its module": kit.graph.module, "the model": kit.model}
    plan, net = {**JUNK, **foreign}, {**JUNK, **foreign, "a plan": kit.plan}
    paths = {says: value for says, value in JUNK.items() if not isinstance(value, str)}  # a string is a good one
    both, given = {"net": kit.params}, {"net": {**net, "a graph": kit.graph}}
    x, path = kit.example, kit.folder / "net.octavo"
    yield (
        octavo.capture,
        {"model": kit.model, "example": x},
        {
            "model": {**JUNK, "a class": nn.Linear, "a state_dict": kit.model.state_dict(), "a tensor": x},
            "example": {**JUNK, "an array": x.numpy(), "other channels": x[:, :3], "integers": x.long(),
                        "an empty tuple": (), "meta": x.to("meta"), "sparse": x.to_sparse(), "an empty batch": x[:0],
                        "two tensors": (x, x), "another name": {"y": x}, "names that are numbers": {1: x}},
            "dynamic_axes": {**JUNK, "too far": (7,), "negative": (-1,), "a float": (0.5,), "twice": (0, 0)},
            "batch_norm": JUNK,
        },
    )  # fmt: skip
    yield (
        octavo.make_plan,
        {"graph": kit.graph},
        {
            "graph": {**JUNK, "its module": kit.graph.module, "the model": kit.model},
            "rules": {**JUNK, "a rule alone": octavo.Rule("*"), "rules of two bits kinds": [octavo.Rule("*"), None]},
            "target": JUNK,
        },
    )
    yield (
        octavo.observe,
        {"plan": kit.plan, "batches": kit.batches},
        {"plan": plan, "batches": batches_of(kit), "progress": FLAGS},
    )
    yield (
        octavo.choose_params,
        {"plan": kit.plan, "stats": kit.stats},
        {
            "plan": plan,
            "stats": {**JUNK, "of another graph": kit.other_stats},
            "by": {**JUNK, "a percentage too high": "101", "a wrong name": "maximum"},
        },
    )
    yield octavo.simulate, both, given
    yield partial(octavo.compile, engine="reference"), both, {"net": {"a graph": kit.graph}}
    for engine in (*octavo.available(), "auto"):
        yield partial(octavo.compile, engine=engine), both, {"net": net}
        yield partial(octavo.compile, engine=engine), both, {"wings": {"an unknown option": 2}}
    yield octavo.compile, both, {"engine": JUNK, "check": FLAGS, "threads": {"a string": "x", "zero": 0, "minus": -1},
                                 "hint": JUNK, "precision": JUNK, "network": {"text": "x", "number": 3}}  # fmt: skip
    yield partial(octavo.compile, engine="onnxruntime"), both, {"threads": {"a string": "x"}, "fusion": JUNK}
    yield partial(octavo.compile, engine="inductor"), both, {"precision": {"a string": "f8", "number": 3}}
    yield octavo.export, {**both, "path": kit.folder / "net.onnx"}, {
        "net": net,
        "path": {**paths, "a folder": kit.folder, "no such folder": kit.folder / "a" / "b.onnx"}}  # fmt: skip
    yield octavo.save, {**both, "path": path}, {
        **given, "path": {**paths, "a folder": kit.folder}, "engine": JUNK, "form": JUNK}  # fmt: skip
    text = kit.folder / "text.octavo"
    text.write_text("text")
    yield octavo.load, {"path": path}, {
        "path": {**JUNK, "a folder": kit.folder, "no such file": kit.folder / "no", "a text": text},
        "engine": JUNK, "check": FLAGS, "wings": {"an unknown option": 2}}  # fmt: skip
    yield octavo.choose_engine, both, {"net": JUNK, "rounds": {**NUMBERS, "zero": 0},
                                       "example": {"text": "x", "other channels": x[:, :3]}}  # fmt: skip
    yield octavo.verify, {"a": kit.graph, "b": octavo.simulate(kit.params), "inputs": kit.batches}, {
        "a": {**JUNK, "a tensor": x}, "b": {**JUNK, "a tensor": x}, "inputs": batches_of(kit),
        "sites": FLAGS}  # fmt: skip
    yield octavo.ran, {"network": kit.model}, {"network": JUNK}


def cases(rows: Iterable[Row]) -> Iterator[Case]:
    """Every function of the table with every bad value in the place of one good one."""
    for function, good, bad in rows:
        name = getattr(function, "__name__", None) or f"{function.func.__name__}({function.keywords})"
        for argument, values in bad.items():
            for says, value in values.items():
                arguments = {**good, argument: value}
                yield Case(function=name, bad=f"{argument} is {says}", named=(argument, *NAMED.get(argument, ())),
                           call=partial(function, **arguments))  # fmt: skip
