"""A network that was calibrated on a GPU, on the CPU: engines run there, and files say so."""

from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves, tree_map

from octavo.errors import QuantizationError
from octavo.network.edit import attribute, copy_module, submodule
from octavo.network.graph import Graph
from octavo.network.quantized import Quantized, on_graph

CPU = torch.device("cpu")
Either = TypeVar("Either", bound=Quantized | Graph)


def on_cpu(net: Either) -> Either:
    """`net` as it is, or a copy whose tensors, and those that the network makes while it runs, are on the CPU.

    raises  QuantizationError if tensors of the network hold no values
    """
    return cast("Either", _network(net) if isinstance(net, Graph) else _quantized(net))


def _quantized(net: Quantized) -> Quantized:
    graph, leaves = _network(net.graph), tree_leaves(net.samples)
    if any(leaf.device != CPU for leaf in leaves if isinstance(leaf, Tensor)):
        net = replace(net, samples=tree_map(_moved, net.samples))
    return net if graph is net.graph else on_graph(net, graph)


def _network(graph: Graph) -> Graph:
    held = {tensor.device for tensor in (*graph.module.parameters(), *graph.module.buffers())}
    if any(device.type == "meta" for device in held):
        raise QuantizationError(
            asked="compile, export or save a network",
            seen="it is on the meta device, which holds no values",
            remedy="load its weights before it is captured",
        )
    made = {device for node in graph.module.graph.nodes for device in _devices(node)}
    if held | made <= {CPU}:
        return graph
    module = copy_module(graph.module).to(CPU)
    for node in module.graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, _moved), map_aggregate(node.kwargs, _moved)
        if "val" in node.meta:
            node.meta["val"] = tree_map(_moved, node.meta["val"])
        if node.op == "get_attr":
            _move_constant(module, node)
    module.recompile()
    args, kwargs = tree_map(_moved, (graph.example_args, graph.example_kwargs))
    return replace(graph, module=module, example_args=args, example_kwargs=kwargs)


def _devices(node: Node) -> list[torch.device]:
    """Where the tensors are that `node` produces, and those that it says it makes."""
    found: list[torch.device] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, torch.device | Tensor):
            found.append(leaf if isinstance(leaf, torch.device) else leaf.device)
        return leaf

    map_aggregate((node.args, node.kwargs), note)
    tree_map(note, node.meta.get("val"))
    return found


def _moved(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return CPU
    return leaf.to(CPU) if isinstance(leaf, Tensor) else leaf


def _move_constant(module: torch.fx.GraphModule, node: Node) -> None:
    """A tensor that is neither parameter nor buffer does not move with its module."""
    owner_path, _, leaf = str(node.target).rpartition(".")
    found = attribute(module, node)
    if found.device != CPU:
        setattr(submodule(module, owner_path), leaf, found.to(CPU))
