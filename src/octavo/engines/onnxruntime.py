"""The ONNX Runtime engine: the interchange model, read by the second of its readers."""

from typing import Any, Literal

import onnx
import onnxruntime
import torch

from octavo.engines.dtypes import check_dtypes
from octavo.engines.onnx import export_onnx
from octavo.engines.signature import Signature, signature_of
from octavo.errors import QuantizationError
from octavo.network.calibrate import Params
from octavo.network.graph import Graph

# ONNX Runtime 1.32 moves a QuantizeLinear of int8 before a Transpose and gives it the zero-point of a uint8.
INVALID = ["QDQPropagationTransformer"]


def compile_onnxruntime(
    graph: Graph,
    params: Params | None,
    *,
    threads: int | None = None,
    fusion: Literal["all", "none"] = "all",
    network: onnx.ModelProto | None = None,
) -> "OnnxRuntimeModel":
    """The network, compiled for the CPU. params=None compiles the float network: the baseline to compare with.

    threads  that work on one call; None leaves the number to ONNX Runtime
    fusion   "all": integer kernels for what lies between QuantizeLinear and DequantizeLinear; "none": node by node as
             the file says, in float: to tell what the file says from what the fusions make of it
    network  what `export_onnx` wrote of this network, if it is there already
    raises   QuantizationError if the network cannot be written as ONNX, or ONNX Runtime refuses it
    """
    check_dtypes(graph, "ONNX Runtime")
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fusion == "all" else levels.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    serialized = (network or export_onnx(graph, params)).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(
            serialized, options, providers=["CPUExecutionProvider"], disabled_optimizers=INVALID
        )
    except Exception as error:  # its classes share no base but this
        raise QuantizationError(
            asked="compile for ONNX Runtime",
            seen=f"it failed ({str(error).strip().splitlines()[0]})",
            remedy='use another engine, or make the plan with target="tensorrt", whose int8 every reader knows',
        ) from error
    return OnnxRuntimeModel(session, size_mb=len(serialized) / 1e6, signature=signature_of(graph))


class OnnxRuntimeModel:
    """A compiled network, called like the user's model, with tensors on the CPU. May be called from several threads.

    size_mb  megabytes (10⁶ bytes) of the ONNX model that it was compiled from
    """

    def __init__(self, session: onnxruntime.InferenceSession, *, size_mb: float, signature: Signature) -> None:
        self.session, self.size_mb, self._signature = session, size_mb, signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's model would return; inputs are read in place, outputs are new tensors."""
        names = self._signature.tensors
        arrays = self.session.run(list(names), self._signature.arrays(args, kwargs))
        return self._signature.unflatten(dict(zip(names, map(torch.from_numpy, arrays), strict=True)))
