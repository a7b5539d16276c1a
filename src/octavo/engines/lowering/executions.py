"""How each compute-heavy operation runs, read from the lowered graph when it is finished.

A node of the lowered graph is marked with the user's layers that it computes; which kernel that is, and whether it
multiplies integers, says its own target. So a layer that no kernel was written for cannot be said to have one.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch.fx import Graph as FxGraph, GraphModule, Node

from octavo.engines.execution import Execution
from octavo.network.operations import float_only, operation

_LAYERS = "octavo_layers"  # in the meta of a lowered node

# {target: (kernel, implementation)} of what multiplies integers, or reads them from a table.
_ON_INTEGERS = {
    "octavo.int8_linear.default": ("linear", "onednn_i8"),
    "octavo.int8_linear_of_bytes.default": ("linear", "octavo_i8"),
    "octavo.int8_linear_rows.default": ("linear", "octavo_i8"),
    "octavo.int8_convolution.default": ("convolution", "onednn_i8"),
    "octavo.int8_convolutions.default": ("convolution", "octavo_i8"),
    "multiply": ("matmul", "octavo_i8"),
    "multiply_rows": ("matmul", "octavo_i8"),
    "attend": ("attention", "octavo_i8"),
    "attend_rows": ("attention", "octavo_i8"),
    "gather": ("embedding", "gather_i8"),
}


def is_compute_heavy(node: Node) -> bool:
    """Whether `node` of a captured graph is one of the operations that `executions` has to name; no additions."""
    row = operation(node)
    return (row is not None and row.name != "add") or float_only(node) is not None


def mark(kernel: Node, layers: Iterable[str]) -> None:
    """Note that `kernel`, of the lowered graph, computes these layers of the user's."""
    kernel.meta[_LAYERS] = tuple(layers)


def executions(graph: FxGraph) -> dict[str, Execution]:
    """{user's layer: how it runs} of every marked node of a lowered graph."""
    return {layer: _execution(node.target) for node in graph.nodes for layer in node.meta.get(_LAYERS, ())}


def in_float(module: GraphModule, layers: dict[str, str], precision: Callable[[Node], str]) -> dict[str, Execution]:
    """{user's layer: how it runs} of a network that is compiled as it was captured, `precision` being its nodes'."""
    heavy = [node for node in module.graph.nodes if is_compute_heavy(node)]
    return {layers[node.name]: _float(node.target, precision(node)) for node in heavy}


def _execution(target: Any) -> Execution:
    name = getattr(target, "__name__", "") if str(target).startswith("<") else str(target)
    if name not in _ON_INTEGERS:
        return _float(target, "f32")
    kernel, implementation = _ON_INTEGERS[name]
    return Execution(kernel=kernel, precision="u8", implementation=implementation)


def _float(target: Any, precision: str) -> Execution:
    return Execution(kernel=str(target).split(".")[1], precision=precision, implementation=f"inductor_{precision}")
