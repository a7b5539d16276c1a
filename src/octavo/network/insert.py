"""Insertion: one module at every quantizer of a graph. Observing, simulating and exporting differ only in the module."""

import copy
from collections.abc import Callable

from torch import nn
from torch.fx import GraphModule, Node

from octavo.network.graph import Graph
from octavo.network.plan import Plan, Quantizer

MakeModule = Callable[[Quantizer], nn.Module]


def insert(graph: Graph, plan: Plan, make: MakeModule, *, own_parameters: bool = True) -> GraphModule:
    """A copy of `graph.module` in which the readers of each quantizer read `make(quantizer)(source)` instead.

    own_parameters  copy the parameters too, so that training the result leaves `graph` as it is; else share them
    """
    module = copy.deepcopy(graph.module) if own_parameters else _sharing_parameters(graph.module)
    nodes = {node.name: node for node in module.graph.nodes}
    for index, quantizer in enumerate(plan.quantizers):
        target = f"quantizers.{index}_{quantizer.name.replace('.', '_').replace('@', '_')}"
        module.add_submodule(target, make(quantizer))
        _redirect(nodes, quantizer, target)
    module.graph.lint()
    module.recompile()
    return module


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


def _sharing_parameters(module: GraphModule) -> GraphModule:
    return GraphModule(module, copy.deepcopy(module.graph))
