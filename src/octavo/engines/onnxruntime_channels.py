"""Scales of channels for ONNX Runtime, whose convolutions read one scale: they move into the layers on either side.

    conv ─▶ [relu] ─▶ Q [channels] ─▶ DQ [channels] ─▶ depthwise conv
                          x / s rounded, s·q read
    conv / s ─▶ [relu] ─▶ Q 1 ─▶ DQ 1 ─▶ depthwise conv · s
    conv / s ─▶ [relu] ─▶ Q 1 ─▶ DQ [channels] ─▶ whatever else reads it, in float

The scale of a weight is per output channel; so the division by s is one of the weight scales and bias of the
convolution in front, where nothing but a ReLU stands between, and the multiplication by s is one of the weight scales
of the depthwise convolution. The integers are the same, every one. Where something else stands in front, such as a
SiLU, x is divided by a multiplication of its own. All channels have the same zero-point, as
`choose_params` gives them.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from octavo.engines.onnx_graph import OnnxGraph

Steps = NDArray[np.float32]


def quantized(model: OnnxGraph, node: NodeProto) -> Iterator[NodeProto]:
    """A QuantizeLinear of channels as one of a tensor, of what is divided by the steps of its channels."""
    steps = steps_of(model, node)
    if steps is None:
        yield node
        return
    source, out = node.input[0], node.output[0]
    if _convolution_before(model, node) is None:
        inverse = _constant(model, (1 / steps).reshape(-1, *[1] * (_rank(model, node) - 2)), f"{out}.inverse")
        yield helper.make_node("Mul", [source, inverse], [f"{out}.divided"])
        source = f"{out}.divided"
    yield helper.make_node("QuantizeLinear", [source, *_unit(model, node)], [out], name=node.name)


def dequantized(model: OnnxGraph, node: NodeProto) -> Iterator[NodeProto]:
    """The DequantizeLinear behind it: of integers in steps of their channels, if convolutions alone read those."""
    if steps_of(model, node) is None or not _is_convolved(model, node):
        yield node
    else:
        yield helper.make_node("DequantizeLinear", [node.input[0], *_unit(model, node)], list(node.output))


def bounded(model: OnnxGraph, node: NodeProto) -> Iterator[NodeProto]:
    """A Clip between a convolution and the steps of its channels: those end before its upper bound."""
    if factors(model, node.output[0]) is None:
        yield node
    else:
        yield helper.make_node("Relu", [node.input[0]], list(node.output), name=node.name)


def convolution(model: OnnxGraph, node: NodeProto) -> NodeProto:
    """The Conv `node`, with the steps of the channels that it reads, and of those that it writes, in its weights."""
    source = model.writers.get(node.input[0])
    read = steps_of(model, source) if source is not None and _is_convolved(model, source) else None
    written = factors(model, node.output[0])
    if read is None and written is None:
        return node
    weight, out = model.writers[node.input[1]], node.output[0]
    scale = numpy_helper.to_array(model.constants[weight.input[1]]).astype(np.float64)
    outputs = model.constants[weight.input[0]].dims[0]
    scale = np.broadcast_to(scale, (outputs,))
    if read is not None:
        scale = scale * np.repeat(read.astype(np.float64), outputs // len(read))
    inputs = [node.input[0], f"{out}.weight", *node.input[2:]]
    if written is not None:
        scale = scale / written
        if len(inputs) > 2:
            bias = numpy_helper.to_array(model.constants[inputs[2]]) / written
            inputs[2] = _constant(model, bias.astype(np.float32), f"{out}.bias_in_steps")
    name = _constant(model, scale.astype(np.float32), f"{out}.weight_scale")
    model.added.append(
        helper.make_node("DequantizeLinear", [weight.input[0], name, *weight.input[2:]], [inputs[1]], axis=0)
    )
    model.constants[name] = model.graph.initializer[-1]
    model.writers[inputs[1]] = model.added[-1]
    found = NodeProto()
    found.CopyFrom(node)
    del found.input[:]
    found.input.extend(inputs)
    return found


def steps_of(model: OnnxGraph, node: NodeProto | None) -> Steps | None:
    """The scales of the channels of activations that `node` rounds, or reads rounded; None if it has one for all."""
    if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[0] in model.constants:
        return None
    scale = model.constants.get(node.input[1])
    return None if scale is None or not scale.dims else np.asarray(numpy_helper.to_array(scale), dtype=np.float32)


def _is_convolved(model: OnnxGraph, node: NodeProto) -> bool:
    """Whether convolutions alone read what `node` returns."""
    return all(reader.op_type == "Conv" for reader in model.readers.get(node.output[0], []))


def factors(model: OnnxGraph, value: str) -> Steps | None:
    """The steps of the channels in which `value`, of a convolution or of a ReLU behind it, is rounded and not else."""
    readers = model.readers.get(value, [])
    if len(readers) != 1:
        return None
    if readers[0].op_type in ("Relu", "Clip"):
        return factors(model, readers[0].output[0])
    before = _convolution_before(model, readers[0]) if readers[0].op_type == "QuantizeLinear" else None
    return None if before is None else steps_of(model, readers[0])


def _convolution_before(model: OnnxGraph, node: NodeProto) -> NodeProto | None:
    """The convolution on integers that can write what `node` rounds in steps of its channels."""
    steps, value = steps_of(model, node), node.input[0]
    before = model.writers.get(value)
    if steps is None or before is None:
        return None
    while before is not None and _passes(model, before, steps) and len(model.readers[value]) == 1:
        value = before.input[0]
        before = model.writers.get(value)
    if before is None or before.op_type != "Conv" or len(model.readers[value]) != 1:
        return None
    weight = model.writers.get(before.input[1])
    stored = None if weight is None else model.constants.get(weight.input[0])
    biased = len(before.input) < 3 or before.input[2] in model.constants
    plain = weight is not None and weight.op_type == "DequantizeLinear" and stored is not None and biased
    return before if plain and len(steps) == (stored.dims[0] if stored is not None else 0) else None


def _passes(model: OnnxGraph, node: NodeProto, steps: Steps) -> bool:
    """Whether dividing channels by `steps` may as well be done in front of `node`: its bounds are 0 and beyond all."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.input) < 3:
        return False
    low, high = (model.constants.get(name) for name in node.input[1:3])
    if low is None or high is None or float(numpy_helper.to_array(low)) != 0:
        return False
    return bool((255.5 * steps <= float(numpy_helper.to_array(high)) + steps).all())


