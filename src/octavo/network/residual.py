"""Residual additions: x + f(x), where the paper quantizes the inputs and engines fuse one branch (§4, §6)."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch.fx import Node

from octavo.network.edit import is_constant, is_floating, shape
from octavo.network.operations import Operand, operands, operation, preserves_values

Branches = Literal["both", "skip", "convolutions", "none"]


def residual_operands(node: Node, branches: Branches) -> Iterator[Operand]:
    """The inputs of the addition `node` to quantize; none if it is no residual addition.

    With "skip", the branch that comes straight from a convolution which nothing else reads is left out: the engine adds
    the other branch to its accumulator. A linear's sum goes to a layer-norm in float: quantizing the other branch there
    wins nothing and costs MiniLM 0.3 points. Where neither branch can be fused, nothing is quantized: an
    addition on its own is not faster on integers.

    With "convolutions", both inputs are quantized where one of them comes straight from a convolution: an engine that
    convolves on integers only what it rounds at once would compute that convolution in float otherwise.
    """
    if branches == "none" or not is_residual(node):
        return
    both = list(operands(node))
    if branches == "both":
        yield from both
        return
    fused = [operand for operand in both if _fuses(operand.source)]
    if fused and branches == "convolutions":
        yield from both
    elif fused:
        # When both branches can be fused, the engine fuses the one computed last.
        position = {other: index for index, other in enumerate(node.graph.nodes)}
        last = max(fused, key=lambda operand: position[operand.source])
        yield from (operand for operand in both if operand is not last)


def is_residual(node: Node) -> bool:
    """Whether `node` adds two activations of one shape and one origin, of which a compute-heavy operation made one.

    Additions of masks and position tables (constants, or broadcast) are none: quantizing a mask of −10⁴ would destroy
    the scores beside it.
    """
    inputs = [argument for argument in node.args[:2] if isinstance(argument, Node)]
    if len(inputs) != 2 or any(is_constant(x) or not is_floating(x) for x in inputs):
        return False
    if len(shape(inputs[0])) < 2 or [str(s) for s in shape(inputs[0])] != [str(s) for s in shape(inputs[1])]:
        return False
    histories = [_history(x) for x in inputs]
    shared = histories[0] & histories[1]
    heavy = [any(_is_heavy(x) for x in history - shared) for history in histories]
    return bool(shared) and any(heavy)


def _history(node: Node) -> set[Node]:
    """`node` and every floating-point activation that it is computed from."""
    found: set[Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in found or is_constant(current) or not isinstance(current.meta.get("val"), torch.Tensor):
            continue
        if is_floating(current):
            found.add(current)
        stack.extend(current.all_input_nodes)
    return found


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
