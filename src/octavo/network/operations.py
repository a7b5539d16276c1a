"""The tables of operations: which inputs are quantized, and what moves a tensor unchanged.

A new operation is a new row.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from octavo.network.edit import argument, is_constant, is_floating, value

aten = torch.ops.aten


@dataclass(frozen=True)
class Input:
    """A quantized input of an operation.

    role   what it is called
    axis   of one scale per output channel, if it is a weight
    free   (operation's node, rank of the input) → the axes along which the operation's sum does not run, if it is an
           activation: a scale that varies along them is a factor of every sum (Wu et al. 2020, §3.2). For each of them
           how many neighbours must share a scale, because one sum runs over them
    along  the axis of its rows, if the sum runs along that one alone; counted from behind
    """

    role: str
    axis: int
    free: Callable[[Node, int], dict[int, int]] = lambda node, rank: {}
    along: int | None = None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A compute-heavy operation and its quantized inputs.

    name    the field's word for it
    inputs  {argument, as the schema of the operator calls it: input}
    onnx    the operators that the exporter writes for it, of which one is named after the layer
    output  the axis of the output channels in what a layer returns, if its bias is added along it; counted from behind
            where they are last
    """

    name: str
    inputs: dict[str, Input]
    onnx: tuple[str, ...]
    output: int | None = None


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One input of one operation of a graph, to be quantized.

    node, source  the operation and what it reads
    role          "input", "weight", "lhs", "rhs", …
    axis          for a weight: the axis of its output channels, which have a scale each; None for an activation
    free          for an activation: {axis along which the sum does not run: neighbours that must share a scale}
    along         for an activation that has rows: the axis along which they lie, counted from behind
    """

    node: Node
    source: Node
    role: str
    axis: int | None
    free: Mapping[int, int] = field(default_factory=dict)
    along: int | None = None


def _channels(node: Node, rank: int) -> dict[int, int]:
    """A sum of a convolution runs over the channels of one group; of a depthwise one, over one channel."""
    groups, axis = argument(node, "groups"), rank + 1 - value(argument(node, "weight")).ndim
    channels = value(argument(node, "input")).shape[axis]
    return {axis: channels // groups} if isinstance(groups, int) and groups > 1 and isinstance(channels, int) else {}


def _rows(node: Node, rank: int) -> dict[int, int]:
    """The sum runs over the last axis."""
    return dict.fromkeys(range(rank - 1), 1)


def _columns(node: Node, rank: int) -> dict[int, int]:
    """The sum runs over the last axis but one."""
    return dict.fromkeys([*range(rank - 2), rank - 1], 1) if rank > 1 else {}


_CONVOLUTION = {"input": Input("input", 0, _channels), "weight": Input("weight", 0)}
_TRANSPOSED = {"input": Input("input", 0, _channels), "weight": Input("weight", 1)}
_LINEAR = {"input": Input("input", 0, _rows, along=-1), "weight": Input("weight", 0)}
_PRODUCT = {"self": Input("lhs", -2, _rows, along=-1), "other": Input("rhs", -1, _columns, along=-2)}
_SUM = {"self": Input("lhs", 0), "other": Input("rhs", 0)}

OUTPUT = "output"  # the role of what a convolution returns to a reader that is none of the operations below

# Paper §4: every input of the operations that do the arithmetic, and of residual additions.
_CONV1D, _CONV2D, _CONV3D = (
    Operation(name=f"conv{n}d", inputs=_CONVOLUTION, onnx=("Conv",), output=1) for n in (1, 2, 3)
)
_TURNED1D, _TURNED2D, _TURNED3D = (
    Operation(name=f"conv_transpose{n}d", inputs=_TRANSPOSED, onnx=("ConvTranspose",)) for n in (1, 2, 3)
)
OPERATIONS: dict[Any, Operation] = {
    aten.conv1d.default: _CONV1D,
    aten.conv2d.default: _CONV2D,
    aten.conv3d.default: _CONV3D,
    aten.conv1d.padding: _CONV1D,
    aten.conv2d.padding: _CONV2D,
    aten.conv3d.padding: _CONV3D,
    aten.conv_transpose1d.default: _TURNED1D,
    aten.conv_transpose2d.input: _TURNED2D,
    aten.conv_transpose3d.input: _TURNED3D,
    aten.linear.default: Operation(name="linear", inputs=_LINEAR, onnx=("Gemm", "MatMul"), output=-1),
    aten.matmul.default: Operation(name="matmul", inputs=_PRODUCT, onnx=("MatMul",)),
    aten.embedding.default: Operation(name="embedding", inputs={"weight": Input("weight", 0)}, onnx=("Gather",)),
    aten.add.Tensor: Operation(name="add", inputs=_SUM, onnx=("Add",)),
    # Of recurrent layers the weights, too: see `operands`.
    aten.lstm.input: Operation(name="lstm", inputs={"input": Input("input", 0)}, onnx=("LSTM",)),
    aten.gru.input: Operation(name="gru", inputs={"input": Input("input", 0)}, onnx=("GRU",)),
}

RECURRENT = {"lstm", "gru"}

# Compute-heavy, but without an integer form here: reported as kept in float, with this reason.
FLOAT_ONLY: dict[Any, str] = {
    aten.einsum.default: "this einsum is not one matrix product",
    aten.bilinear.default: "bilinear has no integer form",
    aten.rnn_tanh.input: "a plain RNN has no integer form; use an LSTM or GRU",
    aten.rnn_relu.input: "a plain RNN has no integer form; use an LSTM or GRU",
    aten.lstm.data: "a packed sequence has no integer form; pad it",
    aten.gru.data: "a packed sequence has no integer form; pad it",
    aten.lstm_cell.default: "a single cell has no integer form; use an LSTM",
    aten.gru_cell.default: "a single cell has no integer form; use a GRU",
    aten.rnn_tanh_cell.default: "a plain RNN has no integer form; use an LSTM or GRU",
    aten.rnn_relu_cell.default: "a plain RNN has no integer form; use an LSTM or GRU",
    aten.embedding_bag.padding_idx: "embedding_bag has no integer form; use an embedding and a sum",
    aten._embedding_bag_forward_only.default: "embedding_bag has no integer form; use an embedding and a sum",
    aten.cdist.default: "cdist has no integer form",
    aten.addbmm.default: "addbmm has no integer form; use a product and a sum",
    aten.tensordot.default: "this tensordot is not one matrix product",
    aten.inner.default: "this inner product is not one matrix product",
}


def float_only(node: Node) -> str | None:
    """Why a compute-heavy `node` has no integer form here; None if it has one, or is not compute-heavy.

    Besides the table: an operator of another library than torch that reads a weight, such as torchvision's deformable
    convolution. It is not known what it does, but it is more than to move values.
    """
    if node.op != "call_function":
        return None
    if node.target in FLOAT_ONLY:
        return FLOAT_ONLY[node.target]
    library = getattr(node.target, "namespace", "aten")
    weights = [source for source in node.all_input_nodes if is_constant(source) and source.meta["val"].ndim > 1]
    if library in ("aten", "prims", "prim", "octavo") or not any(w.meta["val"].is_floating_point() for w in weights):
        return None
    return f"{str(node.target).removesuffix('.default')} has no integer form"


TAKES_A_PART = {aten.slice.Tensor, aten.select.int, aten.narrow.default}

# Operations that move, repeat or select values but never change them. A quantizer crosses them to where the tensor is
# produced. The parts of a split are left out on purpose: they are tensors with ranges of their own.
VALUE_PRESERVING: set[Any] = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.movedim.int,
    aten.expand.default, aten.repeat.default, aten.repeat_interleave.self_int,
    aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.flip.default, aten.roll.default,
    aten.contiguous.default, aten.clone.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    aten.constant_pad_nd.default, aten.pad.default,
    aten.cat.default, aten.stack.default,
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec,
}  # fmt: skip

# Activations that are bounded below, just under zero, and not above: how far below zero they reach.
NEGATIVE_LOBE: dict[Any, float] = {
    aten.gelu.default: 0.170,
    aten.silu.default: 0.278,
    aten.mish.default: 0.309,
    aten.hardswish.default: 0.375,
}


def operation(node: Node) -> Operation | None:
    """The row of `OPERATIONS` that `node` belongs to."""
    return OPERATIONS.get(node.target) if node.op == "call_function" else None


def is_factor(operation: str, role: str) -> bool:
    """Whether kernels multiply it as they do a weight, signed: where they add in 16 bits, its width decides."""
    return role in {"rhs", "weight"} and operation != "add"


def lone_channels(operand: Operand) -> int | None:
    """The axis of the channels of `operand`, if a convolution reads or returns it and no sum runs over two of them."""
    row = operation(operand.node)
    if operand.role != OUTPUT and (row is None or row.name not in _CONVOLUTIONS):
        return None
    return next((axis for axis, neighbours in operand.free.items() if neighbours == 1), None)


_CONVOLUTIONS = {f"conv{'_transpose' * turned}{n}d" for turned in (0, 1) for n in (1, 2, 3)}


def operands(node: Node) -> Iterator[Operand]:
    """The inputs of `node` that the paper quantizes; none for an operation without a row."""
    row = operation(node)
    if row is None:
        return
    sources = [argument(node, name) for name in row.inputs]
    for source, read in zip(sources, row.inputs.values(), strict=True):
        if isinstance(source, Node) and is_floating(source):
            if is_constant(source):
                role = "weight" if row.name == "matmul" else read.role
                yield Operand(node=node, source=source, role=role, axis=read.axis)
            else:
                rank = source.meta["val"].ndim
                twice = sources.count(source) > 1  # rows on the left are no columns on the right
                along = None if read.along is None or twice else max(read.along, -rank)  # of a vector: its only axis
                free = read.free(node, rank)
                yield Operand(node=node, source=source, role=read.role, axis=None, free=free, along=along)
    if row.name in RECURRENT:
        yield from _recurrent_weights(node)


def _recurrent_weights(node: Node) -> Iterator[Operand]:
    """The weights of each direction, in torch's order: w_ih, w_hh, [b_ih, b_hh], [w_hr]."""
    weights = argument(node, "params")
    count = len(weights) // (2 if argument(node, "bidirectional") else 1)
    roles = {0: "weight_ih", 1: "weight_hh"}
    if count == (5 if argument(node, "has_biases") else 3):
        roles[count - 1] = "weight_hr"  # projects the hidden state
    for index, source in enumerate(weights):
        direction, position = divmod(index, count)
        if position in roles and is_constant(source):
            yield Operand(node=node, source=source, role=roles[position] + "_reverse" * direction, axis=0)


def keeps_axis(node: Node, axis: int) -> bool:
    """Whether what stands at an index of `axis` in the input of `node` stands there in its result, and nothing else."""
    source = node.all_input_nodes[0].meta["val"]
    if node.target in _KEEPS_CHANNELS:  # all but the last axes, over which they pool or repeat
        return axis < int(source.ndim) - _KEEPS_CHANNELS[node.target]
    if node.target in _PADS:
        return axis < int(source.ndim) - len(argument(node, "pad")) // 2
    return node.target in _COPIES


_KEEPS_CHANNELS = {
    aten.max_pool1d.default: 1, aten.max_pool2d.default: 2, aten.max_pool3d.default: 3,
    aten.upsample_nearest1d.vec: 1, aten.upsample_nearest2d.vec: 2, aten.upsample_nearest3d.vec: 3,
}  # fmt: skip
_PADS = {aten.constant_pad_nd.default, aten.pad.default}
_COPIES = {aten.contiguous.default, aten.clone.default}


def preserves_values(node: Node) -> bool:
    """Whether every value that `node` returns is one of its input's, or zero."""
    if node.op != "call_function" or node.target not in VALUE_PRESERVING:
        return False
    if node.target is aten.constant_pad_nd.default:
        return bool(argument(node, "value") == 0)
    if node.target is aten.pad.default:
        return argument(node, "mode") != "constant" or argument(node, "value") in (None, 0)
    return True
