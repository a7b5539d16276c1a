"""OpenVINO's CPU plugin: reads the ONNX interchange and runs what lies between its pairs on integers.

What runs on integers is read from the compiled model, not assumed: see `OpenVINOModel.executions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import openvino as ov
import torch
from torch import Tensor

from octavo.engines.onnx import export_onnx
from octavo.engines.signature import Signature, signature_of
from octavo.errors import QuantizationError
from octavo.network.calibrate import Params
from octavo.network.graph import Graph

# OpenVINO's names for the operations that do the arithmetic.
COMPUTE_HEAVY = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "LSTMSequence"}
COMPUTE_HEAVY |= {"GRUSequence", "RNNSeq", "ScaledDotProductAttention"}
INTEGERS = {"i8", "u8"}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the engine runs one compute-heavy operation.

    operation  OpenVINO's name for it: "Convolution", "FullyConnected", "MatMul", …
    precision  of its input: "u8", "i8", "f32", "bf16"
    kernel     OpenVINO's name for the implementation, such as "brgconv_avx512_I8"
    fused      the ONNX nodes that this one kernel computes, itself among them
    """

    operation: str
    precision: str
    kernel: str
    fused: tuple[str, ...]

    @property
    def on_integers(self) -> bool:
        """Whether it multiplies integers."""
        return self.precision in INTEGERS


def compile_openvino(
    graph: Graph,
    params: Params | None,
    *,
    threads: int | None = None,
    hint: Literal["latency", "throughput"] = "latency",
    precision: Literal["f32", "bf16"] = "f32",
) -> "OpenVINOModel":
    """The network, compiled for the CPU. params=None compiles the float network: the baseline to compare with.

    threads    None leaves the number to OpenVINO
    hint       "latency": all threads work on one call; "throughput": calls from several threads run side by side
    precision  of what does not run on integers
    raises     QuantizationError if the network cannot be written as ONNX
    """
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": hint.upper(),
        "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # no rounding that is not in the plan, where only a weight is quantized
    }
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    core = ov.Core()
    model = core.read_model(export_onnx(graph, params).SerializeToString())
    _fold_recurrent_weights(core, model)
    return OpenVINOModel(core.compile_model(model, "CPU", properties), signature_of(graph), _dtypes(graph))


def _fold_recurrent_weights(core: ov.Core, model: ov.Model) -> None:
    """Compute the float weights of recurrent layers from their integers: the plugin refuses any but constants there."""
    for node in model.get_ordered_ops():
        for port in _RECURRENT_WEIGHTS.get(node.get_type_name(), ()):
            source = node.input_value(port)
            if source.get_node().get_type_name() != "Constant":
                (weight,) = core.compile_model(ov.Model([source], []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
                    {}
                ).values()
                node.input(port).replace_source_output(ov.op.Constant(weight).output(0))
    model.validate_nodes_and_infer_types()


_RECURRENT_WEIGHTS = {"LSTMSequence": (4, 5, 6), "GRUSequence": (3, 4, 5)}  # W, R, B behind input, states and lengths


class OpenVINOModel:
    """A compiled network, called like the user's model, with tensors on the CPU. May be called from several threads."""

    def __init__(self, compiled: ov.CompiledModel, signature: Signature, dtypes: Mapping[str, torch.dtype]) -> None:
        self.compiled = compiled
        self._signature, self._dtypes = signature, dtypes
        self._idle: list[ov.InferRequest] = []  # a request serves one call at a time

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's model would return; inputs are read in place, outputs are new tensors."""
        tensors = self._signature.flatten(args, kwargs)
        inputs = {name: _array(tensor, name, self._dtypes[name]) for name, tensor in tensors.items()}
        request = self._idle.pop() if self._idle else self.compiled.create_infer_request()
        results = request.infer(inputs, share_inputs=True, share_outputs=True)
        outputs = [torch.from_numpy(result.copy()) for result in results.values()]  # the request will write there again
        self._idle.append(request)
        return self._signature.unflatten(dict(zip(self._signature.tensors, outputs, strict=True)))

    def executions(self) -> dict[str, Execution]:
        """{user's layer: how it runs} for every compute-heavy operation, as OpenVINO reports after compilation.

        Operations that the plan leaves in float have ONNX's name, "node_conv2d_1", in place of the layer's.
        """
        found = {}
        for node in self.compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            operation, precision, kernel, fused = (info[key].astype(str) for key in _RUNTIME_KEYS)
            if operation in COMPUTE_HEAVY:
                name = node.get_friendly_name().partition("/")[0]
                found[name] = Execution(
                    operation=operation, precision=precision, kernel=kernel, fused=tuple(fused.split(","))
                )
        return found


_RUNTIME_KEYS = ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")


def _dtypes(graph: Graph) -> dict[str, torch.dtype]:
    inputs = graph.module.graph.find_nodes(op="placeholder")
    return {str(node.target): node.meta["val"].dtype for node in inputs if isinstance(node.meta["val"], Tensor)}


def _array(tensor: Tensor, name: str, dtype: torch.dtype) -> Any:
    if tensor.dtype != dtype:
        raise QuantizationError(
            asked=f"run on {tensor.dtype}",
            seen=f"the network was captured with {dtype}",
            remedy=f"pass {name}.to({dtype})",
            site=name,
        )
    return tensor.detach().contiguous().numpy(force=True)
