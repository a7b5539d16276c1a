"""The integer kernels: for each operation of a planned graph, what stands for it in the lowered one.

    linear            oneDNN's, with packed int8 weights; bias, activation and the next rounding inside. Linears that
                      read the same integers (query, key and value) become one
    convolution       Octavo's own, `kernels/convolution.cpp`: several in a row, and the residual addition; where that
                      does not apply, oneDNN's
    attention, matmul Octavo's own, `kernels/int8.cpp`
    embedding         rows of the int8 table, then scaled
    what moves values the same, on uint8

Nothing is searched for after the fact: the plan says where the integers are. A row returns whether it could write its
kernel; if not, the operation runs in float on rounded values. `executions` is read from what was written.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from octavo.engines.lowering.build import Lowering
from octavo.engines.lowering.chain import chain
from octavo.engines.lowering.convolution import convolution
from octavo.engines.lowering.embedding import embedding
from octavo.engines.lowering.executions import is_compute_heavy
from octavo.engines.lowering.linear import linear, matmul
from octavo.engines.lowering.move import moved
from octavo.network.operations import preserves_values
from octavo.network.passes import CONVOLUTIONS

aten = torch.ops.aten

# The kernels of each operation, the first that applies.
LOWERINGS: dict[Any, tuple[Callable[[Lowering, Node], bool], ...]] = {
    aten.linear.default: (linear,),
    aten.matmul.default: (matmul,),
    aten.embedding.default: (embedding,),
    **dict.fromkeys(CONVOLUTIONS, (chain, convolution)),
}


def lower(lowering: Lowering, node: Node) -> None:
    """Write what stands for `node` of the planned graph, unless it is done already as part of another."""
    if node in lowering.values:
        return
    if lowering.rounding(node) is not None:
        lowering.values[node] = lowering.rounded(node)
        return
    if any(kernel(lowering, node) for kernel in LOWERINGS.get(node.target, ())):
        return
    if preserves_values(node) and moved(lowering, node):
        return
    lowering.values[node] = lowering.graph.node_copy(node, lowering.real)
    if is_compute_heavy(node):
        lowering.ran(lowering.values[node], node)
