"""Repairs that move scale between tensors, channel by channel: the float function stays, the rounding changes."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from octavo.arguments import checked
from octavo.network.edit import argument, attribute, emit, emit_parameter, is_constant
from octavo.network.graph import Graph, clone
from octavo.network.operations import OPERATIONS
from octavo.network.quantized import Quantized
from octavo.numerics.broadcast import broadcast_along
from octavo.recovery.moves import Move, keep_what_helps
from octavo.recovery.stepwise import read_again, values_of

aten = torch.ops.aten

LINEAR, SWEEPS, SETTLED = aten.linear.default, 20, 1e-3
CONVOLUTIONS = {operator for operator, row in OPERATIONS.items() if row.name.startswith("conv") and "_" not in row.name}
# Between two layers: what multiplying a channel by a positive number passes through.
EQUIVARIANT = {
    aten.relu.default, aten.leaky_relu.default, aten.max_pool1d.default, aten.max_pool2d.default,
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten.contiguous.default, aten.clone.default,
}  # fmt: skip
LARGEST = 100.0  # a channel is not moved further than by this factor, nor by one over it
SHARE = 0.5  # α: how much of an outlier's size goes into the weights (Xiao et al. 2023, eq. 4)


@checked
def cross_layer_equalization(net: Quantized, batches: Iterable[Any]) -> Quantized:
    """Give each channel between two layers the same range in both weights (Nagel et al. 2019, §4.1).

    W₁ᵢ / sᵢ and W₂ᵢ · sᵢ with sᵢ = √(max|W₁ᵢ| / max|W₂ᵢ|), where ReLU, a leaky one, or pooling alone lies between. A
    ReLU6 is not passed: its 6 would have to move too. Pairs of layers that are not better off on batches held out keep
    their weights: see `keep_what_helps`.
    """
    batches = list(read_again(batches, "equalize the channels of a network"))
    own = clone(net.graph)
    pairs = list(_pairs(own))
    total = [torch.ones(()) for _ in pairs]
    for _ in range(SWEEPS):
        moved = [_balance(own, first, second) for first, second in pairs]
        total = [one * by for one, by in zip(total, moved, strict=True)]
        if max((float(by.log().abs().max()) for by in moved), default=0.0) < SETTLED:
            break
    moves = [_equalization(own, first, second, by) for (first, second), by in zip(pairs, total, strict=True)]
    return keep_what_helps(net, batches, moves) if moves else net


def _pairs(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Layers of which the second alone reads the first, channel for channel."""
    for node in graph.module.graph.nodes:
        if _is_layer(node):
            reader = _only_reader(node)
            while reader is not None and reader.target in EQUIVARIANT:
                reader = _only_reader(reader)
            alike = reader is not None and (node.target is LINEAR) == (reader.target is LINEAR)
            if reader is not None and alike and _is_layer(reader) and _inputs_axis(graph, reader) is not None:
                yield node, reader


def _is_layer(node: Node) -> bool:
    """Whether `node` is a convolution or linear with parameters of its own."""
    if node.target not in CONVOLUTIONS | {LINEAR}:
        return False
    parameters = [one for one in (argument(node, "weight"), argument(node, "bias")) if one is not None]
    return all(_reads_alone(node, parameter) for parameter in parameters)


def _reads_alone(node: Node, parameter: Any) -> bool:
    if not is_constant(parameter):
        return False
    same = [other for other in node.graph.nodes if other.op == "get_attr" and other.target == parameter.target]
    return [reader for other in same for reader in other.users] == [node]


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _inputs_axis(graph: Graph, layer: Node) -> int | None:
    """The axis of its weight along which its inputs lie; None where groups mix several."""
    if layer.target is LINEAR:
        return 1
    weight = _weight(graph, layer)
    groups = argument(layer, "groups")
    if groups == 1:
        return 1
    return 0 if weight.shape[1] == 1 and weight.shape[0] == groups else None


def _balance(graph: Graph, first: Node, second: Node) -> Tensor:
    """Move the scale of each channel between the two; s, [channels]."""
    one, two = _weight(graph, first), _weight(graph, second)
    axis = _inputs_axis(graph, second)
    assert axis is not None
    ranges = [one.flatten(1).abs().amax(1), two.movedim(axis, 0).flatten(1).abs().amax(1)]
    dead = (ranges[0] == 0) | (ranges[1] == 0)
    by = (ranges[0] / ranges[1]).sqrt().masked_fill(dead, 1.0).clamp(1 / LARGEST, LARGEST)
    _shift(graph, first, second, by)
    return by


