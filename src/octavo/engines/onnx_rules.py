"""What TensorRT documents that it accepts, as a table of rules over the ONNX model: checked here, where it cannot run.

Source: NVIDIA TensorRT documentation, "Working with Quantized Types" and the IQuantizeLayer and IDequantizeLayer
reference: quantization is symmetric, int8 is signed, zero-points are zero and scales positive; activations have one
scale a tensor, weights one an output channel; an operation runs on integers if all its inputs come from
DequantizeLinear; of a residual addition one branch stays as the convolution leaves it, so that the two are fused.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.numpy_helper import to_array

from octavo.errors import QuantizationError

# The inputs that are multiplied, and along which axis of the second the outputs lie.
MULTIPLIES = {"Conv": 0, "ConvTranspose": 1, "Gemm": None, "MatMul": None}
MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Flatten", "Split", "Identity"}


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A rule that a node breaks."""

    rule: str
    node: str
    seen: str


class _Model:
    """An ONNX model with its constants and who writes and reads each value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = {initializer.name: to_array(initializer) for initializer in model.graph.initializer}
        self.writer = {value: node for node in self.nodes for value in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)

    def of_type(self, *kinds: str) -> Iterator[onnx.NodeProto]:
        """The nodes of these types, in order."""
        return (node for node in self.nodes if node.op_type in kinds)

    def source(self, value: str) -> onnx.NodeProto | None:
        """The node that computes `value`, behind those that only move it; None for an input or a constant."""
        node = self.writer.get(value)
        while node is not None and node.op_type in MOVES:
            node = self.writer.get(node.input[0])
        return node

    def is_weight(self, node: onnx.NodeProto) -> bool:
        """Whether `node` dequantizes a constant."""
        return node.input[0] in self.constants

    def is_dequantized(self, value: str) -> bool:
        """Whether `value` comes from integers."""
        source = self.source(value)
        return source is not None and source.op_type == "DequantizeLinear"


def _symmetric(model: _Model) -> Iterator[tuple[str, str]]:
    for node in model.of_type("QuantizeLinear", "DequantizeLinear"):
        if len(node.input) > 2 and np.any(model.constants[node.input[2]]):
            yield node.name, "its zero-point is not 0"


def _signed(model: _Model) -> Iterator[tuple[str, str]]:
    for node in model.of_type("QuantizeLinear", "DequantizeLinear"):
        values = [*node.input[2:3], *([node.input[0]] if model.is_weight(node) else [])]
        kinds = {str(model.constants[value].dtype) for value in values}
        if kinds - {"int8"}:
            yield node.name, f"its integers are {', '.join(sorted(kinds))}"


def _positive(model: _Model) -> Iterator[tuple[str, str]]:
    for node in model.of_type("QuantizeLinear", "DequantizeLinear"):
        scale = model.constants[node.input[1]]
        if not (np.isfinite(scale) & (scale > 0)).all():
            yield node.name, "a scale is not positive"


def _one_scale_an_activation(model: _Model) -> Iterator[tuple[str, str]]:
    for node in model.of_type("QuantizeLinear", "DequantizeLinear"):
        if not model.is_weight(node) and model.constants[node.input[1]].size != 1:
            yield node.name, f"an activation has {model.constants[node.input[1]].size} scales"


def _scales_along_outputs(model: _Model) -> Iterator[tuple[str, str]]:
    for node in model.of_type(*MULTIPLIES):
        source = model.writer.get(node.input[1])
        flips = node.op_type == "Gemm" and _attribute(node, "transB", 0) == 1
        while source is not None and source.op_type == "Transpose":
            source, flips = model.writer.get(source.input[0]), not flips
        if source is None or source.op_type != "DequantizeLinear" or not model.is_weight(source):
            continue
        weight, scale = model.constants[source.input[0]], model.constants[source.input[1]]
        outputs = MULTIPLIES[node.op_type]
        if outputs is None:
            outputs = weight.ndim - (2 if flips else 1)
        if scale.ndim == 1 and scale.size > 1 and _attribute(source, "axis", 1) % weight.ndim != outputs:
            yield node.name, f"its weight has scales along axis {_attribute(source, 'axis', 1)}"


def _pairs(model: _Model) -> Iterator[tuple[str, str]]:
    for node in model.of_type("QuantizeLinear"):
        for reader in model.readers.get(node.output[0], []):
            if reader.op_type != "DequantizeLinear" or list(reader.input[1:]) != list(node.input[1:]):
                yield node.name, f"what it writes is read by a {reader.op_type} and not by its own DequantizeLinear"


def _once(model: _Model) -> Iterator[tuple[str, str]]:
    for node in model.of_type("QuantizeLinear"):
        source = model.source(node.input[0])
        if source is not None and source.op_type == "DequantizeLinear" and not model.is_weight(source):
            yield node.name, "it quantizes what was quantized before"


def _all_or_none(model: _Model) -> Iterator[tuple[str, str]]:
    for node in model.of_type(*MULTIPLIES):
        found = [model.is_dequantized(value) for value in node.input[:2]]
        weight_only = found[1] and not found[0] and model.source(node.input[1]) is not None
        if any(found) and not all(found) and not (weight_only and _stored_weight(model, node.input[1])):
            yield node.name, "one of its inputs is quantized and the other is not"


def _stored_weight(model: _Model, value: str) -> bool:
    """Whether `value` is a constant that is only stored in integers: TensorRT computes it in float, as it should."""
    source = model.source(value)
    return source is not None and source.op_type == "DequantizeLinear" and model.is_weight(source)


def _one_branch(model: _Model) -> Iterator[tuple[str, str]]:
    for node in model.of_type("Add"):
        if all(value in model.writer and model.is_dequantized(value) for value in node.input):
            origins = [_before_rounding(model, value) for value in node.input]
            if any(origin is not None and origin.op_type in MULTIPLIES for origin in origins):
                yield node.name, "both branches are quantized: the addition is not fused with the convolution"


def _before_rounding(model: _Model, value: str) -> onnx.NodeProto | None:
    dequantize = model.source(value)
    quantize = None if dequantize is None else model.writer.get(dequantize.input[0])
    return None if quantize is None else model.source(quantize.input[0])


RULES: dict[str, Callable[[_Model], Iterator[tuple[str, str]]]] = {
    "zero-points are 0": _symmetric,
    "integers are int8": _signed,
    "scales are positive": _positive,
    "an activation has one scale": _one_scale_an_activation,
    "weights have scales along their outputs": _scales_along_outputs,
    "QuantizeLinear is read by DequantizeLinear alone": _pairs,
    "a tensor is quantized once": _once,
    "all inputs of an operation are quantized, or none": _all_or_none,
    "one branch of a residual addition is quantized": _one_branch,
}


def violations(model: onnx.ModelProto) -> list[Violation]:
    """Every rule that `model` breaks, and where."""
    read = _Model(model)
    return [Violation(rule=rule, node=node, seen=seen) for rule, check in RULES.items() for node, seen in check(read)]


def check_tensorrt(model: onnx.ModelProto) -> None:
    """Raise QuantizationError, naming the first layer, if TensorRT would not run `model` on integers as it is meant."""
    found = violations(model)
    if found:
        raise QuantizationError(
            asked="write a model for TensorRT",
            seen=f"{found[0].seen}, and TensorRT wants: {found[0].rule} ({len(found)} violations)",
            remedy='make the plan with target="tensorrt" and without schemes of your own for activations',
            site=found[0].node,
        )


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
