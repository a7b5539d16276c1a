"""Attention in a planned graph: two matrix products with a softmax between, which an engine can run as one kernel.

The kernel is for one shape of operands, and hides keys by adding to their scores. What differs from that is no
attention here, and its operations are lowered one by one: see `_has_the_shapes` and `_hides`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.fx import Node

from octavo.engines.lowering.build import only_reader
from octavo.engines.lowering.sizes import same_sizes
from octavo.network.edit import argument, shape, value
from octavo.network.marker import is_marker

aten = torch.ops.aten

HIDING = -1e9  # what a mask fills in so that the softmax is zero there: this or less, −∞ as well
FADED = 1e-3  # as much of it must be left where the scores are scaled afterwards
DEEPEST = 33024  # products in one sum, `DEEPEST` of kernels/int8.cpp


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
    between = tuple(_between(scores))
    softmax = only_reader(between[-1][0] if between else scores)
    if softmax is None or softmax.target is not aten.softmax.int or not _along_keys(softmax):
        return None
    weights = only_reader(softmax)
    values = only_reader(weights) if weights is not None and is_marker(weights) else None
    if weights is None or values is None or values.target is not aten.matmul.default or values.args[0] is not weights:
        return None
    found = Attention(scores=scores, between=between, softmax=softmax, weights=weights, values=values)
    return found if _has_the_shapes(found) and _hides(found) else None


def _between(scores: Node) -> Iterator[tuple[Node, Any]]:
    before, node = scores, only_reader(scores)
    while node is not None and (other := _beside(node, before)) is not None:
        yield node, other
        before, node = node, only_reader(node)


def _beside(node: Node, before: Node) -> Any:
    """What `node` does to the scores `before` with: the number or tensor beside them; None if it is something else."""
    operands = list(node.args[:2])
    if node.target not in BETWEEN or node.kwargs or operands.count(before) != 1:
        return None
    if operands[0] is not before and node.target is not aten.add.Tensor:
        return None
    (other,) = (operand for operand in operands if operand is not before)
    if node.target in BY_NUMBER:
        return other if isinstance(other, int | float) else None
    return other if isinstance(other, Node) and not is_marker(other) else None


BY_NUMBER = {aten.mul.Tensor, aten.div.Tensor}
BETWEEN = {*BY_NUMBER, aten.add.Tensor, aten.masked_fill.Scalar}


def _along_keys(softmax: Node) -> bool:
    axis, dtype = argument(softmax, "dim"), argument(softmax, "dtype")
    return axis in (-1, len(shape(softmax)) - 1) and dtype is None


def _has_the_shapes(found: Attention) -> bool:
    """q [..., S, D], kᵀ [..., D, T], v [..., T, E] with the same one or two axes before; the scores keep their shape.

    Where heads share their keys, or prompts their image, a product broadcasts; and so may what is added to the scores.
    """
    q, k, v = (shape(cast(Node, operand)) for operand in (*found.scores.args[:2], found.values.args[1]))
    scores = [shape(node) for node in found.inner]
    return (
        len(q) in (3, 4)
        and same_sizes(q[:-2], k[:-2], v[:-2])
        and same_sizes((*q[:-1], k[-1]), *scores)
        and isinstance(q[-1], int)
        and q[-1] <= DEEPEST
        and all(value(node).dtype == torch.float32 for node in found.inner)
    )


def _hides(found: Attention) -> bool:
    """Whether whatever a mask fills in is as good as −∞: the kernel has nothing else to put in place of a score."""
    scale = 1.0  # of all that follows
    for node, other in reversed(found.between):
        if node.target is aten.masked_fill.Scalar:
            fill = node.args[2]
            if not (isinstance(fill, int | float) and fill <= HIDING and scale >= FADED):
                return False
        if node.target in BY_NUMBER:
            scale = scale * other if node.target is aten.mul.Tensor else scale / other
    return True
