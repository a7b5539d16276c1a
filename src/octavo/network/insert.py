"""Insertion: a module at every quantizer of a graph. Observing, simulating and exporting differ only in the module."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from octavo.network.edit import copy_module
from octavo.network.graph import Graph
from octavo.network.plan import Plan, Quantizer
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


def insert(plan: Plan, make: MakeModule, *, own_parameters: bool = True) -> GraphModule:
    """A copy of the plan's module in which the readers of each quantizer read `make(quantizer)(source)` instead.

    own_parameters  copy the parameters too, so that training the result leaves those of the plan as they are; else
                    share them
    """
    module = copy_module(plan.graph.module, own_parameters=own_parameters)
    nodes = {node.name: node for node in module.graph.nodes}
    for index, quantizer in enumerate(plan.quantizers):
        target = place(plan.graph, index, quantizer)
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
