"""Attention in a planned graph: two matrix products with a softmax between, which an engine can run as one kernel."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from octavo.engines.lowering.build import only_reader
from octavo.network.edit import shape

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Attention:
    """softmax(scores · q·kᵀ + bias) · v

    scores   the product of queries and keys
    between  what happens to the scores before the softmax, in order: (node, the operand beside the scores)
    weights  the quantizer behind the softmax
    values   the product of weights and values
    """

    scores: Node
    between: tuple[tuple[Node, Any], ...]
    softmax: Node
    weights: Node
    values: Node

    @property
    def inner(self) -> tuple[Node, ...]:
        """Every node but the last, in order: nobody else reads them."""
        return self.scores, *(node for node, _ in self.between), self.softmax, self.weights


def attention_from(scores: Node) -> Attention | None:
    """The attention that begins with the matmul `scores`; None if it is another product.

    Every value on the way must have a single reader: what somebody else wants to see must be computed.
    """
    between: list[tuple[Node, Any]] = []
    before, node = scores, only_reader(scores)
    while node is not None and (other := _beside(node, before)) is not None:
        between.append((node, other))
        before, node = node, only_reader(node)
    if node is None or node.target is not aten.softmax.int or not _along_keys(node):
        return None
    weights = only_reader(node)
    values = None if weights is None or weights.op != "call_module" else only_reader(weights)
    if weights is None or values is None or values.target is not aten.matmul.default or values.args[0] is not weights:
        return None
    ranks = {len(shape(operand)) for operand in (*scores.args, *values.args) if isinstance(operand, Node)}
    if ranks not in ({3}, {4}):
        return None
    return Attention(scores=scores, between=tuple(between), softmax=node, weights=weights, values=values)


def _beside(node: Node, before: Node) -> Any:
    """What `node` does to the scores `before` with: the number or tensor beside them; None if it is something else."""
    operands = list(node.args[:2])
    if node.target not in BETWEEN or node.kwargs or operands.count(before) != 1:
        return None
    if len(shape(node)) != len(shape(before)) or (operands[0] is not before and node.target is not aten.add.Tensor):
        return None
    (other,) = (operand for operand in operands if operand is not before)
    if node.target in _BY_NUMBER:
        return other if isinstance(other, int | float) else None
    return other if isinstance(other, Node) and other.op != "call_module" else None


BETWEEN = {aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.masked_fill.Scalar}
_BY_NUMBER = {aten.mul.Tensor, aten.div.Tensor}


def _along_keys(softmax: Node) -> bool:
    return softmax.args[1] in (-1, len(shape(softmax)) - 1) and softmax.args[2:3] in ((), (None,))
