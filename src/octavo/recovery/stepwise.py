"""A network run node by node: every value is kept, so that one layer can be rounded and only what follows it rerun."""

import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from octavo.errors import QuantizationError
from octavo.network.edit import attribute, flat_inputs
from octavo.network.graph import Graph, network_inputs
from octavo.network.operations import OUTPUT, operands
from octavo.network.quantized import Quantized
from octavo.network.rule import Site
from octavo.numerics.affine import QParams, round_by

Values = Mapping[Node, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedNode:
    """The one node that a layer of a plan is, how what it reads is rounded, and by which quantizers of the plan.

    In the simulation its quantizers may sit further up, before reshapes, max-pools and concats: those only move and
    select values, and rounding keeps their order, so rounding behind them gives the same.
    """

    layer: str
    node: Node
    rounding: Mapping[Node, QParams]
    quantizers: Mapping[Node, str]


def read_again(batches: Iterable[Any], asked: str) -> Iterable[Any]:
    """`batches`, to be read as often as one likes: what an iterator has left is kept in a list.

    raises  QuantizationError if there are none
    """
    kept = list(batches) if isinstance(batches, Iterator) else batches
    if next(iter(kept), kept) is kept:
        raise QuantizationError(
            asked=asked,
            seen="there are no batches",
            remedy="give at least one (an iterator that was used up gives none: pass a list or a loader)",
        )
    return kept


def operations(net: Quantized) -> list[PlannedNode]:
    """Every layer that the plan quantizes, in data-flow order."""
    reads: dict[str, list[tuple[Site, str]]] = {}
    for quantizer in net.plan.quantizers:
        for site in quantizer.sites:
            if site.role != OUTPUT:  # its reader is no layer: a pooling, say
                reads.setdefault(site.node, []).append((site, quantizer.name))
    found = []
    for node in net.graph.module.graph.nodes:
        if node.name in reads:
            sources = {operand.role: operand.source for operand in operands(node)}
            names = {sources[site.role]: name for site, name in reads[node.name]}
            rounding = {source: net.values[name] for source, name in names.items()}
            layer = reads[node.name][0][0].layer
            found.append(PlannedNode(layer=layer, node=node, rounding=rounding, quantizers=names))
    return found


def call(node: Node, values: Values) -> Any:
    """What `node` returns for these values of the nodes that it reads; a flat list of leaves for the output node."""
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs) if callable(node.target) else args[0]


def values_of(graph: Graph, batch: Any, call: Callable[[Node, Values], Any] = call) -> dict[Node, Any]:
    """The value of every node; parameters and inputs are detached, so no gradient reaches the user's."""
    inputs, values = iter(_inputs(graph, batch)), dict[Node, Any]()
    for node in graph.module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs)
        elif node.op == "get_attr":
            values[node] = attribute(graph.module, node).detach()
        else:
            values[node] = call(node, values)
    return values


def rounded_call(operation: PlannedNode, values: Values) -> tuple[Any, float]:
    """(what the operation returns if all that its plan quantizes is rounded, seconds that this call in float took)."""
    rounded = {source: round_by(values[source], params) for source, params in operation.rounding.items()}
    _wait(rounded)
    start = time.perf_counter()
    result = call(operation.node, ChainMap(rounded, values))  # type: ignore[arg-type]
    _wait(rounded)
    return result, time.perf_counter() - start


def rerun(start: Node, result: Any, values: Values, last_reader: Mapping[Node, Node]) -> Values:
    """`values` as they were if `start` had returned `result`: only its followers are computed again, while any differ.

    Values in between are dropped when nothing reads them any more: of the new values only the outputs are complete.
    """
    changed = {} if _same(result, values[start]) else {start: result}
    current = ChainMap(changed, values)  # type: ignore[arg-type]
    node = start
    while changed and node.op != "output":
        node = node.next
        if not changed.keys().isdisjoint(node.all_input_nodes):
            new = call(node, current)
            if not _same(new, values[node]):
                changed[node] = new
        for source in node.all_input_nodes:
            if last_reader[source] is node:
                changed.pop(source, None)
    return current


def last_readers(graph: Graph) -> dict[Node, Node]:
    """{node: the last one that reads it}."""
    return {source: node for node in graph.module.graph.nodes for source in node.all_input_nodes}


def outputs(graph: Graph, values: Values) -> Any:
    """What the network returns, in the user's structure."""
    return graph.module.graph.process_outputs(values[next(iter(reversed(graph.module.graph.nodes)))])


def samples(graph: Graph, batch: Any) -> int:
    """How many samples `batch` holds: the size of its first dynamic axis."""
    return next((int(size) for size in _sizes(graph, _inputs(graph, batch))), 1)


def sample_axes(graph: Graph, node: Node) -> list[int | None]:
    """For each tensor that `node` returns, the axis along which samples lie; None if it has none, or a fixed size."""
    inputs = [other.meta["val"] for other in graph.module.graph.nodes if other.op == "placeholder"]
    symbol = next((str(size) for size in _sizes(graph, inputs) if not isinstance(size, int)), None)
    shapes = [[str(size) for size in val.shape] for val in tree_leaves(node.meta["val"])]
    return [shape.index(symbol) if symbol in shape else None for shape in shapes]


def _sizes(graph: Graph, inputs: Sequence[Any]) -> Iterator[int | torch.SymInt]:
    """The size of the batch axis in every input that has one."""
    axis = graph.dynamic_axes[0] if graph.dynamic_axes else 0
    return (leaf.shape[axis] for leaf in inputs if isinstance(leaf, Tensor) and leaf.ndim > axis)


def _inputs(graph: Graph, batch: Any) -> list[Any]:
    """The leaves of what the network reads of `batch`, in the order of the graph's inputs and on its device."""
    args, kwargs = network_inputs(graph, batch)
    leaves = flat_inputs(graph.module, args, kwargs)
    return [leaf.detach().to(graph.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _wait(rounded: Mapping[Node, Tensor]) -> None:
    """A GPU works on while the clock of the CPU is read."""
    if any(x.is_cuda for x in rounded.values()):
        torch.cuda.synchronize()


def _same(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)
