"""Products of two activations, and attention, on Octavo's own integer kernels (`kernels/int8.cpp`)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from octavo.engines.lowering.attention import DEEPEST, Attention, attention_from
from octavo.engines.lowering.build import Integers, Lowering, bytes_of_rows, grid_of, only_reader
from octavo.engines.lowering.move import grid_ahead
from octavo.network.edit import shape
from octavo.numerics.rows import along

aten = torch.ops.aten
LOWEST = torch.finfo(torch.float32).min  # as a bias it hides a key; −inf would make NaN of a query that may see none


def multiply(left: Tensor, z_left: int, right: Tensor, z_right: int, scale: float) -> Tensor:
    """scale · (left − z_left)(right − z_right): [..., M, K] and [..., K, N] uint8 to float32, batches broadcast."""
    leading = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])  # type: ignore[no-untyped-call]
    sides = [side.expand(*leading, *side.shape[-2:]) for side in (left, right)]
    if len(leading) != 2:
        sides = [side.reshape(1, -1, *side.shape[-2:]) for side in sides]
    out: Tensor = torch.ops.octavo.int8_matmul(sides[0], z_left, sides[1], z_right, scale)
    return out.reshape(*leading, left.shape[-2], right.shape[-1])


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, zeros: list[int], numbers: list[Any]) -> Tensor:
    """softmax(q·kᵀ·score_scale + bias)·v of uint8 [..., S, D], [..., D, T], [..., T, E]; one or two leading axes.

    zeros    zero-points of q, k and v
    numbers  the other arguments of `int8_attention`, in its order
    """
    three = q.ndim == 3
    if three:
        q, k, v, bias = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), None if bias is None else bias.unsqueeze(0)
    out: Tensor = torch.ops.octavo.int8_attention(
        q, zeros[0], k.transpose(-1, -2), zeros[1], v, zeros[2], _added(bias), *numbers
    )
    return out.squeeze(0) if three else out


def _added(bias: Tensor | None) -> Tensor | None:
    """`bias` as the kernels add it to the scores: float32 with four axes."""
    if bias is None:
        return None
    bias = bias.to(torch.float32).clamp(min=LOWEST)
    return bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape))


def multiply_rows(left: Tensor, right: Tensor, of_left: list[int], of_right: list[int]) -> Tensor:
    """left · right, float32 [..., M, K] and [..., K, N], each rounded by its own rows or columns."""
    u, z_left, of_rows = bytes_of_rows(left, *of_left)
    v, z_right, of_columns = bytes_of_rows(right, *of_right)
    return multiply(u, z_left, v, z_right, 1.0) * (of_rows * of_columns)


def attend_rows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, highest: list[int]) -> Tensor:
    """As `attend`, of float32, rounded by rows; highest: the largest integers of q, k, the weights and v."""
    three = q.ndim == 3
    if three:
        q, k, v, bias = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), None if bias is None else bias.unsqueeze(0)
    out: Tensor = torch.ops.octavo.int8_attention_rows(q, k.transpose(-1, -2), v, _added(bias), scale, *highest)
    return out.squeeze(0) if three else out


def product(lowering: Lowering, node: Node) -> bool:
    """lhs [..., M, K] · rhs [..., K, N], both activations; as part of an attention where it is one."""
    if node in lowering.attentions:
        return _attention(lowering, lowering.attentions[node])
    if min(len(shape(a)) for a in node.args[:2]) < 2:  # type: ignore[arg-type]
        return False
    lhs, rhs = lowering.integers(node.args[0]), lowering.integers(node.args[1])
    left, right = lowering.rows(node.args[0], -1), lowering.rows(node.args[1], -2)
    first = lhs or left
    if first is None or not ((lhs and rhs) or (left and right)):
        return False
    attention = attention_from(node)
    if attention is not None and (_fits_by_rows if left else _fits)(lowering, attention):
        lowering.attentions[attention.values] = attention
        lowering.values.update(dict.fromkeys(attention.inner, first.node))  # until its last product they are nothing
        return True
    if lhs and rhs:
        scale = lhs.grid.scale * rhs.grid.scale
        lowering.values[node] = lowering.emit(multiply, lhs.node, lhs.grid.zero, rhs.node, rhs.grid.zero, scale)
    elif left and right:
        numbers = [list(left.numbers), list(right.numbers)]
        lowering.values[node] = lowering.emit(multiply_rows, left.node, right.node, *numbers)
    lowering.ran(lowering.values[node], node)
    return True


def _fits(lowering: Lowering, attention: Attention) -> bool:
    """Whether the kernel can be used: the weights' zero must be the integer 0, and the values in integers."""
    site, values = lowering.rounding(attention.weights), attention.values.args[1]
    assert isinstance(values, Node)
    if site is None or site.scheme.axis is not None or bool(site.zero_point.any()):
        return False
    grid = grid_ahead(lowering, values)
    return grid is not None and grid.channels is None


