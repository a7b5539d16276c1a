"""Scales of rows as arithmetic around an integer product, which every engine has: rows on a grid of step 1.

    x ─▶ rounded by rows ─▶ linear + bias      x ─┬─▶ ÷ scale ─▶ rounded, step 1 ─▶ linear ─▶ · scale ─▶ + bias
                                                  └─▶ scale = max|row| / qmax ──────────────────┘

The scale of a row is a factor of every sum along it (Wu et al. 2020, §3.2), so it is taken out before
and put back after.
"""

from dataclasses import replace
from types import MappingProxyType

import torch
from torch.fx import Node

from octavo.network.edit import argument, copy_module, emit, set_argument, shape
from octavo.network.marker import markers, source_of, without_markers
from octavo.network.operations import operands
from octavo.network.quantized import Quantized
from octavo.numerics.affine import QParams
from octavo.numerics.rows import along
from octavo.numerics.scheme import SMALLEST_SCALE, Scheme

aten = torch.ops.aten

# {who reads rows: {the marker that it reads: (the scales of its rows, the axis along which they lie)}}
Scales = dict[Node, dict[Node, tuple[Node, int]]]


def with_rows_scaled(net: Quantized) -> Quantized:
    """`net` with divisions and multiplications by the scales of rows, and one scale, 1, in their place.

    Nodes keep their names; a graph without rows comes back as it is.
    """
    if not any(quantizer.scheme.rows for quantizer in net.plan.quantizers):
        return net
    own = replace(net.plan.marked, module=copy_module(net.plan.marked.module, own_parameters=False))
    unsigned = not net.plan.target.activation.signed
    units = {q.name: _units(q.scheme, unsigned=unsigned) for q in net.plan.quantizers if q.scheme.rows}
    scales: Scales = {}
    for name, found in markers(own).items():
        for marker in found if name in units else ():
            _divide(marker, net.values[name].scheme, scales)
    for node, read in scales.items():
        _multiply(node, read)
    own.module.graph.lint()
    own.module.recompile()
    quantizers = tuple(replace(q, scheme=units[q.name].scheme) if q.name in units else q for q in net.plan.quantizers)
    plan = replace(net.plan, graph=without_markers(own), marked=own, quantizers=quantizers)
    return replace(net, plan=plan, values=MappingProxyType({**net.values, **units}))


def _units(scheme: Scheme, *, unsigned: bool) -> QParams:
    """The grid of step 1 for what was divided by its scales; unsigned: stored so, with a zero-point in the middle."""
    one = replace(scheme, rows=False, axis=None)
    zero = 0
    if unsigned and scheme.signed:
        one, zero = Scheme(bits=scheme.bits, signed=False, symmetric=False), 1 << (scheme.bits - 1)
    return QParams(scale=torch.ones(()), zero_point=torch.tensor(zero, dtype=torch.int32), scheme=one)


def _divide(marker: Node, scheme: Scheme, scales: Scales) -> None:
    """Let `marker` round its tensor divided by the scales of its rows, and note those for the products that read it.

    Any other reader gets it multiplied again at once.
    """
    source, axis = source_of(marker), along(scheme)
    scale = _scale(marker, source, axis, scheme.qmax)
    unit = emit(marker, aten.mul.Tensor, source, emit(marker, aten.reciprocal.default, scale))
    marker.replace_input_with(source, unit)
    for reader in list(marker.users):
        if any(operand.source is marker and operand.along is not None for operand in operands(reader)):
            scales.setdefault(reader, {})[marker] = (scale, axis)
        else:
            reader.replace_input_with(marker, emit(reader, aten.mul.Tensor, marker, scale))


def _multiply(node: Node, read: dict[Node, tuple[Node, int]]) -> None:
    """Multiply what `node` returns by the scales of what it reads; its bias is added after that."""
    after, found, readers = node.next, node, list(node.users)
    for scale, axis in read.values():
        found = emit(after, aten.mul.Tensor, found, _beside_result(after, node, scale, axis))
    bias = argument(node, "bias") if node.target is aten.linear.default else None
    if bias is not None:
        set_argument(node, "bias", None)
        found = emit(after, aten.add.Tensor, found, bias)
    for reader in readers:
        reader.replace_input_with(node, found)


def _scale(like: Node, source: Node, axis: int, qmax: int) -> Node:
    """max|row| / qmax, before `like`."""
    most = emit(like, aten.amax.default, emit(like, aten.abs.default, source), [axis], True)
    return emit(like, aten.clamp_min.default, emit(like, aten.div.Tensor, most, float(qmax)), SMALLEST_SCALE)


def _beside_result(like: Node, node: Node, scale: Node, axis: int) -> Node:
    """`scale` of what `node` reads, beside what it returns: of a product with a vector, the result has an axis less."""
    read = [operand for operand in node.args[:2] if isinstance(operand, Node)]
    if node.target is aten.matmul.default and any(len(shape(operand)) == 1 for operand in read):
        return emit(like, aten.squeeze.dim, scale, axis)
    return scale
