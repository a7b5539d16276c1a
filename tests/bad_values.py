"""Bad arguments of the public functions, as data: for each function good arguments, and for each argument what is not.

`cases(kit)` makes of it a list of calls, each with one bad argument among good ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import octavo
from octavo.network.calibrate import Stats
from octavo.recovery.sensitivity import exact, fast, rank_correlation

NAN = float("nan")


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
    params: octavo.Params
    other: octavo.Graph
    other_plan: octavo.Plan
    other_stats: Stats
    other_params: octavo.Params
    folder: Path

    @property
    def batches(self) -> list[Tensor]:
        return [self.example, self.example]


# How an error may name an argument, if not by its own name: by the network's input, the layer, or what it is.
INPUT = ("x:", "conv.input:", "conv:", "example", "batch", "calibrate")
NAMED: dict[str, tuple[str, ...]] = {
    "batches": INPUT, "train": INPUT, "inputs": INPUT, "example": INPUT, "params": ("plan", "parameters"),
    "stats": ("statistics",), "path": ("saved network",), "names": ("repair",), "by": ("percentile",),
    "threads": ("THREADS",), "reference": ("of two networks", "two networks agree", "sample by sample", "noise"),
    "other": ("of two networks", "two networks agree", "sample by sample", "noise"), "what": ("measure a size",),
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


def _batches(kit: Kit) -> dict[str, Any]:
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


def _table(kit: Kit) -> Iterator[tuple[Callable[..., object], dict[str, Any], dict[str, dict[str, Any]]]]:
    """(function, good arguments, {argument: {what is bad: value}})."""
    foreign = {"another graph": kit.other, "its module": kit.graph.module, "the model": kit.model}
    graph, plan, params = (
        {**JUNK, **foreign},
        {**JUNK, "of another graph": kit.other_plan},
        {**JUNK, "of another graph": kit.other_params},
    )
    both = {"graph": kit.graph, "params": kit.params}
    given = {"graph": graph, "params": params}
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
        {"graph": kit.graph, "plan": kit.plan, "batches": kit.batches},
        {"graph": graph, "plan": plan, "batches": _batches(kit), "progress": FLAGS},
    )
    yield (
        octavo.choose_params,
        {"graph": kit.graph, "plan": kit.plan, "stats": kit.stats},
        {
            "graph": graph,
            "plan": plan,
            "stats": {**JUNK, "of another graph": kit.other_stats},
            "by": {**JUNK, "a percentage too high": "101", "a wrong name": "maximum"},
        },
    )
    yield octavo.simulate, both, given
    for engine in (*octavo.available(), "auto"):
        yield (
            partial(octavo.compile, engine=engine),
            both,
            {"graph": graph, "params": params} if engine != "auto" else {"params": {"a number": 3, "None": None}},
        )
        yield partial(octavo.compile, engine=engine), both, {"wings": {"an unknown option": 2}}
    yield octavo.compile, both, {"engine": JUNK, "check": FLAGS, "threads": {"a string": "x", "zero": 0, "minus": -1},
                                 "hint": JUNK, "precision": JUNK, "network": {"text": "x", "number": 3}}  # fmt: skip
    yield partial(octavo.compile, engine="onnxruntime"), both, {"threads": {"a string": "x"}, "fusion": JUNK}
    yield partial(octavo.compile, engine="inductor"), both, {"precision": {"a string": "f8", "number": 3}}
    yield octavo.export, {**both, "path": kit.folder / "net.onnx"}, {
        **given, "path": {**JUNK, "a folder": kit.folder, "no such folder": kit.folder / "a" / "b.onnx"}}  # fmt: skip
    yield octavo.save, {**both, "path": path}, {
        **given, "path": {**JUNK, "a folder": kit.folder}, "engine": JUNK, "form": JUNK}  # fmt: skip
    text = kit.folder / "text.octavo"
    text.write_text("text")
    yield octavo.load, {"path": path}, {
        "path": {**JUNK, "a folder": kit.folder, "no such file": kit.folder / "no", "a text": text},
        "engine": JUNK, "check": FLAGS, "wings": {"an unknown option": 2}}  # fmt: skip
    yield octavo.choose_engine, both, {"graph": JUNK, "params": JUNK, "rounds": {**NUMBERS, "zero": 0},
                                       "example": {"text": "x", "other channels": x[:, :3]}}  # fmt: skip
    yield octavo.verify, {"a": kit.graph, "b": octavo.simulate(kit.graph, kit.params), "inputs": kit.batches}, {
        "a": {**JUNK, "a tensor": x}, "b": {**JUNK, "a tensor": x}, "inputs": _batches(kit),
        "sites": FLAGS}  # fmt: skip
    yield octavo.ran, {"network": kit.model}, {"network": JUNK}
    yield from _recovery(kit, both, given)
    yield from _numbers(kit)


def _recovery(kit: Kit, both: dict[str, Any], given: dict[str, Any]) -> Iterator[Any]:
    x, batches = kit.example, _batches(kit)
    few = {name: batches[name] for name in ("None", "a tensor alone", "arrays", "strings", "other channels", "meta")}
    yield (
        octavo.repair,
        {**both, "batches": kit.batches, "names": ["correct_bias"]},
        {**given, "batches": batches, "names": {**JUNK, "a string alone": "correct_bias"}},
    )
    for name, one in octavo.REPAIRS.items():
        yield partial(octavo.repair, names=[name]), {**both, "batches": kit.batches}, {"batches": few}
        yield one, {**both, "batches": kit.batches}, {"graph": {"None": None}, "params": {"a number": 3}}
    for measure in (exact, fast):
        yield measure, {**both, "batches": kit.batches}, {**given, "batches": batches}
    wrong = {**JUNK, "returns None": lambda *_: None, "returns text": lambda *_: "x", "returns two": lambda *_: [1, 2]}
    yield exact, {**both, "batches": kit.batches}, {"loss": wrong}
    yield fast, {**both, "batches": kit.batches}, {"probes": {**NUMBERS, "zero": 0}, "seed": {"text": "x"}}
    rows = exact(kit.graph, kit.params, kit.batches)
    yield rank_correlation, {"a": rows, "b": rows}, {"a": JUNK, "b": JUNK}
    yield octavo.trainable, both, {**given, "weights": JUNK, "ranges": JUNK}
    module = octavo.trainable(kit.graph, kit.params)
    yield octavo.trained, {**both, "module": module}, {**given, "module": {**JUNK, "the model": kit.model}}
    schedule = octavo.Schedule(epochs=1, learning_rate=1e-4)
    training = {"train": kit.batches, "schedule": schedule, "progress": False}
    options = {
        "train": batches, "loss": {**JUNK, "returns None": lambda *_: None, "returns text": lambda *_: "x",
                                   "returns a number": lambda *_: 1.0, "returns a vector": lambda o, b: o},
        "schedule": JUNK, "optimizer": {**JUNK, "returns None": lambda *_: None},
        "distill": JUNK, "evaluate": {**JUNK, **BAD_SCORES}, "seed": {"text": "x"}, "out": {"number": 3},
        "original_epochs": NUMBERS, "original_lr": NUMBERS, "accelerator": {"text": "x"},
        "wings": {"an unknown option": 2},
    }  # fmt: skip
    yield octavo.finetune, {**both, **training}, {**given, **options}
    yield octavo.fit, {"module": module, **training}, {"module": {**JUNK, "the model": kit.model}}
    out = kit.model(x)
    yield octavo.distance, {"outputs": out, "wanted": out}, {"outputs": JUNK, "wanted": {**JUNK, "longer": (out, out)}}
    yield octavo.divergence, {"outputs": out, "wanted": out}, {"outputs": JUNK, "wanted": JUNK}


# What `evaluate` may return by mistake.
BAD_SCORES: dict[str, Callable[..., Any]] = {
    f"returns {name}": partial(lambda value, *_: value, value)
    for name, value in {
        "None": None, "text": "0.9", "a dict": {"top1": 0.9}, "NaN": NAN, "complex": 1 + 2j, "an empty list": [],
        "a list of text": ["a"], "a ragged list": [[1.0], [1.0, 2.0]], "an object": object(), "infinity": 1e999,
        "a tensor of one": torch.ones(1), "a complex tensor": torch.ones(3, dtype=torch.complex64),
        "a meta tensor": torch.ones(3, device="meta"), "a sparse tensor": torch.ones(3).to_sparse(), "a set": {0.5},
        "an array": np.ones(1),
    }.items()
}  # fmt: skip


def _numbers(kit: Kit) -> Iterator[Any]:
    x = kit.example
    tensors = {**JUNK, "empty": x[:0], "NaN": x * NAN, "a scalar": torch.tensor(1.0), "complex": x.to(torch.complex64)}
    yield octavo.sqnr_db, {"reference": x, "other": x}, {"reference": tensors, "other": tensors}
    yield octavo.agreement, {"reference": x, "other": x}, {"reference": tensors, "other": tensors}
    scores = torch.rand(9)
    yield (
        octavo.paired_interval,
        {"reference": scores, "other": scores},
        {"reference": tensors, "other": tensors, "score": {**JUNK, "returns text": lambda *_: "x"},
         "confidence": {**NUMBERS, "two": 2.0}, "resamples": {**NUMBERS, "zero": 0}, "seed": {"text": "x"}},
    )  # fmt: skip
    yield (
        octavo.latency_ms,
        {"contestants": {"a": lambda: None}, "rounds": 1, "warmup": 0},
        {
            "contestants": {**JUNK, "calls nothing": {"a": 3}},
            "rounds": NUMBERS,
            "warmup": NUMBERS,
            "seed": {"set": {1}},
        },
    )
    yield octavo.size_mb, {"what": kit.model}, {"what": {**JUNK, "no such file": kit.folder / "no"}}
    histogram, scheme = next(iter(kit.stats.values())), octavo.Scheme()
    for by in (octavo.entropy, octavo.max_range, octavo.mse, octavo.percentile(99.9)):
        yield by, {"histogram": histogram, "scheme": scheme}, {"histogram": {**JUNK, "empty": octavo.Histogram()},
                                                               "scheme": JUNK}  # fmt: skip
    yield octavo.percentile, {"p": 99.9}, {"p": {**JUNK, **NUMBERS, "above 100": 101}}
    yield octavo.Rule, {}, {"layer": JUNK, "bits": {**NUMBERS, "nine": 9}, "scheme": {**NUMBERS, "text": "int8"},
                            "skip": FLAGS, "operation": {"number": 3}, "role": {"number": 3}}  # fmt: skip
    yield octavo.Scheme, {}, {"bits": {**NUMBERS, "nine": 9}, "axis": {"text": "x", "float": 0.5}, "signed": FLAGS,
                              "block": {"text": "x", "float": 0.5}}  # fmt: skip
    yield octavo.Schedule, {"epochs": 1, "learning_rate": 0.1}, {"epochs": NUMBERS, "learning_rate": NUMBERS,
                                                                "last": NUMBERS}  # fmt: skip
    yield octavo.Target, {"name": "mine"}, {"name": {"number": 3}, "weight": JUNK, "activation": JUNK,
                                            "residual": JUNK, "float_operations": JUNK}  # fmt: skip
    yield octavo.QParams, {"scale": torch.tensor(1.0), "zero_point": torch.tensor(0).int(), "scheme": scheme}, {
        "scale": JUNK, "zero_point": JUNK, "scheme": JUNK}  # fmt: skip
    yield octavo.Params, {"plan": kit.plan, "values": kit.params.values, "method": "max"}, {
        "plan": JUNK, "values": JUNK, "method": {"number": 3}}  # fmt: skip


def cases(kit: Kit) -> Iterator[Case]:
    """Every function of the table with every bad value in the place of one good one."""
    for function, good, bad in _table(kit):
        name = getattr(function, "__name__", None) or f"{function.func.__name__}({function.keywords})"
        for argument, values in bad.items():
            for says, value in values.items():
                arguments = {**good, argument: value}
                yield Case(function=name, bad=f"{argument} is {says}", named=(argument, *NAMED.get(argument, ())),
                           call=partial(function, **arguments))  # fmt: skip
