"""The interchange as ONNX Runtime reads it best: what it would compute in float, or otherwise than planned, rewritten.

    Gemm of integers                  ─▶ MatMul, Add     its fused Gemm runs in float, with a bias rounded to integers
    scales of channels                ─▶ in the weights around: see `onnxruntime_channels.py`
    transposed weight                 ─▶ stored so       its fusion knows no Transpose of a weight with two readers
    dequantized table ─▶ Gather       ─▶ rows gathered in integers, then scaled: not the whole table in every call
    Conv whose bias cannot be integer ─▶ Conv, Add       in float, but right
    mean of an image, rounded         ─▶ GlobalAveragePool, which reads the integers in the order of the convolution

The file that `export_onnx` writes is left as it is: other readers want other things.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from octavo.engines.onnx_graph import OnnxGraph
from octavo.engines.onnxruntime_channels import bounded, convolution, dequantized, factors, quantized, steps_read


def rewritten(network: onnx.ModelProto) -> onnx.ModelProto:
    """`network` for ONNX Runtime; one without integers comes back as it is."""
    if not is_quantized(network):
        return network
    model = onnx.ModelProto()
    model.CopyFrom(network)
    nodes: list[NodeProto] = []
    graph = model.graph
    seen = OnnxGraph.of(graph)
    for node in list(graph.node):
        made = list(_REWRITES[node.op_type](seen, node)) if node.op_type in _REWRITES else [node]
        nodes += [*seen.added, *made]
        seen.added.clear()
    del graph.node[:]
    graph.node.extend(_read(nodes, {value.name for value in graph.output}))
    return model


def _read(nodes: list[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """Those of `nodes` whose results are read: without weights that were stored otherwise."""
    kept, wanted = [], set(outputs)
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def is_quantized(network: onnx.ModelProto) -> bool:
    """Whether anything in `network` is in integers."""
    return any(node.op_type == "DequantizeLinear" for node in network.graph.node)


def signed_activations(network: onnx.ModelProto) -> bool:
    """Whether an activation is rounded to int8, and not to uint8."""
    types = {tensor.name: tensor.data_type for tensor in network.graph.initializer}
    pairs = (node for node in network.graph.node if node.op_type == "QuantizeLinear")
    return any(types.get(node.input[2]) == TensorProto.INT8 for node in pairs)


def _product(model: OnnxGraph, node: NodeProto) -> Iterator[NodeProto]:
    """A Gemm of integers, as MatMul and Add."""
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    plain = attributes.get("alpha", 1) == attributes.get("beta", 1) == 1 and not attributes.get("transA", 0)
    if not plain or not _is_dequantized(model, node.input[1]):
        yield node
        return
    weight, product = node.input[1], f"{node.output[0]}.product"
    if attributes.get("transB", 0):
        weight = f"{node.output[0]}.weight"
        yield from _weight(model, helper.make_node("Transpose", [node.input[1]], [weight], perm=[1, 0]))
    biased = len(node.input) > 2
    yield helper.make_node("MatMul", [node.input[0], weight], [product if biased else node.output[0]], name=node.name)
    if biased:
        yield helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}.bias")


def _weight(model: OnnxGraph, node: NodeProto) -> Iterator[NodeProto]:
    """A Transpose of a weight [K, N] in integers, as a weight [N, K]."""
    source = model.writers.get(node.input[0])
    stored = None if source is None else model.constants.get(source.input[0])
    if source is None or source.op_type != "DequantizeLinear" or stored is None or len(stored.dims) != 2:
        yield node
        return
    attributes = {one.name: helper.get_attribute_value(one) for one in source.attribute}
    if "block_size" in attributes or list(helper.get_attribute_value(node.attribute[0])) != [1, 0]:
        yield node
        return
    out = node.output[0]
    turned = np.ascontiguousarray(numpy_helper.to_array(stored).T)
    model.graph.initializer.append(numpy_helper.from_array(turned, f"{out}.integers"))
    axis = {"axis": 1 - attributes["axis"] % 2} if "axis" in attributes else {}
    yield helper.make_node("DequantizeLinear", [f"{out}.integers", *source.input[1:]], [out], **axis)


def _is_dequantized(model: OnnxGraph, value: str) -> bool:
    return value in model.writers and model.writers[value].op_type == "DequantizeLinear"


def _rows(model: OnnxGraph, node: NodeProto) -> Iterator[NodeProto]:
    """A Gather of rows from a table in integers: the rows are scaled, and not the table."""
    table = model.writers.get(node.input[0])
    axes = [one.i for one in node.attribute if one.name == "axis"]
    if table is None or table.op_type != "DequantizeLinear" or axes not in ([], [0]) or len(table.input) != 2:
        yield node
        return
    integers, scale = (model.constants.get(name) for name in table.input)
    along = [one.i for one in table.attribute if one.name == "axis"] or [1]
    blocks = any(one.name == "block_size" for one in table.attribute)
    if integers is None or scale is None or blocks or (scale.dims and (along[0] != 0 or len(integers.dims) != 2)):
        yield node
        return
    out = node.output[0]
    yield helper.make_node("Gather", [integers.name, node.input[1]], [f"{out}.integers"], name=node.name, axis=0)
    yield helper.make_node("Cast", [f"{out}.integers"], [f"{out}.cast"], to=TensorProto.FLOAT)
    factor = scale.name
    if scale.dims:
        factor = f"{out}.scale"
        column = numpy_helper.from_array(numpy_helper.to_array(scale).reshape(-1, 1), f"{out}.scales")
        model.graph.initializer.append(column)
        yield helper.make_node("Gather", [column.name, node.input[1]], [factor], axis=0)
    yield helper.make_node("Mul", [f"{out}.cast", factor], [out])


SHARE = 0.25  # of the noise of rounding the result: more by rounding the bias is too coarse


def _convolution(model: OnnxGraph, node: NodeProto) -> Iterator[NodeProto]:
    """A Conv whose bias ONNX Runtime would round too coarsely, in float: its Add is outside.

    The bias becomes an integer of the sums, whose unit is input scale · weight scale. With inputs of very different
    sizes, one scale for them all makes that unit as large as what the result is rounded to, or larger.
    """
    in_steps, written = convolution(model, node), factors(model, node.output[0])
    unit, step = _unit(model, in_steps), _step(model, node.output[0]) if written is None else np.ones((), np.float32)
    node = in_steps
    if len(node.input) < 3 or unit is None or step is None or float(np.mean((unit / step) ** 2)) <= SHARE:
        yield node
        return
    bias, out = model.constants.get(node.input[2]), node.output[0]
    weight = model.constants.get(model.writers[node.input[1]].input[0])
    if bias is None or weight is None:
        yield node
        return
    shape = [1, -1, *[1] * (len(weight.dims) - 2)]
    column = numpy_helper.from_array(numpy_helper.to_array(bias).reshape(shape), f"{out}.bias")
    model.graph.initializer.append(column)
    alone = helper.make_node("Conv", node.input[:2], [f"{out}.alone"], name=node.name)
    alone.attribute.extend(node.attribute)
    yield alone
    yield helper.make_node("Add", [f"{out}.alone", column.name], [out], name=f"{node.name}.bias")


def _unit(model: OnnxGraph, node: NodeProto) -> NDArray[np.float32] | None:
    """Input scale · weight scale: what the sums of `node` count. None if they are not of integers."""
    scales: list[NDArray[np.float32] | None] = [
        _scale(model, model.writers.get(value), "DequantizeLinear") for value in node.input[:2]
    ]
    if steps_read(model, node) is not None:
        scales[0] = np.ones((), np.float32)  # they are in the weights
    return None if scales[0] is None or scales[1] is None else scales[0] * scales[1]


def _step(model: OnnxGraph, value: str) -> NDArray[np.float32] | None:
    """What `value` is rounded to, by its only reader or behind a Relu or Clip; None if it is not."""
    readers = model.readers.get(value, [])
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        return _step(model, readers[0].output[0])
    return _scale(model, readers[0], "QuantizeLinear") if len(readers) == 1 else None


def _scale(model: OnnxGraph, node: NodeProto | None, kind: str) -> NDArray[np.float32] | None:
    if node is None or node.op_type != kind or node.input[1] not in model.constants:
        return None
    return np.asarray(numpy_helper.to_array(model.constants[node.input[1]]), dtype=np.float32)


def _mean(model: OnnxGraph, node: NodeProto) -> Iterator[NodeProto]:
    """A ReduceMean of the image [N, C, H, W] that a convolution left in integers, rounded at once.

    Between the pair, ONNX Runtime pools integers; as a ReduceMean it brings them into another order and into float.
    """
    readers, axes = (
        model.readers.get(node.output[0], []),
        model.constants.get(node.input[1]) if len(node.input) > 1 else None,
    )
    rounded = len(readers) == 1 and readers[0].op_type == "QuantizeLinear"
    over = None if axes is None else sorted(axis % 4 for axis in numpy_helper.to_array(axes).reshape(-1).tolist())
    if (
        not rounded
        or over != [2, 3]
        or not _is_dequantized(model, node.input[0])
        or not _is_image(model, node.input[0])
    ):
        yield node
        return
    out = node.output[0]
    if any(one.name == "keepdims" and one.i == 0 for one in node.attribute):
        pooled = [f"{out}.pooled", *readers[0].input[1:]]
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), f"{out}.axes"))
        yield helper.make_node("GlobalAveragePool", [node.input[0]], [pooled[0]])
        yield helper.make_node("QuantizeLinear", pooled, [f"{out}.integers"])
        yield helper.make_node("DequantizeLinear", [f"{out}.integers", *pooled[1:]], [f"{out}.real"])
        yield helper.make_node("Squeeze", [f"{out}.real", f"{out}.axes"], [out])
    else:
        yield helper.make_node("GlobalAveragePool", [node.input[0]], [out])


def _is_image(model: OnnxGraph, value: str) -> bool:
    """Whether `value` is what a convolution of images returned, rounded, bounded or added to."""
    node = model.writers.get(value)
    if node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear", "Relu", "Clip", "Add"):
        return _is_image(model, node.input[0])
    weight = None if node is None or node.op_type != "Conv" else model.writers.get(node.input[1])
    stored = None if weight is None else model.constants.get(weight.input[0])
    return stored is not None and len(stored.dims) == 4


_REWRITES = {
    "Gemm": _product,
    "Transpose": _weight,
    "Gather": _rows,
    "Conv": _convolution,
    "ReduceMean": _mean,
    "QuantizeLinear": quantized,
    "DequantizeLinear": dequantized,
    "Clip": bounded,
}
