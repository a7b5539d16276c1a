"""Residual additions: x + f(x), where the paper quantizes the inputs and engines fuse one branch (§4, §6)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node

from octavo.network.edit import is_constant, is_floating, shape
from octavo.network.operations import Operand, operands, operation, preserves_values

Branches = Literal["both", "skip", "convolutions", "none"]


def residual_operands(nodes: Sequence[Node], branches: Branches) -> dict[Node, list[Operand]]:
    """{addition: its inputs to quantize}, for the residual additions among `nodes`, which are a graph's, in order.

    With "skip", the branch that comes straight from a convolution which nothing else reads is left out: the engine adds
    the other branch to its accumulator. A linear's sum goes to a layer-norm in float: quantizing the other branch there
    wins nothing and costs MiniLM 0.3 points. Where neither branch can be fused, nothing is quantized: an
    addition on its own is not faster on integers.

    With "convolutions", both inputs are quantized where one of them comes straight from a convolution: an engine that
    convolves on integers only what it rounds at once would compute that convolution in float otherwise.
    """
    if branches == "none":
        return {}
    position = {node: index for index, node in enumerate(nodes)}
    return {node: _wanted(node, branches, position) for node in residual_additions(nodes)}


def _wanted(node: Node, branches: Branches, position: Mapping[Node, int]) -> list[Operand]:
    both = list(operands(node))
    fused = [operand for operand in both if _fuses(operand.source)]
    if branches == "both" or (fused and branches == "convolutions"):
        return both
    if not fused:
        return []
    last = max(fused, key=lambda operand: position[operand.source])  # of two, the engine fuses the one computed last
    return [operand for operand in both if operand is not last]


def residual_additions(nodes: Sequence[Node]) -> list[Node]:
    """Those that add two activations of one shape and one origin, of which a compute-heavy operation made one.

    Additions of masks and position tables (constants, or broadcast) are none: quantizing a mask of −10⁴ would destroy
    the scores beside it.
    """
    histories: dict[Node, int] = {}  # one bit for every activation that a node is computed from, and itself
    heavy, found = 0, []
    for number, node in enumerate(nodes):
        if is_constant(node) or not _has_tensors(node.meta.get("val")):
            continue
        history = 0
        for source in node.all_input_nodes:
            history |= histories.get(source, 0)
        if is_floating(node):
            history |= 1 << number
        histories[node] = history
        heavy |= _is_heavy(node) << number
        if _adds_activations(node):
            left, right = (histories.get(source, 0) for source in node.args[:2] if isinstance(source, Node))
            if left & right and (left ^ right) & heavy:
                found.append(node)
    return found


def _adds_activations(node: Node) -> bool:
    """Whether `node` adds two activations of one shape."""
    row = operation(node)
    inputs = [argument for argument in node.args[:2] if isinstance(argument, Node)]
    if (
        row is None
        or row.name != "add"
        or len(inputs) != 2
        or any(is_constant(x) or not is_floating(x) for x in inputs)
    ):
        return False
    left, right = ([str(size) for size in shape(x)] for x in inputs)
    return len(left) >= 2 and left == right


def _has_tensors(val: Any) -> bool:
    """Whether a node of this value passes activations on; sizes do not, the parts of a split do."""
    return isinstance(val, Tensor) or (isinstance(val, tuple | list) and any(isinstance(one, Tensor) for one in val))


def _is_heavy(node: Node) -> bool:
    row = operation(node)
    return row is not None and row.name not in ("add", "embedding")


def _fuses(source: Node) -> bool:
    """Whether `source` is a convolution's result that nothing else reads, moved or batch-normalised or not."""
    while _is_passed_on(source) and len(source.users) == 1 and isinstance(source.args[0], Node):
        source = source.args[0]  # other arguments of a reshape may be nodes too: dynamic sizes
    row = operation(source)
    return row is not None and row.name.startswith("conv") and len(source.users) == 1


def _is_passed_on(node: Node) -> bool:
    return preserves_values(node) or node.target is torch.ops.aten.batch_norm.default
