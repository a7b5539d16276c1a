"""More of `bad_values`: bad arguments of recovery, of the whole road, and of what measures."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import octavo
from bad_values import FLAGS, JUNK, NAN, NUMBERS, Kit, Row, batches_of
from octavo.recovery.sensitivity import exact, fast, rank_correlation


def road(kit: Kit) -> Iterator[Row]:
    """The whole road in one call."""
    good = {"model": kit.model, "calibration": kit.batches, "engine": "simulation",
            "evaluate": lambda network: float(network(kit.example).norm()), "trials": 1, "progress": False}  # fmt: skip
    yield octavo.quantize, good, {
        "model": {**JUNK, "a class": nn.Linear}, "calibration": batches_of(kit), "evaluate": JUNK, "max_drop": NUMBERS,
        "relative": FLAGS, "confidence": {**NUMBERS, "two": 2},
        "example": {"text": "x", "an array": kit.example.numpy()},
        "rules": {"text": "x", "numbers": [1]}, "target": {"text": "x", "number": 3}, "engine": JUNK,
        "prefer": JUNK, "train": JUNK, "budget": {**JUNK, **NUMBERS}, "trials": {**NUMBERS, "zero": 0},
        "trials_on": {"text": "x", "number": 3}, "out": {"number": 3, "a file": kit.folder / "text.octavo"},
        "dynamic_axes": {"text": "x"},
    }  # fmt: skip


def recovery(kit: Kit) -> Iterator[Row]:
    """Repairs, sensitivities and training."""
    both, given = {"net": kit.params}, {"net": {**JUNK, "a graph": kit.graph, "a plan": kit.plan}}
    x, batches = kit.example, batches_of(kit)
    few = {name: batches[name] for name in ("None", "a tensor alone", "arrays", "strings", "other channels", "meta")}
    yield (
        octavo.repair,
        {**both, "batches": kit.batches, "names": ["correct_bias"]},
        {**given, "batches": batches, "names": {**JUNK, "a string alone": "correct_bias"}},
    )
    for name, one in octavo.REPAIRS.items():
        yield partial(octavo.repair, names=[name]), {**both, "batches": kit.batches}, {"batches": few}
        yield one.function, {**both, "batches": kit.batches}, {"net": {"None": None, "a number": 3}}
    for measure in (exact, fast):
        yield measure, {**both, "batches": kit.batches}, {**given, "batches": batches}
    wrong = {**JUNK, "returns None": lambda *_: None, "returns text": lambda *_: "x", "returns two": lambda *_: [1, 2]}
    yield exact, {**both, "batches": kit.batches}, {"loss": wrong}
    yield fast, {**both, "batches": kit.batches}, {"probes": {**NUMBERS, "zero": 0}, "seed": {"text": "x"}}
    rows = exact(kit.params, kit.batches)
    yield rank_correlation, {"a": rows, "b": rows}, {"a": JUNK, "b": JUNK}
    yield octavo.trainable, both, {**given, "weights": JUNK, "ranges": JUNK}
    module = octavo.trainable(kit.params)
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


def numbers(kit: Kit) -> Iterator[Row]:
    """What measures, and the values that are made by hand."""
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
    yield octavo.Quantized, {"plan": kit.plan, "values": kit.params.values, "method": "max"}, {
        "plan": JUNK, "values": JUNK, "method": {"number": 3}}  # fmt: skip
