"""How much work an operation is: what a share of a network in integers is counted in."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from octavo.network.graph import Graph
from octavo.network.placement import compute_heavy
from octavo.network.plan import Plan

aten = torch.ops.aten


def work_of_layers(graph: Graph, layers: Mapping[str, str]) -> dict[str, float]:
    """{layer: its multiplications}, in a call on inputs of the sizes that the network was captured with.

    layers  {node: the user's layer}
    """
    nodes = list(graph.module.graph.nodes)
    values = {node: tree_map(_of_example, node.meta.get("val")) for node in nodes}
    return {layers[node.name]: multiplications(node, values) for node in nodes if node.name in layers}


def share(work: Mapping[str, float], layers: Iterable[str]) -> float:
    """Of all multiplications those of `layers`: 0 … 1; of a network that has none, 1.

    work  as `work_of`
    """
    total = sum(work.values())
    return sum(work.get(layer, 0.0) for layer in layers) / total if total else 1.0


def work_of(plan: Plan) -> dict[str, float]:
    """{layer: its multiplications} of every operation that the coverage of `plan` counts."""
    return work_of_layers(plan.graph, compute_heavy(plan.graph, plan.target))


def _of_example(leaf: Any) -> Any:
    """A tensor of the same shape without contents, sizes being those of the example."""
    if isinstance(leaf, Tensor):
        return torch.empty([_number(size) for size in leaf.shape], dtype=leaf.dtype, device="meta")
    return leaf


def _number(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, SymInt) else int(size)


def multiplications(node: Node, values: Mapping[Node, Any]) -> float:
    """How many `node` does on tensors of these shapes, if every output of it is a sum of products; an upper bound.

    values  {node: what it returns}, of all that it reads and of itself
    """
    count = _PRODUCTS.get(node.target) if node.op == "call_function" else None
    if count is None:
        return 0.0
    args, _ = map_arg((node.args, node.kwargs), values.__getitem__)
    return float(count(tree_leaves(values[node])[0].numel(), *args))


def _per_output(outputs: int, x: Tensor, weight: Tensor, *_: Any) -> float:
    return outputs * weight.numel() / max(1, weight.shape[0])


def _per_input(outputs: int, x: Tensor, weight: Tensor, *_: Any) -> float:
    return x.numel() * weight.numel() / max(1, weight.shape[0])


def _last(outputs: int, left: Tensor, *_: Any) -> float:
    return float(outputs * (left.shape[-1] if left.ndim else 1))


def _recurrent(outputs: int, x: Tensor, state: Any, weights: Any, *_: Any) -> float:
    """Every step of every sample meets every weight."""
    return float(x.numel() / max(1, x.shape[-1]) * sum(weight.numel() for weight in tree_leaves(weights)))


def _every(outputs: int, *args: Any) -> float:
    """Of all operands with all: no sum is larger."""
    product = 1.0
    for leaf in tree_leaves(args):
        product *= leaf.numel() if isinstance(leaf, Tensor) else 1
    return product


_PRODUCTS: dict[Any, Callable[..., float]] = {
    aten.linear.default: _per_output,
    aten.conv1d.default: _per_output,
    aten.conv2d.default: _per_output,
    aten.conv3d.default: _per_output,
    aten.convolution.default: _per_output,
    aten.conv_transpose1d.default: _per_input,
    aten.conv_transpose2d.input: _per_input,
    aten.conv_transpose3d.input: _per_input,
    aten.matmul.default: _last,
    aten.mm.default: _last,
    aten.bmm.default: _last,
    aten.mv.default: _last,
    aten.cdist.default: _last,
    aten.addmm.default: lambda outputs, bias, left, *_: _last(outputs, left),
    aten.baddbmm.default: lambda outputs, bias, left, *_: _last(outputs, left),
    aten.lstm.input: _recurrent,
    aten.gru.input: _recurrent,
    aten.rnn_tanh.input: _recurrent,
    aten.rnn_relu.input: _recurrent,
    aten.einsum.default: _every,
    aten.bilinear.default: _every,
    aten.kron.default: _every,
}