def _shift(graph: Graph, first: Node, second: Node, by: Tensor) -> None:
    """What the first layer returns is divided by `by`, and the weight of the second multiplied."""
    one, two, axis = _weight(graph, first), _weight(graph, second), _inputs_axis(graph, second)
    assert axis is not None
    one.div_(broadcast_along(by, 0, one.ndim))
    two.mul_(broadcast_along(by, axis, two.ndim))
    bias = argument(first, "bias")
    if bias is not None:
        attribute(graph.module, bias).detach().div_(by)


def _equalization(graph: Graph, first: Node, second: Node, by: Tensor) -> Move:
    def make(other: Graph) -> None:
        nodes = _by_name(other)
        _shift(other, nodes[first.name], nodes[second.name], by)

    weight = _weight(graph, first)
    divided = {first.name: broadcast_along(by, 0, weight.ndim - 1)}  # channels lie before the axes of an image
    return Move(make=make, readers=(second.name,), divided=divided)


@checked
def smoothquant(net: Quantized, batches: Iterable[Any]) -> Quantized:
    """Move outlying channels between a layer-norm and the linears that read it into their weights (Xiao et al. 2023).

    sⱼ = max|xⱼ|^α / max|Wⱼ|^(1−α). The layer-norm's own parameters take 1 / s, where linears alone read it; elsewhere a
    multiplication stands before the linears. Norms whose linears are not better off on batches held out keep their
    outliers: see `keep_what_helps`.
    """
    batches = list(read_again(batches, "migrate outliers into weights"))
    norms = list(_normalised(net.graph))
    largest = _largest_inputs(net.graph, {norm.name for norm, _ in norms}, batches)
    moves = [_migration(net.graph, norm, linears, largest[norm.name]) for norm, linears in norms]
    return keep_what_helps(net, batches, moves) if moves else net


def _migration(graph: Graph, norm: Node, linears: list[Node], largest: Tensor) -> Move:
    """largest  max|x| of each channel of the norm, [channels]."""
    weights = torch.stack([_weight(graph, linear).abs().amax(0) for linear in linears]).amax(0)
    by = (largest**SHARE / weights ** (1 - SHARE)).masked_fill(weights == 0, 1.0)
    by = by.masked_fill(largest == 0, 1.0).clamp(1 / LARGEST, LARGEST)
    names = tuple(linear.name for linear in linears)

    def make(other: Graph) -> None:
        nodes = _by_name(other)
        own = [nodes[name] for name in names]
        for linear in own:
            _weight(other, linear).mul_(by)
        _divide(other, nodes[norm.name], own, by)

    return Move(make=make, readers=names)


def _normalised(graph: Graph) -> Iterator[tuple[Node, list[Node]]]:
    """Every layer-norm over the last axis, and the linears that read it."""
    for node in graph.module.graph.nodes:
        if node.target is aten.layer_norm.default and len(argument(node, "normalized_shape")) == 1:
            linears = [
                user for user in node.users if user.target is LINEAR and _reads_alone(user, argument(user, "weight"))
            ]
            if linears:
                yield node, linears


def _divide(graph: Graph, norm: Node, linears: list[Node], by: Tensor) -> None:
    """What the linears read of `norm` is divided by `by`."""
    parameters = [one for one in (argument(norm, "weight"), argument(norm, "bias")) if one is not None]
    if len(linears) == len(norm.users) and parameters and all(_reads_alone(norm, one) for one in parameters):
        with torch.no_grad():
            for parameter in parameters:
                attribute(graph.module, parameter).div_(by)
        return
    first = min(linears, key=list(graph.module.graph.nodes).index)
    inverse = emit_parameter(graph.module, first, f"{norm.name}_inverse", by.reciprocal())
    divided = emit(first, aten.mul.Tensor, norm, inverse)
    for linear in linears:
        linear.replace_input_with(norm, divided)


def _largest_inputs(graph: Graph, names: set[str], batches: Iterable[Any]) -> dict[str, Tensor]:
    """{node: max|x| of each channel along the last axis} in the float network."""
    largest: dict[str, Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            for node, value in values_of(graph, batch).items():
                if node.name in names:
                    most = value.abs().flatten(0, -2).amax(0)
                    largest[node.name] = torch.maximum(largest.get(node.name, most), most)
    return largest


def _by_name(graph: Graph) -> dict[str, Node]:
    return {node.name: node for node in graph.module.graph.nodes}


def _weight(graph: Graph, layer: Node) -> Tensor:
    return attribute(graph.module, argument(layer, "weight")).detach()
