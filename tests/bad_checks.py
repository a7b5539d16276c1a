"""Bad arguments of `octavo.check`, as data: see `bad_values.py`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

import octavo
from bad_values import FLAGS, JUNK, NAMED, NAN, NUMBERS, Kit, Row

NAMED |= {
    "float_network": ("open a network", "open ", "run "),
    "int8_network": ("open a network", "open ", "run ", "of two networks"),
    "data": ("samples to check on", "run ", "the float network"),
    "evaluate": ("it is no recipe", "run the recipe"),
    "min_int8": ("a share",),
    "confidence": ("confidence",),
    "measure": ("measure",),
    "engine": ("cannot be run on",),
}


def gate(kit: Kit) -> Iterator[Row]:
    """(octavo.check, good arguments, {argument: {what is bad: value}})."""
    x = torch.randn(20, *kit.example.shape[1:]).numpy()
    networks: dict[str, Any] = {**JUNK, "a class": nn.Linear, "a tensor": kit.example, "another": nn.Linear(3, 3)}
    good = {"float_network": kit.model, "int8_network": kit.model, "data": {"x": x}, "rounds": 1}
    yield octavo.check, good, {
        "float_network": networks,
        "int8_network": {**networks, "a function of no argument": lambda: 1, "a function that fails": lambda x: x / "a",
                         "one that returns no numbers": lambda x: {"y": object()},
                         "one that returns fewer": lambda x: x[:3],
                         "one that returns text": lambda x: "text", "one that returns nothing": lambda x: None},
        "data": {**JUNK, "no arrays": {}, "no samples": {"x": x[:0]}, "text": {"x": np.array(["a"])},
                 "None in it": {"x": None}, "labels that are none": {"x": x, "labels": "text"},
                 "NaN": {"x": x * np.float32(NAN)}, "other channels": {"x": x[:, :3]}, "objects": {"x": [object()]},
                 "ragged lists": {"x": [[1], [1, 2]]}, "complex": {"x": x.astype(complex)}},
        "evaluate": {"a number": 3, "a string": "text", "a function": len, "no file": kit.folder / "no.py"},
        "max_drop": NUMBERS, "confidence": {**NUMBERS, "one": 1.0, "zero": 0.0}, "relative": FLAGS,
        "min_int8": {**NUMBERS, "two": 2, "what is not known": 0.5},
        "measure": JUNK, "batch": {**NUMBERS, "zero": 0}, "rounds": {**NUMBERS, "zero": 0}, "bench": FLAGS,
    }  # fmt: skip
    yield octavo.check, {**good, "float_network": kit.folder / "net.octavo"}, {"engine": JUNK}
