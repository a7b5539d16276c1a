"""A graph on its way through pickle: as the plain data that artifacts hold, with what they leave out beside it.

Torch pickles the code of a module, without the shapes that every later stage reads.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from octavo.network.graph import Graph
from octavo.saved.record import GraphRecord, graph_from, graph_record, tensors_of

Packed = tuple[GraphRecord, dict[str, Tensor], dict[str, bool], tuple[Any, ...], dict[str, Any]]


def packed(graph: Graph) -> Packed:
    """The arguments of `unpacked`.

    raises  QuantizationError for a graph that cannot be written, as `octavo.save` does
    """
    trained = {name: parameter.requires_grad for name, parameter in graph.module.named_parameters()}
    return graph_record(graph), tensors_of(graph), trained, graph.example_args, graph.example_kwargs


def unpacked(
    record: GraphRecord,
    tensors: dict[str, Tensor],
    trained: dict[str, bool],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Graph:
    """The graph, whose parameters are parameters again, with the example that it was captured with."""
    graph = graph_from(record, tensors, operators={row.target for row in record.nodes})  # whoever unpickles trusts it
    for name in trained.keys() & tensors.keys():
        path, _, leaf = name.rpartition(".")
        owner = graph.module.get_submodule(path)
        delattr(owner, leaf)
        owner.register_parameter(leaf, nn.Parameter(tensors[name], requires_grad=trained[name]))
    return replace(graph, example_args=args, example_kwargs=kwargs)


def reduced(graph: Graph) -> tuple[Any, ...]:
    """What pickle writes of `graph`."""
    return unpacked, packed(graph)
