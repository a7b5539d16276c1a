"""The float network and the rounded one side by side, node by node: each layer is repaired before those that follow.

A repair sees what the float network computes here, and what reaches the layer in the rounded network, with every
earlier layer repaired already. It may change the layer's parameters and the scales of what the layer reads.
"""

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from octavo.network.calibrate import Params
from octavo.network.edit import attribute, emit_parameter, is_constant
from octavo.network.graph import Graph, clone
from octavo.network.operations import operation
from octavo.numerics.affine import QParams, round_through
from octavo.recovery.stepwise import Operation, Values, call, last_readers, operations, read_again, run

OUTPUT_AXIS = {"conv1d": 1, "conv2d": 1, "conv3d": 1, "linear": -1}  # of the channels that a layer returns


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One operation of the rounded network, about to be computed.

    graph   a private copy; what is written to its parameters stays
    scales  {quantizer: its parameters}; what is written to it stays
    float_values, values  of every batch: of the float network, and of the rounded one as it reaches this layer
    """

    graph: Graph
    operation: Operation
    scales: dict[str, QParams]
    float_values: list[dict[Node, Any]]
    values: list[dict[Node, Any]]

    @property
    def node(self) -> Node:
        return self.operation.node

    @property
    def name(self) -> str:
        """Of its row in OPERATIONS."""
        row = operation(self.node)
        assert row is not None
        return row.name

    @property
    def weight(self) -> Node | None:
        """What it reads its weight from, if that is rounded and nothing else reads it."""
        node = self.node.args[1] if self.name in OUTPUT_AXIS else None
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
        params = self.scales[name]
        return round_through(x, params.scale.to(x.device), params.zero_point.to(x.device), params.scheme)

    def set_weight(self, values: Tensor) -> None:
        """Write its weight."""
        assert self.weight is not None
        with torch.no_grad():
            attribute(self.graph.module, self.weight).copy_(values)

    def shift_bias(self, by: Tensor) -> None:
        """Add `by` [channels] to its bias, which is made if there is none; a bias that others read too gets a copy."""
        bias = self.node.args[2] if len(self.node.args) > 2 else None
        assert self.weight is not None
        weight = attribute(self.graph.module, self.weight)
        old = attribute(self.graph.module, bias).detach().double() if isinstance(bias, Node) else torch.zeros_like(by)
        new = torch.nn.Parameter((old + by).to(weight.dtype))
        owner = str(self.weight.target).rpartition(".")[0]
        read = emit_parameter(self.graph.module, self.node, f"{owner}.bias" if owner else "bias", new)
        self.node.args = (*self.node.args[:2], read, *self.node.args[3:])
        if isinstance(bias, Node) and not bias.users:
            self.node.graph.erase_node(bias)


Fix = Callable[[Layer], None]


def walk(graph: Graph, params: Params, batches: Iterable[Any], fix: Fix) -> tuple[Graph, Params]:
    """`graph` and `params` as `fix` leaves them, called once for every quantized operation in data-flow order.

    raises  QuantizationError for no batches
    """
    batches = read_again(batches, "repair a network")
    own, scales = clone(graph), dict(params.values)
    found = {operation.node: operation for operation in operations(own, params)}
    with torch.no_grad():
        float_values = [_by_copy(own, run(graph, batch)) for batch in batches]
        values: list[dict[Node, Any]] = [
            {node: known[node] for node in known if node.op in ("placeholder", "get_attr")} for known in float_values
        ]
    last = last_readers(own)
    for node in list(own.module.graph.nodes):
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        with torch.no_grad():
            if node in found:
                layer = Layer(graph=own, operation=found[node], scales=scales, float_values=float_values, values=values)
                fix(layer)
                outputs = layer.outputs()
            else:
                outputs = [call(node, known) for known in values]
        for known, output in zip(values, outputs, strict=True):
            known[node] = output
        for source in [source for source, reader in last.items() if reader is node]:
            for known in (*values, *float_values):
                known.pop(source, None)
    own.module.graph.lint()
    own.module.recompile()
    return own, replace(params, values=MappingProxyType(scales))


def _by_copy(own: Graph, values: Mapping[Node, Any]) -> dict[Node, Any]:
    """`values` of the nodes of a graph, by the nodes of its copy."""
    copies = {node.name: node for node in own.module.graph.nodes}
    return {copies[node.name]: value for node, value in values.items()}
