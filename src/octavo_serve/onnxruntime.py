"""ONNX Runtime: how a session is told to compute what the model says. `octavo.engines.onnxruntime` uses it too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[Any]

# ONNX Runtime 1.32 moves a QuantizeLinear of int8 before a Transpose and gives it the zero-point of a uint8.
INVALID = "QDQPropagationTransformer"
TO_FLOAT = "MatMulAddFusion"  # into a Gemm that runs in float


def optimizers_without(*, quantized: bool, signed: bool) -> list[str]:
    """The optimizers under which ONNX Runtime computes something else, or in float.

    quantized  anything in the model is in integers
    signed     an activation is rounded to int8, and not to uint8
    """
    return [TO_FLOAT] * quantized + [INVALID] * signed


def options(*, threads: int | None = None) -> onnxruntime.SessionOptions:
    """What a session is told.

    threads  that work on one call; None leaves the number to ONNX Runtime
    """
    found = onnxruntime.SessionOptions()
    found.log_severity_level = 3  # it warns that an optimized graph is for this machine only
    # A weight alone in integers is multiplied in float: by default MatMulNBits rounds the other input, unasked.
    found.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if threads is not None:
        found.intra_op_num_threads = threads
    return found


def served(
    model: bytes, names: Sequence[str], *, without: Sequence[str], threads: int | None
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """A function of arrays by name that returns the outputs called `names`. Whatever ONNX Runtime raises, it raises.

    model    rewritten for it already
    without  the optimizers to leave out
    """
    session = onnxruntime.InferenceSession(
        model, options(threads=threads), providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
    )

    def run(arrays: Mapping[str, Array]) -> list[Array]:
        found: list[Array] = session.run(list(names), dict(arrays))
        return found

    return run
