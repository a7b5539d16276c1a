"""OpenVINO: what its CPU plugin is told, and how a compiled network is called. `octavo.engines.openvino` uses it."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy.typing as npt
import openvino as ov

from octavo_serve.openvino_repairs import repair

Array = npt.NDArray[Any]


def properties(
    *,
    threads: int | None = None,
    hint: str = "latency",
    precision: str = "f32",
    cache: str | PathLike[str] | None = None,
) -> dict[str, Any]:
    """What the CPU plugin is told.

    threads    None leaves the number to OpenVINO
    hint       "latency" or "throughput"
    precision  of what does not run on integers: "f32" or "bf16"
    cache      a folder for what it compiles: the next process on this machine reads it there
    """
    found: dict[str, Any] = {
        "PERFORMANCE_HINT": hint.upper(),
        "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # no rounding that is not in the plan, where only a weight is quantized
    }
    if threads is not None:
        found["INFERENCE_NUM_THREADS"] = threads
    if cache is not None:
        found["CACHE_DIR"] = str(cache)
    return found


class Requests:
    """A compiled network as a function of arrays by name. May be called from several threads."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._compiled = compiled
        self._reads = {name for port in compiled.inputs for name in port.get_names()}  # not inputs that nothing reads
        self._idle: list[ov.InferRequest] = []  # a request serves one call at a time

    def __call__(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The outputs in order, new arrays; inputs are read in place."""
        inputs = {name: _shareable(array) for name, array in arrays.items() if name in self._reads}
        try:
            request = self._idle.pop()
        except IndexError:  # another thread may have taken the last one since we looked
            request = self._compiled.create_infer_request()
        results = request.infer(inputs, share_inputs=True, share_outputs=True)
        outputs = [result.copy() for result in results.values()]  # the request will write there again
        self._idle.append(request)
        return outputs


def _shareable(array: Array) -> Array:
    """`array`; its copy where OpenVINO refuses to read it in place: a number of no axes that cannot be written to."""
    return array if array.ndim or array.flags.writeable else array.copy()


def served(model: bytes, *, threads: int | None, cache: str | PathLike[str] | None) -> Requests:
    """The ONNX `model`, compiled. Whatever OpenVINO raises, it raises."""
    core = ov.Core()
    network = core.read_model(model)
    repair(core, network)
    return Requests(core.compile_model(network, "CPU", properties(threads=threads, cache=cache)))
