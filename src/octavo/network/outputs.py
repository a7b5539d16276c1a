"""Outputs of convolutions, for engines that convolve on integers only if the result is rounded too (ONNX Runtime).

conv ─▶ [relu] ─▶ round ─▶ conv        rounded by its reader: nothing to do
conv ─▶ [relu] ─▶ mean, silu, norm     rounded here, or the convolution runs in float
conv ─▶ [relu] ─▶ returned             left: the user gets real values, and the convolution runs in float
sum of rounded values                  as a convolution: the last of a network goes to a mean
"""

from collections.abc import Collection, Iterator

import torch
from torch.fx import Node

from octavo.network.operations import Operand, operation, preserves_values

aten = torch.ops.aten
ROLE = "output"
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
# What the engine computes inside the convolution. Batch-norms are folded before.
_INSIDE = {
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
}  # fmt: skip
Reads = Collection[tuple[Node, Node]]


def output_operands(node: Node, rounded: Reads) -> Iterator[Operand]:
    """The reads of what the convolution `node` returns that nobody rounds yet: node is the reader, role "output".

    rounded  every (source, reader) that the plan rounds anyway
    """
    row = operation(node)
    summed = row is not None and row.name == "add" and all((source, node) in rounded for source in node.all_input_nodes)
    if row is None or (row.name not in _CONVOLUTIONS and not summed):
        return
    last = node
    while len(last.users) == 1 and next(iter(last.users)).target in _INSIDE:
        last = next(iter(last.users))
    if not any(_returned(last, reader) for reader in last.users):
        for reader in last.users:
            if not _is_rounded(last, reader, rounded):
                yield Operand(node=reader, source=last, role=ROLE, axis=None)


def _is_rounded(source: Node, reader: Node, rounded: Reads) -> bool:
    """Whether `reader` gets `source` rounded, or only moves it to those that do."""
    if (source, reader) in rounded:
        return True
    return preserves_values(reader) and all(_is_rounded(reader, further, rounded) for further in reader.users)


def _returned(source: Node, reader: Node) -> bool:
    """Whether the network returns `source` as it is, or moved."""
    if reader.op == "output":
        return True
    return preserves_values(reader) and any(_returned(reader, further) for further in reader.users)
