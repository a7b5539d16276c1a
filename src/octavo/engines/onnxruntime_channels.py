"""Scales of channels for ONNX Runtime, whose convolutions read one scale: they move into the layers on either side.

    conv ─▶ [relu] ─▶ Q [channels] ─▶ DQ [channels] ─▶ depthwise conv
                          x / s rounded, s·q read
    conv / s ─▶ [relu] ─▶ Q 1 ─▶ DQ 1 ─▶ depthwise conv · s
    conv / s ─▶ [relu] ─▶ Q 1 ─▶ DQ [channels] ─▶ whatever else reads it, in float

The scale of a weight is per output channel; so the division by s is one of the weight scales and bias of the
convolution in front, where nothing but a ReLU stands between, and the multiplication by s is one of the weight scales
of the depthwise convolution. The integers are the same, every one. Where something else stands in front, such as a
SiLU, x is divided by a multiplication of its own. All channels have the same zero-point, as `choose_params` gives them.

Scales along other axes, or beside zero-points that differ, stay as they are: what reads them is computed in float.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from octavo.engines.onnx_graph import OnnxGraph

Steps = NDArray[np.float32]


def quantized(model: OnnxGraph, node: NodeProto) -> Iterator[NodeProto]:
    """A QuantizeLinear of channels as one of a tensor, of what is divided by the steps of its channels."""
    steps, rank = steps_of(model, node), _rank(model, node)
    if steps is None or rank is None:
        yield node
        return
    source, out = node.input[0], node.output[0]
    if _convolution_before(model, node) is None:
        inverse = _constant(model, (1 / steps).reshape(-1, *[1] * (rank - 2)), f"{out}.inverse")
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
    read, written, weight = steps_read(model, node), factors(model, node.output[0]), _weight(model, node)
    if weight is None or (read is None and written is None):
        return node
    out, outputs = node.output[0], model.constants[weight.input[0]].dims[0]
    scale = np.ones(outputs) * numpy_helper.to_array(model.constants[weight.input[1]])
    inputs = [node.input[0], f"{out}.weight", *node.input[2:]]
    if read is not None:
        groups = _groups(node)
        scale = scale * np.repeat(read.reshape(groups, -1)[:, 0], outputs // groups)
    if written is not None:
        scale = scale / written
        if len(inputs) > 2:
            bias = numpy_helper.to_array(model.constants[inputs[2]]) / written
            inputs[2] = _constant(model, bias.astype(np.float32), f"{out}.bias_in_steps")
    name = _constant(model, scale.astype(np.float32), f"{out}.weight_scale")
    stored = [weight.input[0], name]
    if len(weight.input) > 2:
        zero = numpy_helper.to_array(model.constants[weight.input[2]])
        stored.append(_constant(model, np.broadcast_to(zero, (outputs,)), f"{out}.weight_zero"))
    model.added.append(helper.make_node("DequantizeLinear", stored, [inputs[1]], axis=0))
    model.writers[inputs[1]] = model.added[-1]
    found = NodeProto()
    found.CopyFrom(node)
    del found.input[:]
    found.input.extend(inputs)
    return found


def steps_of(model: OnnxGraph, node: NodeProto | None) -> Steps | None:
    """The scales of the channels, along axis 1, of activations that `node` rounds or reads rounded; None if others."""
    if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[0] in model.constants:
        return None
    scale, zero = (model.constants.get(name) for name in node.input[1:3])
    if scale is None or zero is None or len(scale.dims) != 1 or _attribute(node, "axis", 1) != 1:
        return None
    zeros = numpy_helper.to_array(zero)
    return numpy_helper.to_array(scale).astype(np.float32) if bool((zeros == zeros[0]).all()) else None


def steps_read(model: OnnxGraph, node: NodeProto) -> Steps | None:
    """The steps of the channels that the Conv `node` reads, which are in its weights."""
    source = model.writers.get(node.input[0])
    return steps_of(model, source) if source is not None and _is_convolved(model, source) else None


def _is_convolved(model: OnnxGraph, node: NodeProto) -> bool:
    """Whether what `node` returns is the input of convolutions alone, whose sums run over channels of one step."""
    steps = steps_of(model, node)
    readers = model.readers.get(node.output[0], [])
    return steps is not None and all(
        reader.op_type == "Conv"
        and reader.input[0] == node.output[0]
        and _weight(model, reader) is not None
        and bool(np.ptp(steps.reshape(_groups(reader), -1), axis=1).max() == 0)
        for reader in readers
    )


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
    if steps is None:
        return None
    while before is not None and _passes(model, before, steps) and len(model.readers[value]) == 1:
        value = before.input[0]
        before = model.writers.get(value)
    weight = None if before is None or len(model.readers[value]) != 1 else _weight(model, before)
    if before is None or weight is None or (len(before.input) > 2 and before.input[2] not in model.constants):
        return None
    return before if len(steps) == model.constants[weight.input[0]].dims[0] else None


def _passes(model: OnnxGraph, node: NodeProto, steps: Steps) -> bool:
    """Whether dividing channels by `steps` may as well be done in front of `node`: its bounds are 0 and beyond all."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.input) < 3:
        return False
    low, high = (model.constants.get(name) for name in node.input[1:3])
    if low is None or high is None or float(numpy_helper.to_array(low)) != 0:
        return False
    return bool((254.5 * steps <= float(numpy_helper.to_array(high))).all())


def _weight(model: OnnxGraph, node: NodeProto) -> NodeProto | None:
    """What dequantizes the weight of a Conv, if that is stored with one scale, or one for each output channel."""
    found = model.writers.get(node.input[1]) if node.op_type == "Conv" else None
    if found is None or found.op_type != "DequantizeLinear" or found.input[0] not in model.constants:
        return None
    return found if _attribute(found, "block_size", 0) == 0 else None


def _unit(model: OnnxGraph, node: NodeProto) -> list[str]:
    """The names of the scale 1 and of the one zero-point of `node`."""
    zeros, name = numpy_helper.to_array(model.constants[node.input[2]]), f"{node.output[0]}.unit"
    scale = _constant(model, np.ones((), np.float32), f"{name}.scale")
    return [scale, _constant(model, zeros[0].reshape(()), f"{name}.zero")]


def _constant(model: OnnxGraph, values: NDArray[np.generic], name: str) -> str:
    tensor = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
    model.graph.initializer.append(tensor)
    model.constants[name] = tensor
    return name


def _rank(model: OnnxGraph, node: NodeProto) -> int | None:
    """Of the image that `node` rounds: that of the weight of a convolution which reads or returns it; None if none."""
    behind = [reader for back in model.readers.get(node.output[0], []) for reader in model.readers[back.output[0]]]
    for one in (*behind, _convolution_before(model, node)):
        weight = None if one is None else _weight(model, one)
        if weight is not None:
            return len(model.constants[weight.input[0]].dims)
    return None


def _groups(node: NodeProto) -> int:
    return _attribute(node, "group", 1)


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)
