"""The float network and the rounded one side by side, node by node: each layer is repaired before those that follow.

A repair sees what the float network computes here, and what reaches the layer in the rounded network, with every
earlier layer repaired already. It may change the layer's parameters and the scales of what the layer reads. What it did
stays only where it helps on samples that it was not fitted to: at the layer's output, and at the network's.
"""

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from octavo.network.edit import argument, attribute, emit_parameter, forget_parameter, is_constant, set_argument
from octavo.network.graph import Graph, clone
from octavo.network.operations import OPERATIONS, Operation
from octavo.network.quantized import Quantized, on_graph
from octavo.numerics.affine import QParams, round_by
from octavo.recovery.stepwise import PlannedNode, Values, call, last_readers, operations, read_again, values_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One operation of the rounded network, about to be computed.

    graph   a private copy; what is written to its parameters stays
    scales  {quantizer: its parameters}; what is written to it stays
    float_values, values  of every batch: of the float network, and of the rounded one as it reaches this layer
    """

    graph: Graph
    operation: PlannedNode
    scales: dict[str, QParams]
    float_values: list[dict[Node, Any]]
    values: list[dict[Node, Any]]

    @property
    def node(self) -> Node:
        return self.operation.node

    @property
    def row(self) -> Operation:
        """Of OPERATIONS."""
        return OPERATIONS[self.node.target]

    @property
    def weight(self) -> Node | None:
        """What it reads its weight from, if that is rounded and nothing else reads it."""
        node = argument(self.node, "weight") if self.row.output is not None else None
        if not is_constant(node) or node not in self.operation.quantizers:
            return None
        assert isinstance(node, Node)
        reads = [other for other in node.graph.nodes if other.op == "get_attr" and other.target == node.target]
        return node if sum(len(other.users) for other in reads) == 1 else None

    def wanted(self) -> list[Tensor]:
        """What the float network returns here, batch by batch."""
        return [values[self.node] for values in self.float_values]

    def inputs(self, values: Values) -> dict[Node, Tensor]:
        """What it reads, rounded where the plan rounds it."""
        return {source: self._rounded(values[source], name) for source, name in self.operation.quantizers.items()}

    def error(self) -> float:
        """Σ (float output − its output)² over all batches."""
        pairs = zip(tree_leaves(self.wanted()), tree_leaves(self.outputs()), strict=True)
        return sum(float((want.double() - have.double()).square().sum()) for want, have in pairs)

    def outputs(self, *, weights_only: bool = False) -> list[Tensor]:
        """What it returns, batch by batch: in the rounded network; or in the float one, its weight alone rounded."""
        found = []
        for values in self.float_values if weights_only else self.values:
            own = {node: attribute(self.graph.module, node) for node in self.node.all_input_nodes if is_constant(node)}
            read = ChainMap(own, values)
            rounded = {
                source: self._rounded(read[source], name)
                for source, name in self.operation.quantizers.items()
                if is_constant(source) or not weights_only
            }
            found.append(call(self.node, ChainMap(rounded, read)))
        return found

    def _rounded(self, x: Tensor, name: str) -> Tensor:
        return round_by(x, self.scales[name])

    def set_weight(self, values: Tensor) -> None:
        """Write its weight."""
        assert self.weight is not None
        with torch.no_grad():
            attribute(self.graph.module, self.weight).copy_(values)

    def shift_bias(self, by: Tensor) -> None:
        """Add `by` [channels] to its bias, which is made if there is none; a bias that others read too gets a copy."""
        bias = argument(self.node, "bias")
        assert self.weight is not None
        weight = attribute(self.graph.module, self.weight)
        old = attribute(self.graph.module, bias).detach().double() if isinstance(bias, Node) else torch.zeros_like(by)
        new = torch.nn.Parameter((old + by).to(weight.dtype))
        owner = str(self.weight.target).rpartition(".")[0]
        read = emit_parameter(self.graph.module, self.node, f"{owner}.bias" if owner else "bias", new)
        set_argument(self.node, "bias", read)

    def state(self) -> tuple[Any, ...]:
        """What a repair may change."""
        weight = None if self.weight is None else attribute(self.graph.module, self.weight).detach().clone()
        return self.node.args, weight, dict(self.scales)

    def restore(self, state: tuple[Any, ...]) -> None:
        """Undo all that was changed since `state`."""
        args, weight, scales = state
        changed = [node for node in self.node.args if isinstance(node, Node) and node not in args]
        self.node.args = args
        for node in changed:
            forget_parameter(self.graph.module, node)
        if weight is not None:
            self.set_weight(weight)
        self.scales.update(scales)


Fix = Callable[[Layer], None]


def held_out(batches: int) -> int:
    """How many of so many batches, the last ones, judge repairs that are fitted to the others; of a single one none."""
    return max(1, batches // 4) if batches > 1 else 0


def relative_error(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Σ over tensors of Σ (wanted − found)² / Σ wanted²."""
    return sum(
        float((want.double() - have.double()).square().sum() / want.double().square().sum().clamp(min=1e-30))
        for want, have in zip(wanted, found, strict=True)
    )


