"""Attention, einsum and the other spellings of a matrix product, rewritten as `matmul`.

The paper quantizes the inputs of every matrix multiplication (§4). A table names the rewrite of each operation; what a
rewrite cannot express stays as it is and is reported as kept in float.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from octavo.network.edit import emit, replace, shape, value

aten = torch.ops.aten

Rewrite = Callable[..., Node | None]


def to_matmul(module: GraphModule) -> None:
    """Rewrite every operation of `REWRITES`; a rewrite that returns None leaves its operation alone."""
    for node in list(module.graph.nodes):
        rewrite = REWRITES.get(node.target)
        if rewrite is not None:
            new = rewrite(node, *node.args, **node.kwargs)
            if new is not None:
                replace(node, new)


def attention(
    node: Node,
    query: Node,
    key: Node,
    values: Node,
    attn_mask: Node | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Node:
    """softmax(query·keyᵀ·scale + mask)·values, with both products in the open.

    The scale multiplies the scores, not the query: there it merges with the integer product's own rescaling, and the
    query can be quantized where it is produced. Rows that a mask blanks out entirely give the mean of the values
    where torch gives zeros.
    """
    if enable_gqa:
        key, values = (_repeat_heads(node, query, x) for x in (key, values))
    scores = emit(node, aten.matmul.default, query, emit(node, aten.transpose.int, key, -2, -1))
    width = shape(query)[-1]
    scores = emit(node, aten.mul.Tensor, scores, 1 / math.sqrt(width) if scale is None else scale)
    if is_causal:
        lengths = [emit(node, aten.sym_size.int, x, -2) for x in (query, key)]
        ones = emit(node, aten.ones.default, lengths, dtype=torch.bool, device=value(query).device)
        attn_mask = emit(node, aten.tril.default, ones)
    if attn_mask is not None:
        scores = _masked(node, scores, attn_mask)
    weights = emit(node, aten.softmax.int, scores, -1)
    return emit(node, aten.matmul.default, weights, values)


def _masked(node: Node, scores: Node, mask: Node) -> Node:
    if value(mask).dtype is torch.bool:
        blank = emit(node, aten.logical_not.default, mask)
        return emit(node, aten.masked_fill.Scalar, scores, blank, torch.finfo(value(scores).dtype).min)
    return emit(node, aten.add.Tensor, scores, mask)


def _repeat_heads(node: Node, query: Node, x: Node) -> Node:
    times = int(shape(query)[-3]) // int(shape(x)[-3])
    return x if times == 1 else emit(node, aten.repeat_interleave.self_int, x, times, -3)


def product(node: Node, lhs: Node, rhs: Node) -> Node | None:
    """mm, bmm and mv; None for a matmul of matrices, which stays.

    A vector becomes a matrix of one row or column, so that a weight's axes always mean the same.
    """
    if len(shape(rhs)) == 1:
        column = emit(node, aten.matmul.default, _as_row(node, lhs), emit(node, aten.unsqueeze.default, rhs, -1))
        column = emit(node, aten.squeeze.dim, column, -1)
        return emit(node, aten.squeeze.dim, column, -1) if len(shape(lhs)) == 1 else column
    if len(shape(lhs)) == 1:
        return emit(node, aten.squeeze.dim, emit(node, aten.matmul.default, _as_row(node, lhs), rhs), -2)
    return None if node.target is aten.matmul.default else emit(node, aten.matmul.default, lhs, rhs)


def _as_row(node: Node, x: Node) -> Node:
    return emit(node, aten.unsqueeze.default, x, 0) if len(shape(x)) == 1 else x


def biased_product(node: Node, bias: Node, lhs: Node, rhs: Node, *, beta: float = 1, alpha: float = 1) -> Node:
    """beta·bias + alpha·lhs·rhs: addmm, baddbmm and addmv."""
    result = product(node, lhs, rhs)
    assert result is not None
    if alpha != 1:
        result = emit(node, aten.mul.Tensor, result, alpha)
    if beta == 0:
        return result
    return emit(node, aten.add.Tensor, result, bias if beta == 1 else emit(node, aten.mul.Tensor, bias, beta))


def einsum(node: Node, equation: str, operands: list[Node], path: Any = None) -> Node | None:
    """An einsum of two operands as permute → matmul → permute; None where it is not one matrix product.

    Each letter is a batch axis (in both operands and the output), summed (in both, not in the output), or a row (lhs
    only) or column (rhs only) of the product.
    """
    terms = _terms(equation, [len(shape(x)) for x in operands])
    if terms is None:
        return None
    lhs, rhs, output = terms
    batch = [c for c in lhs if c in rhs and c in output]
    summed = [c for c in lhs if c in rhs and c not in output]
    rows, columns = [c for c in lhs if c not in rhs], [c for c in rhs if c not in lhs]
    if not summed or set(rows + columns) - set(output):
        return None  # nothing is summed, or a letter of one operand alone
    if not _sizes_agree(operands, lhs, rhs):
        return None  # einsum repeats an axis of size 1, a product does not
    sizes = _sizes(node, lhs, operands[0]) | _sizes(node, rhs, operands[1])
    left = _grouped(node, operands[0], lhs, (batch, rows, summed), sizes)
    right = _grouped(node, operands[1], rhs, (batch, summed, columns), sizes)
    result = emit(node, aten.matmul.default, left, right)
    order = batch + rows + columns
    if len(rows) != 1 or len(columns) != 1:
        result = emit(node, aten.reshape.default, result, [sizes[c] for c in order])
    return _permuted(node, result, [order.index(c) for c in output])


def tensordot(node: Node, lhs: Node, rhs: Node, left: list[int], right: list[int]) -> Node | None:
    """The einsum that sums axes `left` of lhs with axes `right` of rhs."""
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    terms = [[next(letters) for _ in shape(x)] for x in (lhs, rhs)]
    for i, j in zip(left, right, strict=True):
        terms[1][j] = terms[0][i]
    output = [c for c in terms[0] + terms[1] if (c in terms[0]) != (c in terms[1])]
    return einsum(node, "{},{}->{}".format(*map("".join, (*terms, output))), [lhs, rhs])


def inner(node: Node, lhs: Node, rhs: Node) -> Node | None:
    """The product over the last axes of both."""
    return tensordot(node, lhs, rhs, [-1], [-1])


def _terms(equation: str, ranks: list[int]) -> tuple[str, str, str] | None:
    """The letters of lhs, rhs and output, "…" spelled out in capitals; None unless there are two plain operands."""
    sides, arrow, output = equation.replace(" ", "").partition("->")
    terms = sides.split(",")
    if len(terms) != 2:
        return None
    if not arrow:  # the letters that occur once, in the order of the alphabet, after the ellipsis
        once = sorted(c for c in sides if c.isalpha() and sides.count(c) == 1)
        output = "..." * ("..." in sides) + "".join(once)
    extra = [rank - len(term) + 3 for term, rank in zip(terms, ranks, strict=True) if "..." in term]
    if extra and (len(set(extra)) > 1 or equation != equation.lower()):
        return None
    batch = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: extra[0]] if extra else ""
    lhs, rhs, output = (term.replace("...", batch) for term in (*terms, output))
    return (lhs, rhs, output) if all(len(set(term)) == len(term) for term in (lhs, rhs, output)) else None


def _sizes_agree(operands: list[Node], lhs: str, rhs: str) -> bool:
    left, right = (dict(zip(term, shape(x), strict=True)) for term, x in zip((lhs, rhs), operands, strict=True))
    return all(str(left[letter]) == str(right[letter]) for letter in left.keys() & right.keys())


def _sizes(node: Node, term: str, x: Node) -> dict[str, Any]:
    """{letter: size of its axis}, a node where the axis is dynamic."""
    return {
        letter: size if isinstance(size, int) else emit(node, aten.sym_size.int, x, axis)
        for axis, (letter, size) in enumerate(zip(term, shape(x), strict=True))
    }


def _grouped(node: Node, x: Node, term: str, groups: tuple[list[str], ...], sizes: dict[str, Any]) -> Node:
    """`x` with its axes ordered as `groups`: all batch axes, then one axis for each of the two other groups."""
    batch, first, second = groups
    x = _permuted(node, x, [term.index(c) for c in batch + first + second])
    if len(first) == len(second) == 1:
        return x
    merged = [_product(node, [sizes[c] for c in group]) for group in (first, second)]
    return emit(node, aten.reshape.default, x, [*(sizes[c] for c in batch), *merged])


def _product(node: Node, sizes: list[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        dynamic = isinstance(size, Node) or isinstance(total, Node)
        total = emit(node, operator.mul, total, size) if dynamic else total * size
    return total


def _permuted(node: Node, x: Node, axes: list[int]) -> Node:
    return x if axes == sorted(axes) else emit(node, aten.permute.default, x, axes)


REWRITES: dict[Any, Rewrite] = {
    aten.scaled_dot_product_attention.default: attention,
    aten.matmul.default: product,
    aten.mm.default: product,
    aten.bmm.default: product,
    aten.mv.default: product,
    aten.addmm.default: biased_product,
    aten.baddbmm.default: biased_product,
    aten.addmv.default: biased_product,
    aten.einsum.default: einsum,
    aten.tensordot.default: tensordot,
    aten.inner.default: inner,
}
