"""What OpenVINO 2026.4 computes wrongly or refuses, in another form of the same values, before it compiles a model.

    weights      that it cannot dequantize: computed beforehand, so that the operation runs in float
    vectors      a product with one on integers returns [1, N] for [N]: they become matrices for its time
    extremes     ReduceMax and ReduceMin round wrongly what they round themselves (0 to 30 dB): it is done behind them
    channels     a rounding of channels is moved in front of a concat, with the scales of all channels for each part of
                 it: refused ("Argument shapes are inconsistent"). It stays behind
    masks        (1 − keep) · −1e9 is taken for a dequantization and moved across the sum that it is added in, where
                 it swallows the scores (5 dB): it stays on its side

All but the first put nodes into the model that OpenVINO's transformations do not see through.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import openvino as ov
from openvino import opset15 as op

PRODUCTS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}


def repair(core: ov.Core, model: ov.Model) -> None:
    """Every repair of this file, in place."""
    _fold_weights(core, model)
    nodes = model.get_ordered_ops()
    for node in nodes:
        if node.get_type_name() == "MatMul":
            _multiply_matrices(node)
    if any(node.get_type_name() == "FakeQuantize" for node in nodes):  # else nothing rounds, and no scale is moved
        for node in nodes:
            if node.get_type_name() in _EXTREMES:
                _round_behind(node)
            elif node.get_type_name() in _SUMS:
                _keep_apart(node)
            elif node.get_type_name() == "FakeQuantize":
                _keep_behind(node)
    model.validate_nodes_and_infer_types()


def _fold_weights(core: ov.Core, model: ov.Model) -> None:
    """Compute float weights from their integers where OpenVINO cannot: the operation then runs in float.

    Recurrent layers are refused with anything but constants. A product with a stack of weights [B, K, N] reads, on
    integers, memory that was never written: results up to 1e32 were seen. Weights [K, N] and [1, K, N] are right.
    """
    for node in model.get_ordered_ops():
        for port in _FLOAT_WEIGHTS.get(node.get_type_name(), ()):
            source = node.input_value(port)
            if _is_constant(source.get_node()) and (node.get_type_name() != "MatMul" or _is_stack(source)):
                (weight,) = core.compile_model(ov.Model([source], []), "CPU", _EXACT)({}).values()
                node.input(port).replace_source_output(ov.op.Constant(weight).output(0))


_FLOAT_WEIGHTS = {"LSTMSequence": (4, 5, 6), "GRUSequence": (3, 4, 5), "MatMul": (0, 1)}
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
_BETWEEN = {"Convert", "Subtract", "Multiply", "Reshape", "Transpose", "Split", "Concat", "Add"}


def _is_constant(node: ov.Node) -> bool:
    """Whether `node` is computed from constants alone, by dequantizing and reordering."""
    kind = node.get_type_name()
    if kind in _BETWEEN:
        return all(_is_constant(source.get_node()) for source in node.input_values())
    return bool(kind == "Constant")


def _is_stack(weight: ov.Output) -> bool:
    sizes = [int(size) for size in weight.get_shape()]
    return math.prod(sizes[:-2]) > 1


def _multiply_matrices(node: ov.Node) -> None:
    """A vector in a product as a matrix of one row (left) or one column (right); the result has it no more."""
    one_long = []
    for port, axis, result_axis in ((0, 0, -2), (1, 1, -1)):
        if _rank(node.input_value(port)) == 1:
            node.input(port).replace_source_output(op.unsqueeze(node.input_value(port), _axes([axis])).output(0))
            one_long.append(result_axis)
    if one_long:
        node.constructor_validate_and_infer_types()
        _read_instead(node, lambda result: op.squeeze(result, _axes(one_long)))


_EXTREMES = {"ReduceMax", "ReduceMin"}


def _round_behind(node: ov.Node) -> None:
    if node.get_output_element_type(0).is_real():
        _read_instead(node, _barrier)


def _keep_behind(node: ov.Node) -> None:
    """A barrier in front of a rounding of channels, if a concat stands there."""
    source = node.input_value(0)
    if source.get_node().get_type_name() == "Concat" and math.prod(node.input_value(1).get_shape()) > 1:
        node.input(0).replace_source_output(_barrier(source).output(0))


_SUMS = {"Add", "Subtract"}


def _keep_apart(node: ov.Node) -> None:
    """A barrier behind every multiplication by a constant of the user's that the sides of a sum are computed with.

    One behind the last is too little: two constants are merged, and 0 · (2 · lowest) is NaN.
    """
    sides = [side.get_node() for side in node.input_values()]
    if not any(map(_is_constant, sides)):
        for part in [part for side in sides for part in _cone(side) if _is_scaled(part)]:
            _read_instead(part, _barrier)


def _is_scaled(node: ov.Node) -> bool:
    """Whether `node` multiplies by a constant what is neither a product, whose scale it is, nor dequantized or normed.

    Of those the scale may be moved: rounding is relative. (1 − keep) is exact, and 0 where the scores must survive.
    """
    if node.get_type_name() not in {"Multiply", "Divide"}:
        return False
    constants = [_is_constant(source.get_node()) for source in node.input_values()]
    return any(constants) and not all(constants) and not any(part.get_type_name() in _ENDS for part in _cone(node))


_ENDS = PRODUCTS | {"FakeQuantize", "MVN", "Softmax", "LSTMSequence", "GRUSequence"}


def _cone(node: ov.Node) -> Iterator[ov.Node]:
    """`node` and all that it is computed from, back to the next product, rounding, norm or barrier."""
    seen, stack = set(), [node]
    while stack:
        current = stack.pop()
        if current.get_friendly_name() in seen:
            continue
        seen.add(current.get_friendly_name())
        yield current
        if current.get_type_name() not in _ENDS | {"Maximum"}:
            stack.extend(source.get_node() for source in current.input_values())


def _barrier(value: ov.Output) -> ov.Node:
    """The same values, behind a node that no scale is moved across and that no rounding is merged over; NaN stays.

    Tried and seen through: Clamp, Power, Reshape, Add of 0, Multiply by 1, and Select in part. A maximum costs nothing
    that we could measure: it is computed with what follows.
    """
    return op.maximum(value, value)


def _read_instead(node: ov.Node, make: Callable[[ov.Output], ov.Node]) -> None:
    """Every reader of `node` reads `make(its output)`."""
    readers = list(node.output(0).get_target_inputs())
    made = make(node.output(0)).output(0)
    for reader in readers:
        reader.replace_source_output(made)


def _rank(value: ov.Output) -> int | None:
    rank = value.get_partial_shape().rank
    return int(rank.get_length()) if rank.is_static else None


def _axes(axes: list[int]) -> ov.Node:
    return op.constant(np.array(axes, np.int64))
