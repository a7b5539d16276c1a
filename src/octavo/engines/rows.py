"""Scales of rows as arithmetic around an integer product, which every engine has: rows on a grid of step 1.

    x ─▶ rounded by rows ─▶ linear + bias      x ─┬─▶ ÷ scale ─▶ rounded, step 1 ─▶ linear ─▶ · scale ─▶ + bias
                                                  └─▶ scale = max|row| / qmax ──────────────────┘

The scale of a row is a factor of every sum along it (Wu et al. 2020, §3.2), so it is taken out before
and put back after.
"""

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType

import torch
from torch.fx import Node

from octavo.network.edit import argument, copy_module, emit, set_argument, shape
from octavo.network.graph import Graph
from octavo.network.operations import operands
from octavo.network.plan import Quantizer
from octavo.network.quantized import Quantized
from octavo.network.share import Edge
from octavo.numerics.affine import QParams
from octavo.numerics.rows import along
from octavo.numerics.scheme import SMALLEST_SCALE, Scheme

aten = torch.ops.aten


def with_rows_scaled(net: Quantized) -> Quantized:
    """`net` with divisions and multiplications by the scales of rows, and one scale, 1, in their place.

    Nodes keep their names; a graph without rows comes back as it is.
    """
    if not any(quantizer.scheme.rows for quantizer in net.plan.quantizers):
        return net
    own = replace(net.graph, module=copy_module(net.graph.module, own_parameters=False))
    rewrite = _Rewrite(own)
    quantizers = [rewrite.divided(q) if q.scheme.rows else q for q in net.plan.quantizers]
    rewrite.multiply()
    own.module.graph.lint()
    own.module.recompile()
    unsigned = not net.plan.target.activation.signed
    units = {q.name: _units(q.scheme, unsigned=unsigned) for q in net.plan.quantizers if q.scheme.rows}
    quantizers = [rewrite.moved(replace(q, scheme=units[q.name].scheme) if q.name in units else q) for q in quantizers]
    plan = replace(net.plan, graph=own, quantizers=tuple(quantizers))
    return replace(net, plan=plan, values=MappingProxyType({**net.values, **units}))


def _units(scheme: Scheme, *, unsigned: bool) -> QParams:
    """The grid of step 1 for what was divided by its scales; unsigned: stored so, with a zero-point in the middle."""
    one = replace(scheme, rows=False, axis=None)
    zero = 0
    if unsigned and scheme.signed:
        one, zero = Scheme(bits=scheme.bits, signed=False, symmetric=False), 1 << (scheme.bits - 1)
    return QParams(scale=torch.ones(()), zero_point=torch.tensor(zero, dtype=torch.int32), scheme=one)


class _Rewrite:
    """The graph while it is rewritten.

    scales  {who reads rows: {what it read: (their scale, the axis along which they lie)}}
    ends    {name of an operation: name of the node that now returns what it returned}
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.module.graph
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.order = {node: number for number, node in enumerate(self.graph.nodes)}
        self.scales: dict[Node, dict[Node, tuple[Node, int]]] = {}
        self.ends: dict[str, str] = {}

    def divided(self, quantizer: Quantizer) -> Quantizer:
        """`quantizer` reading its tensors divided by their scales."""
        edges: list[Edge] = []
        for name in dict.fromkeys(edge.source for edge in quantizer.edges):
            source = self.nodes[name]
            readers = [self.nodes[edge.user] for edge in quantizer.edges if edge.source == name]
            first = min(readers, key=self.order.__getitem__)
            axis = along(quantizer.scheme)
            scale = _scale(first, source, axis, quantizer.scheme.qmax)
            unit = emit(first, aten.mul.Tensor, source, emit(first, aten.reciprocal.default, scale))
            for reader in readers:
                edges.append(Edge(source=unit.name, user=self._reader(reader, source, unit, scale, axis).name))
        return replace(quantizer, edges=tuple(edges))

    def _reader(self, reader: Node, source: Node, unit: Node, scale: Node, axis: int) -> Node:
        """Who reads `unit` where `reader` read `source`: itself, or what multiplies it again at once."""
        if any(operand.source is source and operand.along is not None for operand in operands(reader)):
            self.scales.setdefault(reader, {})[unit] = (scale, axis)
            reader.replace_input_with(source, unit)
            return reader
        product = emit(reader, aten.mul.Tensor, unit, scale)
        reader.replace_input_with(source, product)
        return product

    def multiply(self) -> None:
        """Multiply what operations return by the scales of what they read; biases are added after that."""
        for node, scales in self.scales.items():
            after, found = node.next, node
            readers = list(node.users)
            for unit, (scale, axis) in scales.items():
                found = emit(after, aten.mul.Tensor, found, _beside_result(after, node, unit, scale, axis))
            bias = argument(node, "bias") if node.target is aten.linear.default else None
            if bias is not None:
                set_argument(node, "bias", None)
                found = emit(after, aten.add.Tensor, found, bias)
            for reader in readers:
                reader.replace_input_with(node, found)
            self.ends[node.name] = found.name

    def moved(self, quantizer: Quantizer) -> Quantizer:
        """`quantizer` reading what now returns what it read."""
        return replace(quantizer, edges=tuple(self._moved(quantizer)))

    def _moved(self, quantizer: Quantizer) -> Iterator[Edge]:
        for edge in quantizer.edges:
            yield replace(edge, source=self.ends.get(edge.source, edge.source))


def _scale(like: Node, source: Node, axis: int, qmax: int) -> Node:
    """max|row| / qmax, before `like`."""
    most = emit(like, aten.amax.default, emit(like, aten.abs.default, source), [axis], True)
    return emit(like, aten.clamp_min.default, emit(like, aten.div.Tensor, most, float(qmax)), SMALLEST_SCALE)


def _beside_result(like: Node, node: Node, unit: Node, scale: Node, axis: int) -> Node:
    """`scale` of what `node` reads, beside what it returns: of a product with a vector, the result has an axis less."""
    read = [operand for operand in node.args[:2] if isinstance(operand, Node)]
    if node.target is aten.matmul.default and any(len(shape(operand)) == 1 for operand in read):
        return emit(like, aten.squeeze.dim, scale, axis)
    return scale