def _fits_by_rows(lowering: Lowering, attention: Attention) -> bool:
    """Whether the kernel of rows can be used: its weights are unsigned and rows, all others signed."""
    q, k = lowering.rows(attention.scores.args[0], -1), lowering.rows(attention.scores.args[1], -2)
    read = attention.values.args[1]
    assert isinstance(read, Node)
    weights, values, keys = lowering.rounding(attention.weights), lowering.rounding(read), shape(read)[-2]
    if q is None or k is None or weights is None or values is None or (isinstance(keys, int) and keys > DEEPEST):
        return False
    schemes = weights.scheme, values.scheme
    rows = [along(scheme) for scheme in schemes if scheme.rows]
    signed = [q.lowest < 0, k.lowest < 0, *(scheme.signed for scheme in schemes)]
    return rows == [-1, -2] and signed == [True, True, False, True]


def _attention(lowering: Lowering, found: Attention) -> bool:
    """One kernel for both products of `found`, its softmax and its roundings."""
    factor, bias = 1.0, None
    for node, other in found.between:
        factor, bias = _BETWEEN[node.target](lowering, node, other, factor, bias)
    by_rows = lowering.rows(found.scores.args[0]) is not None
    result = (_attended_by_rows if by_rows else _attended)(lowering, found, factor, bias)
    lowering.ran(result, found.scores, found.values)
    return True


def _attended(lowering: Lowering, found: Attention, factor: float, bias: Any) -> Node:
    q, k = (lowering.integers(argument) for argument in found.scores.args)
    v, weights = lowering.integers(found.values.args[1]), lowering.rounding(found.weights)
    assert q is not None
    assert k is not None
    assert v is not None
    assert weights is not None
    end = only_reader(found.values)
    site = lowering.rounding(end)
    out = None if site is None or site.scheme.axis is not None else grid_of(site)
    numbers = [
        q.grid.scale * k.grid.scale * factor,
        float(weights.scale),
        weights.scheme.qmax,
        v.grid.scale,
        *((0.0, 0, 0, 0) if out is None else (out.scale, out.zero, out.low, out.high)),
    ]
    zeros = [q.grid.zero, k.grid.zero, v.grid.zero]
    result = lowering.emit(attend, q.node, k.node, v.node, bias, zeros, numbers)
    lowering.values[found.values] = result
    if out is not None and end is not None:
        lowering.values[end] = Integers(node=result, grid=out)
    return result


def _attended_by_rows(lowering: Lowering, found: Attention, factor: float, bias: Any) -> Node:
    q, k = lowering.rows(found.scores.args[0], -1), lowering.rows(found.scores.args[1], -2)
    v, weights = lowering.rows(found.values.args[1], -2), lowering.rounding(found.weights)
    assert q is not None
    assert k is not None
    assert v is not None
    assert weights is not None
    highest = [q.highest, k.highest, weights.scheme.qmax, v.highest]
    result = lowering.emit(attend_rows, q.node, k.node, v.node, bias, factor, highest)
    lowering.values[found.values] = result
    return result


def _multiplied(lowering: Lowering, node: Node, number: Any, factor: float, bias: Any) -> tuple[float, Any]:
    return factor * number, None if bias is None else lowering.emit(torch.mul, bias, number)


def _divided(lowering: Lowering, node: Node, number: Any, factor: float, bias: Any) -> tuple[float, Any]:
    return factor / number, None if bias is None else lowering.emit(torch.div, bias, number)


def _shifted(lowering: Lowering, node: Node, other: Any, factor: float, bias: Any) -> tuple[float, Any]:
    other = lowering.real(other)
    return factor, other if bias is None else lowering.emit(torch.add, bias, other)


def _masked(lowering: Lowering, node: Node, mask: Any, factor: float, bias: Any) -> tuple[float, Any]:
    return factor, lowering.emit(masked_bias, lowering.real(mask), bias)


def masked_bias(mask: Tensor, bias: Tensor | None) -> Tensor:
    """`bias`, or zeros, with the lowest number where `mask` is true: beside it any score vanishes."""
    zero = torch.zeros((), dtype=torch.float32, device=mask.device) if bias is None else bias
    return torch.where(mask, LOWEST, zero)


_BETWEEN: dict[Any, Callable[[Lowering, Node, Any, float, Any], tuple[float, Any]]] = {
    aten.mul.Tensor: _multiplied,
    aten.div.Tensor: _divided,
    aten.add.Tensor: _shifted,
    aten.masked_fill.Scalar: _masked,
}
