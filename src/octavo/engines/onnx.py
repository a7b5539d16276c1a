"""The interchange: one ONNX model with QuantizeLinear and DequantizeLinear around every quantized operation.

    planned graph ─▶ a module at every marker that stands for its ONNX operators ─▶ torch.export ─▶ ONNX

Weights are int8 initializers, so the file is about a quarter of the float one. Engines read the pairs as an order to
compute on integers what lies between them; what they do not fuse they compute in float, with the same result.
"""

from collections.abc import Mapping
from itertools import count
from os import PathLike
from pathlib import Path

import onnx
import torch
from onnxscript import ir
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.onnx.errors import OnnxExporterError

from octavo.engines.onnx_operators import Activation, RoundedInFloat, quantized_weight
from octavo.engines.onnx_recurrent import replace_recurrent
from octavo.engines.onnx_scatter import replace_scatters
from octavo.engines.retrace import dynamic_sizes, exported_again, tensor_inputs
from octavo.engines.rows import with_rows_scaled
from octavo.engines.signature import signature_of
from octavo.errors import QuantizationError, reason
from octavo.files import replaced
from octavo.network.device import on_cpu
from octavo.network.edit import attribute, copy_module
from octavo.network.graph import Graph
from octavo.network.marker import sources, with_modules
from octavo.network.operations import OPERATIONS
from octavo.network.placement import layer_names
from octavo.network.plan import Quantizer
from octavo.network.quantized import Quantized, graph_of, target_of
from octavo.quiet import OWN_DEPRECATION, quiet
from octavo_serve.onnx_allowed import OPSET


def export_onnx(net: Quantized | Graph, *, path: str | PathLike[str] | None = None) -> onnx.ModelProto:
    """`net` as an ONNX model of opset 21 with a dynamic batch; of a captured graph the float network.

    Inputs are named as in the graph; outputs "output", after their keys if the model returns a dict, or "output_0", ….
    Every compute-heavy operation is named after the user's layer.

    path    also write the model there
    raises  QuantizationError for an operation that ONNX cannot express
    """
    net = on_cpu(net)
    graph = graph_of(net)
    module = _with_onnx_operators(net)
    exported = exported_again(graph, module)
    program = _translated(graph, exported)
    _name_values(program.model.graph)
    model = program.model_proto
    _name_layers(model, program.exported_program)
    _drop_traces(model)
    if path is not None:
        with replaced(Path(path)) as new:
            onnx.save(model, new)
    return model


def _with_onnx_operators(net: Quantized | Graph) -> GraphModule:
    """A copy of the graph's module that is ready to translate; it shares the parameters that stay in float."""
    if isinstance(net, Graph):
        module = copy_module(net.module, own_parameters=False)
    else:
        module = _with_pairs(with_rows_scaled(net))
    _annotate_layers(module, layer_names(graph_of(net), target_of(net)))
    replace_recurrent(module)
    replace_scatters(module)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _with_pairs(net: Quantized) -> GraphModule:
    """A copy of the graph's module that calls a module that stands for ONNX operators wherever it rounds."""
    marked, rounded = net.plan.marked, sources(net.plan.marked)

    def operators(quantizer: Quantizer) -> nn.Module:
        params = net.values[quantizer.name]
        if quantizer.constant:
            return quantized_weight(attribute(marked.module, rounded[quantizer.name][0]), params)
        if quantizer.scheme.axis is not None and not _at_convolutions(quantizer):
            return RoundedInFloat(params)
        return Activation(params, as_uint8=_wants_uint8(quantizer, net))

    modules = {quantizer.name: operators(quantizer) for quantizer in net.plan.quantizers}
    return with_modules(marked, modules, own_parameters=False)


def _wants_uint8(quantizer: Quantizer, net: Quantized) -> bool:
    """Whether signed integers are written 128 higher: those that convolutions read, where there are zero-points.

    OpenVINO 2026.4 computes a convolution of int8 wrongly behind a concat, an unsqueeze or a norm (3 to 11 dB from the
    simulation). Products keep int8, which is faster there; transposed convolutions too, whose only kernel it is.
    """
    convolved = any(site.operation in _CONVOLUTIONS and site.role == "input" for site in quantizer.sites)
    return convolved and net.plan.target.zero_points


