"""How fast the quantized network is beside the float one: all contestants in one interleaved run."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from octavo.engines import available, compile
from octavo.measure import Latencies, latency_ms
from octavo.network.graph import Graph, call_arguments
from octavo.network.quantized import Network

CONTESTANTS = {
    "torch_eager": "torch eager, fp32",
    "torch_compile": "torch.compile, fp32",
    "openvino_fp32": "OpenVINO, fp32",
    "openvino_bf16": "OpenVINO, bf16",
    "int8": "Octavo, int8",
}


def contestants(graph: Graph, model: Network, int8: Network) -> dict[str, Any]:
    """The rows of `CONTESTANTS` that can be run here: the network in float, four ways, and on integers."""
    found: dict[str, Any] = {"torch_eager": model, "torch_compile": torch.compile(model)}
    if "openvino" in available():
        from rich.progress import track  # noqa: PLC0415 (rich is slow to import)

        precisions = {"openvino_fp32": "f32", "openvino_bf16": "bf16"}
        for name, precision in track(precisions.items(), "compiling", total=len(precisions)):
            found[name] = compile(graph, engine="openvino", precision=precision)
    return found | {"int8": int8}


def latency(models: Mapping[str, Network], batch: Any, *, rounds: int) -> tuple[Latencies, dict[str, str]]:
    """Milliseconds of a call with `batch`, and {contestant: why it cannot run}.

    torch.compile compiles before the clock starts, and does not compile every network.
    """
    from rich.progress import track  # noqa: PLC0415 (rich is slow to import)

    args, kwargs = call_arguments(batch)

    def call(model: Network) -> Callable[[], object]:
        return lambda: model(*args, **kwargs)

    calls = {name: call(model) for name, model in models.items()}
    with torch.inference_mode():
        failed = {}
        for name, warm_up in track(list(calls.items()), "warming up"):
            try:
                warm_up()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                del calls[name]
        return latency_ms(calls, rounds=rounds), failed


def latency_record(times: Latencies, failed: Mapping[str, str]) -> dict[str, Any]:
    """{"latency_ms": {contestant: median}, "latency_p10_ms": …, "latency_p90_ms": …, "latency_errors": …}."""
    fields = {"latency_ms": "median_ms", "latency_p10_ms": "p10_ms", "latency_p90_ms": "p90_ms"}
    return {"latency_errors": dict(failed)} | {
        key: {name: round(getattr(time, statistic), 3) for name, time in times.items()}
        for key, statistic in fields.items()
    }
