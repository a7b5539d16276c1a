"""What ONNX Runtime made of a network: which kernel runs each of the user's layers, read from its optimized graph."""

import re
from collections.abc import Collection, Iterable, Mapping

import onnx
from onnx import NodeProto, TensorProto

from octavo.engines.execution import Execution

INTEGER_KERNELS = {
    "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm",
    # of networks that others made
    "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention", "QOrderedMatMul",
}  # fmt: skip
FLOAT_KERNELS = {
    "Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "DeformConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm",
    "MatMulNBits", "Einsum", "LSTM", "GRU", "RNN",
    # of networks that others made
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "DecoderMaskedMultiHeadAttention",
    "ConvTransposeWithDynamicPads", "MatMulBnb4", "MoE", "QMoE",
}  # fmt: skip
INT8_LEVEL = 4  # of MatMulNBits, which rounds its other input then
TYPES: dict[int | None, str] = {TensorProto.UINT8: "u8", TensorProto.INT8: "i8"}
# What its transformations add to the name of the node that they replace: "stem_token_1", "head/MatMulScaleFusion/".
_ADDED = re.compile(r"(_token_\d+|_nchwc|/\w*)+")


def read_executions(optimized: onnx.ModelProto, layers: Collection[str]) -> dict[str, Execution]:
    """{user's layer: how it runs} of those of `layers` that `optimized` has a kernel for, in its order."""
    types = {tensor.name: tensor.data_type for tensor in optimized.graph.initializer}
    found: dict[str, Execution] = {}
    for node in optimized.graph.node:
        layer = owner(node.name, layers)
        execution = execution_of(node, types) if layer is not None else None
        if layer is not None and execution is not None:
            found.setdefault(layer, execution)
    return {layer: found[layer] for layer in layers if layer in found}


def execution_of(node: NodeProto, types: Mapping[str, int]) -> Execution | None:
    """How the kernel `node` runs; None for one that is not compute-heavy.

    types  {constant: its ONNX type}
    """
    if node.op_type in INTEGER_KERNELS or (node.op_type == "MatMulNBits" and _rounds(node, types)):
        return Execution(kernel=node.op_type, precision=_type_of_zero(node, types), implementation="mlas_i8")
    if node.op_type in FLOAT_KERNELS:
        return Execution(kernel=node.op_type, precision="f32", implementation="mlas_f32")
    if node.op_type == "Gather":  # no arithmetic: what it copies
        stored = TYPES.get(types.get(node.input[0])) if node.input else None
        implementation = "gather_f32" if stored is None else "gather_i8"
        return Execution(kernel="Gather", precision=stored or "f32", implementation=implementation)
    return None


def _rounds(node: NodeProto, types: Mapping[str, int]) -> bool:
    """Whether MatMulNBits rounds its other input: if asked to, its groups are in order, and no zeros are in float."""
    asked = any(one.name == "accuracy_level" and one.i == INT8_LEVEL for one in node.attribute)
    zero, order = [*node.input, "", ""][3:5]
    return asked and not order and (not zero or types.get(zero) == TensorProto.UINT8)


def _type_of_zero(node: NodeProto, types: Mapping[str, int]) -> str:
    """The type of the activation: that of its zero-point, the first integer constant of the kernel but the weight."""
    place = next((at for kernels, at in _ZERO if node.op_type in kernels), len(node.input))
    stored = types.get(node.input[place]) if place < len(node.input) else None
    return TYPES.get(stored, "u8")


_ZERO = [({"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger"}, 2), ({"MatMulIntegerToFloat"}, 4)]


def owner(name: str, layers: Iterable[str]) -> str | None:
    """The layer that the kernel `name` was made of: the longest whose name it is, but for what was added."""
    fitting = (layer for layer in layers if name == layer or _is_made_of(name, layer))
    return max(fitting, key=len, default=None)


def _is_made_of(name: str, layer: str) -> bool:
    return name.startswith(layer) and _ADDED.fullmatch(name, len(layer)) is not None