def _at_convolutions(quantizer: Quantizer) -> bool:
    """Whether convolutions read or return what it rounds, all of it."""
    return all(site.operation.startswith("conv") for site in quantizer.sites)


_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}


def _annotate_layers(module: GraphModule, layers: Mapping[str, str]) -> None:
    """The name of the user's layer at every compute-heavy operation, where the exporter keeps it."""
    for node in module.graph.nodes:
        node.meta.pop("custom", None)
        if node.name in layers:
            node.meta["custom"] = {"layer": layers[node.name]}


def _names_of_sizes(graph: Graph) -> tuple[dict[int, str], ...]:
    """For each tensor {axis: name}: "batch" for the first dynamic size of an axis 0, "x_axis1" for axis 1 of x."""
    names: dict[str, str] = {}
    sizes = []
    for node in tensor_inputs(graph):
        symbols = {axis: str(node.meta["val"].shape[axis]) for axis in dynamic_sizes(node) or ()}
        for axis, symbol in symbols.items():
            first = axis == 0 and "batch" not in names.values()
            names.setdefault(symbol, "batch" if first else f"{node.target}_axis{axis}")
        sizes.append({axis: names[symbol] for axis, symbol in symbols.items()})
    return tuple(sizes)


def _translated(graph: Graph, exported: ExportedProgram) -> torch.onnx.ONNXProgram:
    signature = signature_of(graph)
    try:
        with quiet("torch.onnx._internal.exporter._registration", ignored=(OWN_DEPRECATION, _SHARED_SIZE)):
            program = torch.onnx.export(
                exported,
                input_names=[str(node.target) for node in tensor_inputs(graph)],
                output_names=signature.tensors,
                dynamic_shapes=_names_of_sizes(graph),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except OnnxExporterError as error:
        raise QuantizationError(
            asked="write the network as ONNX",
            seen=f"torch.onnx.export cannot translate one of its operations ({reason(error.__cause__ or error)})",
            remedy="rewrite that operation, capture the part of the model without it, or use the reference engine",
        ) from error
    assert program is not None
    return program


_SHARED_SIZE = ("# The axis name", UserWarning)  # two inputs share a size: as it should be


def _name_values(graph: ir.Graph) -> None:
    """Give every value a name of its own: torch names outputs as it is told to, whatever other value is called so.

    Two of one name would be one value to who reads the file.
    """
    public = (*graph.inputs, *graph.outputs)
    taken = {value.name for value in public}
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in dict.fromkeys(value for value in values if value.name and value not in public):
        if value.name in taken:
            value.name = next(name for i in count(1) if (name := f"{value.name}_{i}") not in taken)
        taken.add(value.name)


def _name_layers(model: onnx.ModelProto, exported: ExportedProgram | None) -> None:
    """Name the ONNX node of every compute-heavy operation after the user's layer; adding its bias is another node."""
    assert exported is not None
    layers = {node.name: node.meta["custom"]["layer"] for node in exported.graph.nodes if _is_annotated(node)}
    named: set[str] = set()
    for node in model.graph.node:
        origin = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.fx_node"), "")
        layer = layers.get(origin.partition(" ")[0].removeprefix("%"))
        if layer is not None and layer not in named and node.op_type in _COMPUTE_HEAVY:
            node.name = layer
            named.add(layer)


_COMPUTE_HEAVY = {name for row in OPERATIONS.values() for name in row.onnx} | {"Einsum", "RNN"}  # those stay in float


def _is_annotated(node: Node) -> bool:
    return "layer" in node.meta.get("custom", {})


def _drop_traces(model: onnx.ModelProto) -> None:
    """Without the exporter's notes on where each node came from: they hold source code, and outgrow small models."""
    for item in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        del item.metadata_props[:]
    for item in (*model.graph.input, *model.graph.output):
        del item.metadata_props[:]
    del model.graph.value_info[:]
