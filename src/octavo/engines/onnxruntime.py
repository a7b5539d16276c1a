"""The ONNX Runtime engine: the interchange model, read by the second of its readers."""

from collections.abc import Mapping
from typing import Any, Literal

import onnx
import onnxruntime
import torch

from octavo.arguments import checked
from octavo.engines.dtypes import check_dtypes
from octavo.engines.execution import Execution
from octavo.engines.onnx import export_onnx
from octavo.engines.onnxruntime_kernels import read_executions
from octavo.engines.onnxruntime_model import is_quantized, rewritten, signed_activations
from octavo.engines.signature import Compiled, Signature, signature_of
from octavo.errors import QuantizationError, reason
from octavo.files import scratch
from octavo.network.graph import Graph
from octavo.network.placement import compute_heavy
from octavo.network.quantized import Quantized, graph_of, target_of
from octavo_serve.onnxruntime import optimizers_without, options as session_options


@checked
def compile_onnxruntime(
    net: Quantized | Graph,
    *,
    threads: int | None = None,
    fusion: Literal["all", "none"] = "all",
    network: onnx.ModelProto | None = None,
) -> "OnnxRuntimeModel":
    """The network, compiled for the CPU. Of a captured graph the float network: the baseline to compare with.

    threads  that work on one call; None leaves the number to ONNX Runtime
    fusion   "all": integer kernels for what lies between QuantizeLinear and DequantizeLinear; "none": node by node as
             the file says, in float: to tell what the file says from what the fusions make of it
    network  what `export_onnx` wrote of this network, if it is there already
    raises   QuantizationError if the network cannot be written as ONNX, or ONNX Runtime refuses it
    """
    graph, target = graph_of(net), target_of(net)
    check_dtypes(graph, "ONNX Runtime")
    network = network or export_onnx(net)
    try:
        session, optimized = session_of(network, threads=threads, fusion=fusion)
    except Exception as error:  # its classes share no base but this
        raise QuantizationError(
            asked="compile for ONNX Runtime",
            seen=f"it failed ({reason(error)})",
            remedy='use another engine, or make the plan with target="tensorrt", whose int8 every reader knows',
        ) from error
    executions = read_executions(optimized, list(compute_heavy(graph, target).values()))
    size_mb = network.ByteSize() / 1e6
    return OnnxRuntimeModel(session, size_mb=size_mb, executions=executions, signature=signature_of(graph))


def session_of(
    network: onnx.ModelProto,
    *,
    threads: int | None = None,
    fusion: Literal["all", "none"] = "all",
    profile: str | None = None,
) -> tuple[onnxruntime.InferenceSession, onnx.ModelProto]:
    """(a session that computes what `network` says, the graph that it runs, without its weights).

    profile  where it writes a profile of its calls, which `end_profiling` finishes
    """
    options = session_options(threads=threads)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
    without = optimizers_without(quantized=is_quantized(network), signed=signed_activations(network))
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fusion == "all" else levels.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    serialized = (rewritten(network) if fusion == "all" else network).SerializeToString()
    with scratch() as folder:
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        session = onnxruntime.InferenceSession(
            serialized, options, providers=["CPUExecutionProvider"], disabled_optimizers=without
        )
        return session, onnx.load(options.optimized_model_filepath, load_external_data=False)


class OnnxRuntimeModel(Compiled):
    """A compiled network, called like the user's model, with tensors on the CPU. May be called from several threads.

    size_mb  megabytes (10⁶ bytes) of the ONNX model that it was compiled from
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        *,
        size_mb: float,
        executions: Mapping[str, Execution],
        signature: Signature,
    ) -> None:
        self.session, self.size_mb = session, size_mb
        self._executions, self._signature = executions, signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's model would return; inputs are read in place, outputs are new tensors."""
        names = self._signature.tensors
        arrays = self.session.run(list(names), self._signature.arrays(args, kwargs))
        return self._signature.unflatten(dict(zip(names, map(torch.from_numpy, arrays), strict=True)))

    def executions(self) -> dict[str, Execution]:
        """{user's layer: how it runs} for every compute-heavy operation, read from the graph that is run."""
        return dict(self._executions)