def walk(net: Quantized, batches: Iterable[Any], fix: Fix) -> Quantized:
    """`net` as `fix` leaves it, called once for every quantized operation in data-flow order.

    What `fix` does to a layer is undone unless the squared error falls both of the layer's output and of the network's,
    on a quarter of the batches, at least one, which `fix` does not see. A single batch both fits and judges.

    raises  QuantizationError for no batches
    """
    batches = read_again(batches, "repair a network")
    own, scales = clone(net.graph), dict(net.values)
    found = {operation.node: operation for operation in operations(on_graph(net, own))}
    with torch.no_grad():
        float_values = [_by_copy(own, values_of(net.graph, batch)) for batch in batches]
        values: list[dict[Node, Any]] = [
            {node: known[node] for node in known if node.op in ("placeholder", "get_attr")} for known in float_values
        ]
    last, nodes = last_readers(own), list(own.module.graph.nodes)
    read = [node for node in nodes if node.op == "get_attr" and node.users]
    seen = len(values) - held_out(len(values))
    judged = slice(seen if seen < len(values) else 0, None)
    judge = _Judge(graph=own, found=found, scales=scales, nodes=nodes, wanted=_returned(nodes, float_values[judged]))
    for number, node in enumerate(nodes):
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        with torch.no_grad():
            if node in found:
                layer = partial(Layer, graph=own, operation=found[node], scales=scales)
                fitted = layer(float_values=float_values[:seen], values=values[:seen])
                heard = layer(float_values=float_values[judged], values=values[judged])
                judge.keep_or_undo(number, fitted, heard, fix)
                outputs = layer(float_values=float_values, values=values).outputs()
            else:
                outputs = [call(node, known) for known in values]
        for known, output in zip(values, outputs, strict=True):
            known[node] = output
        for source in [source for source, reader in last.items() if reader is node]:
            for known in (*values, *float_values):
                known.pop(source, None)
    for node in read:
        if not node.users:  # a bias that was replaced
            own.module.graph.erase_node(node)
    own.module.graph.lint()
    own.module.recompile()
    return on_graph(net, own, scales)


@dataclass(kw_only=True, eq=False)
class _Judge:
    """Whether what was done to a layer helps the network.

    nodes   of the graph, in order, before any was added
    wanted  what the float network returns, for each batch that judges
    error   of the network, relative, as it is with all that was kept; infinite before the first layer
    """

    graph: Graph
    found: Mapping[Node, PlannedNode]
    scales: dict[str, QParams]
    nodes: Sequence[Node]
    wanted: Sequence[list[Tensor]]
    error: float = math.inf

    def keep_or_undo(self, number: int, fitted: Layer, heard: Layer, fix: Fix) -> None:
        """Let `fix` change the layer `nodes[number]`, and undo it where it does not help on what it did not see."""
        if math.isinf(self.error):
            self.error = self._error(number, heard.values)
        before, state = heard.error(), heard.state()
        fix(fitted)
        if heard.error() < before:
            error = self._error(number, heard.values)
            if error < self.error or not any(self.wanted):  # one that returns integers alone has no distance
                self.error = error
                return
        heard.restore(state)

    def _error(self, number: int, values: Sequence[Mapping[Node, Any]]) -> float:
        """Of the network's outputs, if `nodes[number]` and all that follow are computed from these values."""
        found = [self._finished(number, known) for known in values]
        return sum(relative_error(wanted, returned) for wanted, returned in zip(self.wanted, found, strict=True))

    def _finished(self, number: int, values: Mapping[Node, Any]) -> list[Tensor]:
        known = dict(values)
        for node in self.nodes[number:-1]:
            if node in self.found:
                operation = self.found[node]
                (known[node],) = Layer(
                    graph=self.graph, operation=operation, scales=self.scales, float_values=[], values=[known]
                ).outputs()
            elif node.op not in ("placeholder", "get_attr"):
                known[node] = call(node, known)
        return _returned(self.nodes, [known])[0]


def _returned(nodes: Sequence[Node], values: Sequence[Mapping[Node, Any]]) -> list[list[Tensor]]:
    """The tensors of real numbers that the network returns, for each batch."""
    leaves = [source for source in tree_leaves(nodes[-1].args) if isinstance(source, Node)]
    found = [[known[source] for source in leaves] for known in values]
    return [[leaf for leaf in row if isinstance(leaf, Tensor) and leaf.is_floating_point()] for row in found]


def _by_copy(own: Graph, values: Mapping[Node, Any]) -> dict[Node, Any]:
    """`values` of the nodes of a graph, by the nodes of its copy."""
    copies = {node.name: node for node in own.module.graph.nodes}
    return {copies[node.name]: value for node, value in values.items()}
