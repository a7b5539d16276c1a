"""Outputs of convolutions, for engines that convolve on integers only if the result is rounded too (ONNX Runtime).

conv ─▶ [relu] ─▶ round ─▶ conv        rounded by its reader: nothing to do
conv ─▶ [relu] ─▶ mean, silu, norm     rounded here, or the convolution runs in float
conv ─▶ [relu] ─▶ returned             left: the user gets real values, and the convolution runs in float
sum of rounded values                  as a convolution: the last of a network goes to a mean
"""

from collections.abc import Collection, Sequence

import torch
from torch.fx import Node

from octavo.network.edit import argument, value
from octavo.network.operations import NEGATIVE_LOBE, OUTPUT, Operand, operation, preserves_values

aten = torch.ops.aten
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
# What the engine computes inside the convolution. Batch-norms are folded before.
_INSIDE = {
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
}  # fmt: skip
_IN_FLOAT = {*NEGATIVE_LOBE, aten.sigmoid.default, aten.hardsigmoid.default, aten.tanh.default, aten.leaky_relu.default}
Reads = Collection[tuple[Node, Node]]


def output_operands(nodes: Sequence[Node], rounded: Reads) -> dict[Node, list[Operand]]:
    """{convolution: the reads of what it returns that nobody rounds yet}; node is the reader, role "output".

    nodes    of a graph, in order
    rounded  every (source, reader) that the plan rounds anyway
    """
    moving, returned = _readers(nodes, rounded)
    found: dict[Node, list[Operand]] = {}
    for node in nodes:
        last = _last_inside(node) if _is_convolved(node, rounded) else None
        if last is not None and not any(reader in returned for reader in last.users):
            found[node] = [
                Operand(node=reader, source=last, role=OUTPUT, axis=None, free=_free(node, reader))
                for reader in last.users
                if (last, reader) not in rounded and reader not in moving
            ]
    return found


def _free(node: Node, reader: Node) -> dict[int, int]:
    """Every channel that a convolution returns is a sum of its own, and may have a scale of its own.

    Where the engine would compute in integers, as a mean, one scale for all is better.
    """
    row = operation(node)
    if row is None or row.name == "add" or reader.target not in _IN_FLOAT:
        return {}
    return {value(node).ndim + 1 - value(argument(node, "weight")).ndim: 1}


def _is_convolved(node: Node, rounded: Reads) -> bool:
    """Whether `node` is a convolution, or a sum of rounded values."""
    row = operation(node)
    if row is None or row.name != "add":
        return row is not None and row.name in _CONVOLUTIONS
    return all((source, node) in rounded for source in node.all_input_nodes)


def _last_inside(node: Node) -> Node:
    """What the engine computes together with `node`: the last of it."""
    while len(node.users) == 1 and next(iter(node.users)).target in _INSIDE:
        node = next(iter(node.users))
    return node


def _readers(nodes: Sequence[Node], rounded: Reads) -> tuple[set[Node], set[Node]]:
    """(Nodes that only move what they read to those that round it, nodes that return it as it is, or moved).

    Once, backwards: of a node, its readers are known.
    """
    moving, returned = set[Node](), set[Node]()
    for node in reversed(nodes):
        if node.op == "output":
            returned.add(node)
        elif preserves_values(node):
            if all((node, reader) in rounded or reader in moving for reader in node.users):
                moving.add(node)
            if any(reader in returned for reader in node.users):
                returned.add(node)
    return moving, returned
