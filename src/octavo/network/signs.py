"""What cannot be negative, as the graph alone shows: it may have unsigned integers, and gain a bit."""

from collections.abc import Container, Iterable

import torch
from torch.fx import Node

from octavo.network.edit import argument, is_floating
from octavo.network.operations import VALUE_PRESERVING, preserves_values

aten = torch.ops.aten

_NEVER_NEGATIVE = {
    aten.relu.default, aten.relu6.default, aten.sigmoid.default, aten.hardsigmoid.default, aten.softmax.int,
    aten._softmax.default, aten.exp.default, aten.abs.default, aten.square.default,
}  # fmt: skip
_CLAMPS = {aten.hardtanh.default: "min_val", aten.clamp.default: "min", aten.clamp_min.default: "min"}
_KEEPS_SIGN = VALUE_PRESERVING | {
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, aten.mean.dim, aten.dropout.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.mul.Tensor, aten.add.Tensor,
    aten.upsample_bilinear2d.vec,
}  # fmt: skip


def never_negative(nodes: Iterable[Node]) -> frozenset[Node]:
    """Those of which the graph alone shows that they cannot return a negative value, whatever the input.

    nodes  of a graph, in order: what a node returns is known before it is read
    """
    found: set[Node] = set()
    for node in nodes:
        if node.op == "call_function" and _cannot_be_negative(node, found):
            found.add(node)
    return frozenset(found)


def _cannot_be_negative(node: Node, before: Container[Node]) -> bool:
    if node.target in _NEVER_NEGATIVE:
        return True
    if node.target in _CLAMPS:
        low = argument(node, _CLAMPS[node.target])
        return isinstance(low, int | float) and low >= 0
    if node.target not in _KEEPS_SIGN or (node.target in VALUE_PRESERVING and not preserves_values(node)):
        return False
    numbers = [argument for argument in (*node.args[1:2], *node.kwargs.values()) if isinstance(argument, int | float)]
    if node.target in (aten.mul.Tensor, aten.add.Tensor) and any(number < 0 for number in numbers):
        return False
    return all(source in before for source in node.all_input_nodes if is_floating(source))
