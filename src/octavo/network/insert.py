"""Insertion: a module at every quantizer of a graph. Observing, simulating and exporting differ only in the module."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from octavo.errors import QuantizationError
from octavo.network.edit import copy_module, is_floating
from octavo.network.graph import Graph
from octavo.network.plan import Plan, Quantizer
from octavo.network.share import Edge
from octavo.numerics.affine import QParams


class Rounding(nn.Module):
    """A module for `insert` to put at a quantizer: it holds the scheme, and scale and zero-point as buffers."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, params: QParams) -> None:
        super().__init__()
        self.scheme = params.scheme
        self.register_buffer("scale", params.scale.clone())
        self.register_buffer("zero_point", params.zero_point.clone())


MakeModule = Callable[[Quantizer], nn.Module]


def insert(graph: Graph, plan: Plan, make: MakeModule, *, own_parameters: bool = True) -> GraphModule:
    """A copy of `graph.module` in which the readers of each quantizer read `make(quantizer)(source)` instead.

    own_parameters  copy the parameters too, so that training the result leaves `graph` as it is; else share them
    raises          QuantizationError if `plan` was made for another graph
    """
    check_belongs(graph, plan)
    module = copy_module(graph.module, own_parameters=own_parameters)
    nodes = {node.name: node for node in module.graph.nodes}
    for index, quantizer in enumerate(plan.quantizers):
        target = place(graph, index, quantizer)
        module.add_submodule(target, make(quantizer))
        _redirect(nodes, quantizer, target)
    module.graph.lint()
    module.recompile()
    return module


def place(graph: Graph, index: int, quantizer: Quantizer) -> str:
    """The path of the module that `insert` puts at the quantizer with this number in its plan.

    It lies under a name that nothing of the user's has.
    """
    within = "quantizers"
    while hasattr(graph.module, within):
        within += "_"
    return f"{within}.{index}_{quantizer.name.replace('.', '_').replace('@', '_')}"


def check_belongs(graph: Graph, plan: Plan) -> None:
    """Raise QuantizationError if `plan` names nodes that `graph` does not have, or that do not read what it says."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    for quantizer in plan.quantizers:
        seen = next(filter(None, (_misread(nodes, edge) for edge in quantizer.edges)), None)
        if seen is None and quantizer.constant != all(nodes[edge.source].op == "get_attr" for edge in quantizer.edges):
            seen = f"what it rounds is {'not' if quantizer.constant else 'nothing but'} parameters"
        if seen is not None:
            raise QuantizationError(
                asked="use a plan with a graph",
                seen=f"{seen}: the plan was made for another one",
                remedy="make the plan from this very graph",
                site=quantizer.name,
            )


def _misread(nodes: Mapping[str, Node], edge: Edge) -> str | None:
    missing = {edge.source, edge.user} - nodes.keys()
    if missing:
        return f"the graph has no {min(missing)!r}"
    if nodes[edge.source] not in nodes[edge.user].all_input_nodes:
        return f"{edge.user!r} does not read {edge.source!r} in the graph"
    return None if is_floating(nodes[edge.source]) else f"{edge.source!r} is no floating-point tensor in the graph"


def _redirect(nodes: dict[str, Node], quantizer: Quantizer, target: str) -> None:
    quantized: dict[str, Node] = {}
    for edge in quantizer.edges:
        source = nodes[edge.source]
        if edge.source not in quantized:
            with source.graph.inserting_after(source):
                node = source.graph.call_module(target, (source,))
            node.meta["val"] = source.meta["val"]
            quantized[edge.source] = node
        nodes[edge.user].replace_input_with(source, quantized[edge.source])
