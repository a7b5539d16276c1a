"""Tracing again: an edited graph as an `ExportedProgram`, with the sizes dynamic that are so in the captured one."""

from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.traceback import preserve_node_meta
from torch.utils._pytree import tree_structure, tree_unflatten

from octavo.engines.signature import codegen_returning, output_nodes
from octavo.network.edit import tree_info
from octavo.network.graph import Graph
from octavo.quiet import OWN_DEPRECATION, quiet


def exported_again(graph: Graph, module: GraphModule) -> ExportedProgram:
    """`module`, made from `graph` and called alike, traced with the sizes dynamic that are so in `graph`.

    It returns its distinct output tensors, in the order of `Signature.tensors`. `module` is changed so as well.
    """
    _return_tensors(module)
    shapes = _by_argument(graph, [dynamic_sizes(node) for node in _inputs(graph)])
    with quiet(ignored=(OWN_DEPRECATION,)), preserve_node_meta():
        return torch.export.export(
            module, graph.example_args, graph.example_kwargs, dynamic_shapes=shapes, strict=False
        )


def _inputs(graph: Graph) -> list[Node]:
    return list(graph.module.graph.find_nodes(op="placeholder"))


def tensor_inputs(graph: Graph) -> list[Node]:
    """The inputs that are tensors, in order."""
    return [node for node in _inputs(graph) if isinstance(node.meta["val"], Tensor)]


def _by_argument(graph: Graph, leaves: list[Any]) -> dict[str, Any]:
    """One value for each input, in the structure of the arguments of forward."""
    info = tree_info(graph.module)
    args, kwargs = tree_unflatten(leaves, info.in_spec)
    return dict(zip(info.orig_args, (*args, *kwargs.values()), strict=True))


def dynamic_sizes(placeholder: Node) -> dict[int, Any] | None:
    """{axis: Dim.AUTO} for every dynamic size of an input; None for one that is no tensor."""
    val = placeholder.meta["val"]
    if not isinstance(val, Tensor):
        return None
    return {axis: Dim.AUTO for axis, size in enumerate(val.shape) if not isinstance(size, int)}


def _return_tensors(module: GraphModule) -> None:
    """Let `module` return its distinct output tensors, without None and repetitions: those ONNX cannot say."""
    (output,) = module.graph.find_nodes(op="output")
    outputs = tuple(output_nodes(module))
    output.args = (outputs,)
    module._out_spec = tree_structure(outputs)
    module.graph.set_codegen(codegen_returning(module, module._out_spec))
    module.recompile()
