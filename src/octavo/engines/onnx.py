"""The interchange: one ONNX model with QuantizeLinear and DequantizeLinear around every quantized operation.

    planned graph ─▶ a module at every quantizer that stands for its ONNX operators ─▶ torch.export ─▶ ONNX

Weights are int8 initializers, so the file is about a quarter of the float one. Engines read the pairs as an order to
compute on integers what lies between them; what they do not fuse they compute in float, with the same result.
"""

import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.traceback import preserve_node_meta
from torch.onnx.errors import OnnxExporterError
from torch.utils._pytree import MappingKey, SequenceKey, TreeSpec, tree_flatten_with_path, tree_unflatten

from octavo.engines.onnx_operators import OPSET, Activation, quantized_weight
from octavo.engines.onnx_recurrent import replace_recurrent
from octavo.errors import QuantizationError
from octavo.network.calibrate import Params
from octavo.network.edit import attribute, copy_module
from octavo.network.graph import Graph
from octavo.network.insert import insert
from octavo.network.plan import Quantizer

def export_onnx(graph: Graph, params: Params | None, *, path: str | PathLike[str] | None = None) -> onnx.ModelProto:
    """`graph` as an ONNX model of opset 21 whose batch is dynamic, quantized by `params`; None exports the float network.

    Inputs are named as in the graph; outputs "output", after their keys if the model returns a dict, or "output_0", ….
    Every quantized operation is named after the user's layer.

    path    also write the model there
    raises  QuantizationError for an operation that ONNX cannot express
    """
    module = _with_onnx_operators(graph, params)
    _annotate_layers(module, params)
    exported = _exported_again(graph, module)
    model = _translated(exported, _input_names(graph), _output_names(graph))
    _name_layers(model, exported)
    _drop_traces(model)
    if path is not None:
        onnx.save(model, path)
    return model


def _with_onnx_operators(graph: Graph, params: Params | None) -> GraphModule:
    """A copy of the graph's module that is ready to translate; it shares the parameters that stay in float."""
    if params is None:
        module = copy_module(graph.module, own_parameters=False)
    else:
        values, constants = params.values, {n.name: n for n in graph.module.graph.nodes if n.op == "get_attr"}

        def make(quantizer: Quantizer) -> nn.Module:
            if not quantizer.constant:
                return Activation(values[quantizer.name])
            weight = attribute(graph.module, constants[quantizer.edges[0].source])
            return quantized_weight(weight, values[quantizer.name])

        module = insert(graph, params.plan, make, own_parameters=False)
    replace_recurrent(module)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _annotate_layers(module: GraphModule, params: Params | None) -> None:
    """The name of the user's layer at every quantized operation, where the exporter keeps it."""
    if params is None:
        return
    sites = (site for quantizer in params.plan.quantizers for site in quantizer.sites)
    layers = {site.node: site.name.removesuffix(f".{site.role}") for site in sites}
    for node in module.graph.nodes:
        node.meta.pop("custom", None)
        if node.name in layers:
            node.meta["custom"] = {"layer": layers[node.name]}


def _exported_again(graph: Graph, module: GraphModule) -> ExportedProgram:
    """`module` traced with the sizes dynamic that are so in the graph."""
    spec = _tree_info(graph.module).in_spec
    sizes = [_dynamic_sizes(node) for node in graph.module.graph.nodes if node.op == "placeholder"]
    args, kwargs = tree_unflatten(sizes, spec)
    shapes = dict(zip(_tree_info(graph.module).orig_args, (*args, *kwargs.values()), strict=True))
    with warnings.catch_warnings(), preserve_node_meta():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        return torch.export.export(module, graph.example_args, graph.example_kwargs, dynamic_shapes=shapes, strict=False)


def _dynamic_sizes(placeholder: Node) -> dict[int, Any] | None:
    val = placeholder.meta["val"]
    if not isinstance(val, Tensor):
        return None
    return {axis: Dim.AUTO for axis, size in enumerate(val.shape) if isinstance(size, torch.SymInt)}


def _translated(exported: ExportedProgram, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    try:
        with _quiet():
            program = torch.onnx.export(
                exported, input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False
            )
    except OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise QuantizationError(
            asked="write the network as ONNX",
            seen=f"torch.onnx.export cannot translate one of its operations ({reason[:200]})",
            remedy="rewrite that operation, capture the part of the model without it, or use the reference engine",
        ) from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's note that torchvision, which we do not need, is missing, and a deprecation inside torch itself."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _tree_info(module: GraphModule) -> Any:
    """How the module's inputs and outputs are put together: orig_args, in_spec, out_spec."""
    codegen: Any = module.graph._codegen
    return codegen.pytree_info


def _input_names(graph: Graph) -> list[str]:
    return [str(node.target) for node in graph.module.graph.nodes if node.op == "placeholder"]


def _output_names(graph: Graph) -> list[str]:
    """One name for every tensor that the model returns; never that of an input."""
    spec: TreeSpec = _tree_info(graph.module).out_spec
    leaves, _ = tree_flatten_with_path(tree_unflatten(range(spec.num_leaves), spec))
    names = ["_".join(["output"] * (not _has_key(path)) + [_label(key) for key in path]) for path, _ in leaves]
    taken = set(_input_names(graph))
    return [f"{name}_output" if name in taken else name for name in names]


def _has_key(path: tuple[Any, ...]) -> bool:
    return any(isinstance(key, MappingKey) for key in path[:1])


def _label(key: Any) -> str:
    if isinstance(key, MappingKey):
        return str(key.key)
    return str(key.idx) if isinstance(key, SequenceKey) else str(key).strip(".")


def _name_layers(model: onnx.ModelProto, exported: ExportedProgram) -> None:
    """Name the ONNX operation of every quantized operation after the user's layer."""
    layers = {node.name: node.meta["custom"]["layer"] for node in exported.graph.nodes if _is_annotated(node)}
    for node in model.graph.node:
        origin = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.fx_node"), "")
        layer = layers.get(origin.partition(" ")[0].removeprefix("%"))
        if layer is not None and node.op_type in _COMPUTE_HEAVY:
            node.name = layer


_COMPUTE_HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "Add", "LSTM", "GRU"}


def _is_annotated(node: Node) -> bool:
    return "layer" in node.meta.get("custom", {})


def _drop_traces(model: onnx.ModelProto) -> None:
    """Without the exporter's notes on where every node came from: they show the user's source and outgrow small models."""
    for item in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        del item.metadata_props[:]
    for item in (*model.graph.input, *model.graph.output):
        del item.metadata_props[:]
    del model.graph.value_info[:]
