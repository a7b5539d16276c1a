"""Wrong ONNX files are caught: a number or an operator of them is changed, and the engine leaves the simulation.

What is to be changed must be there, and what is unchanged must pass: so each test can fail.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

import octavo
from conftest import Network
from octavo.engines.onnx import export_onnx
from octavo.engines.openvino import compile_openvino
from octavo.network.target import target_named
from test_openvino import prepared

ENOUGH = 40  # decibels between an engine and the simulation


def distance_db(engine, simulation, inputs) -> float:
    """Of all outputs together."""
    found, wanted = (torch.cat([out.flatten() for out in run(*inputs)]) for run in (engine, simulation))
    return float(octavo.sqnr_db(wanted, found))


def exported(self, x):
    """Convolutions, a transpose of square matrices, an attention and a linear."""
    x = self.two(F.relu(self.one(x))).flatten(2).transpose(1, 2)
    x = (self.q(x) @ self.k(x).transpose(1, 2) * 4).softmax(-1) @ x
    return (self.head(x),)


@pytest.fixture(scope="module")
def original():
    """A network with signed activations: behind a ReLU, unsigned integers alone would make the ReLU superfluous."""
    layers = {
        "one": nn.Conv2d(3, 16, 3, padding=1),
        "two": nn.Conv2d(16, 16, 3, padding=1),
        "q": nn.Linear(16, 16),
        "k": nn.Linear(16, 16),
        "head": nn.Linear(16, 16),
    }
    x = torch.randn(4, 3, 4, 4)
    target = replace(target_named("openvino"), nonnegative=None, convolution=None)
    net = prepared(Network(exported, **layers).eval(), x, target=target)
    graph = net.graph
    return graph, net, x, export_onnx(net)


def node_of(model, kind, **attributes):
    """The first node of that kind with these attributes."""
    found = [
        node
        for node in model.graph.node
        if node.op_type == kind and all(attribute(node, name) == value for name, value in attributes.items())
    ]
    assert found, f"there is no {kind} with {attributes}"
    return found[0]


def attribute(node, name):
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def set_attribute(node, name, value) -> None:
    (old,) = (a for a in node.attribute if a.name == name)
    node.attribute.remove(old)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def change(model, node, position: int, function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let `node`, and nobody else, read `function` of the constant that it reads."""
    (tensor,) = (t for t in model.graph.initializer if t.name == node.input[position])
    array = numpy_helper.to_array(tensor)
    changed = function(array).astype(array.dtype)
    assert changed.shape == array.shape
    assert not np.array_equal(changed, array)
    model.graph.initializer.append(numpy_helper.from_array(changed, f"{tensor.name}_changed"))
    node.input[position] = f"{tensor.name}_changed"


def dequantizer(model, *, of_weight: bool):
    constants = {tensor.name for tensor in model.graph.initializer}
    found = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and (node.input[0] in constants) == of_weight
    ]
    return found[0]


def bypass(model, node) -> None:
    for reader in model.graph.node:
        for position, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[position] = node.input[0]


def scale_of_input(model) -> None:
    change(model, dequantizer(model, of_weight=False), 1, lambda scale: scale * 1.5)


def scale_of_weight(model) -> None:
    change(model, dequantizer(model, of_weight=True), 1, lambda scale: scale * 1.5)


def zero_point(model) -> None:
    change(model, dequantizer(model, of_weight=False), 2, lambda zero: zero + 9)


def weight(model) -> None:
    change(model, dequantizer(model, of_weight=True), 0, lambda integers: np.roll(integers, 1, 0))


def activation(model) -> None:
    bypass(model, node_of(model, "Relu"))


def transposed(model) -> None:
    set_attribute(node_of(model, "Transpose", perm=[0, 2, 1]), "perm", [0, 1, 2])


def padding(model) -> None:
    set_attribute(node_of(model, "Conv", pads=[1, 1, 1, 1]), "pads", [2, 1, 0, 1])


def axis(model) -> None:
    set_attribute(node_of(model, "Softmax"), "axis", 1)


def bias(model) -> None:
    change(model, node_of(model, "Conv"), 2, lambda values: values * 0)


FILES = (scale_of_input, scale_of_weight, zero_point, weight, activation, transposed, padding, axis, bias)


def test_what_is_unchanged_passes(original) -> None:
    _, net, x, model = original
    network = compile_openvino(net, network=model)
    assert distance_db(network, octavo.simulate(net), (x,)) >= ENOUGH


@pytest.mark.parametrize("wrong", FILES)
def test_a_wrong_file_is_caught(original, wrong) -> None:
    _, net, x, model = original
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    wrong(changed)
    assert changed.SerializeToString() != model.SerializeToString()
    network = compile_openvino(net, network=changed)
    distance = distance_db(network, octavo.simulate(net), (x,))
    print(distance)
    assert not distance >= ENOUGH
    with pytest.warns(UserWarning, match="the ONNX model that was given computes something else than the network"):
        right = octavo.compile(net, engine="openvino", network=changed)
    assert distance_db(right, octavo.simulate(net), (x,)) >= ENOUGH