def _unit(model: OnnxGraph, node: NodeProto) -> list[str]:
    """The names of the scale 1 and of the one zero-point of `node`."""
    zeros = numpy_helper.to_array(model.constants[node.input[2]]).reshape(-1)
    assert (zeros == zeros[0]).all(), "channels of one tensor have one zero-point"
    name = f"{node.output[0]}.unit"
    scale = _constant(model, np.ones((), np.float32), f"{name}.scale")
    return [scale, _constant(model, zeros[0].reshape(()), f"{name}.zero")]


def _constant(model: OnnxGraph, values: NDArray[np.generic], name: str) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name))
    return name


def _rank(model: OnnxGraph, node: NodeProto) -> int:
    """Of what `node` rounds: that of the weight of a convolution which reads or returns it."""
    found = [reader for back in model.readers[node.output[0]] for reader in model.readers[back.output[0]]]
    before = model.writers.get(node.input[0])
    while before is not None and before.op_type != "Conv":
        before = model.writers.get(before.input[0]) if before.input else None
    for one in (*found, before):
        weight = model.writers.get(one.input[1]) if one is not None and one.op_type == "Conv" else None
        stored = None if weight is None else model.constants.get(weight.input[0])
        if stored is not None:
            return len(stored.dims)
    raise AssertionError("scales of channels are for convolutions alone")
