"""engine="auto": every engine that can be used here, compiled, checked against the simulation, and timed.

Which engine is fastest depends on the network and the machine, and now and then it is none of the integer ones: the
winner is timed beside its own float32 and bfloat16, and a warning says so where those are as fast.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from octavo import engines
from octavo.engines import available
from octavo.errors import QuantizationError
from octavo.network.calibrate import Params
from octavo.network.graph import Graph, network_inputs
from octavo.network.simulate import simulate
from octavo.recovery.evaluate import Latencies, latency_ms
from octavo.workflow.verify import verify

AUTO = "auto"
LOG = logging.getLogger("octavo")
# An engine rounds where the simulation does, give or take a step: it is 10 dB nearer to it or more, in all networks
# measured (docs/engines.md). One as far from it as float is, or further, computes something else.
NEARER_DB = 3.0
WITH_FLOAT: dict[str, tuple[str, ...]] = {"openvino": ("f32", "bf16"), "inductor": ("f32", "bf16"), "onnxruntime": ()}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine that was chosen, and why.

    latencies  milliseconds of the integer network on each engine, in one interleaved run
    float_ms   of the chosen engine's own float network beside it, {"int8", "f32", "bf16"}; empty if it has none
    rejected   {engine: why it was not timed}
    """

    engine: str
    latencies: Latencies
    float_ms: Latencies
    rejected: Mapping[str, str]

    @property
    def fastest(self) -> str:
        """ "int8", or the float precision that is faster on this engine."""
        return min(self.float_ms, key=lambda name: self.float_ms[name].median_ms) if self.float_ms else "int8"

    def __str__(self) -> str:
        ranking = sorted(self.latencies, key=lambda name: self.latencies[name].median_ms)
        timed = ", ".join(f"{name} {self.latencies[name].median_ms:.3g} ms" for name in ranking)
        lines = [f"{self.engine} is the fastest engine for this network here: {timed}"]
        lines += [f"{name} is out: {reason}" for name, reason in self.rejected.items()]
        if self.float_ms:
            times = ", ".join(f"{name} {latency.median_ms:.3g} ms" for name, latency in self.float_ms.items())
            lines.append(f"beside its own float network: {times}")
        if self.fastest != "int8":
            lines.append(f"int8 is not the fastest for this network: {self.fastest} is")
        return "; ".join(lines)


def compile(graph: Graph, params: Params | None, *, engine: str = "openvino", **options: Any) -> engines.Compiled:
    """The quantized network, ready to be called like the user's model.

    engine   "auto" compiles, checks and times all that can be used here and takes the fastest: see `choose_engine`.
             What it found is logged, and is the `choice` of the network that comes back
    params   None compiles the float network, where the engine can: the baseline to compare with
    options  go to the engine's own function (`compile_openvino`, …); "auto" takes none
    raises   QuantizationError for an unknown engine, or one whose package is not installed
    """
    if engine != AUTO:
        return engines.compile(graph, params, engine=engine, **options)
    if params is None or options:
        raise QuantizationError(
            asked='compile with engine="auto"',
            seen="there are no parameters" if params is None else f"options were given: {', '.join(options)}",
            remedy=f"name one of the engines {', '.join(available())}",
        )
    compiled, choice = choose_engine(graph, params)
    vars(compiled)["choice"] = choice
    LOG.info("%s", choice)
    if choice.fastest != "int8":
        warnings.warn(str(choice), UserWarning, stacklevel=2)
    return compiled


def choose_engine(
    graph: Graph, params: Params, example: Any = None, *, rounds: int = 15
) -> tuple[engines.Compiled, Choice]:
    """(The network on the engine that is fastest here, how that was found out).

    example  what is timed, in the form of `capture`'s; None takes the captured one
    raises   QuantizationError if no engine can run the network as the simulation says
    """
    args, kwargs = (graph.example_args, graph.example_kwargs) if example is None else network_inputs(graph, example)
    batch = kwargs or args
    candidates: dict[str, engines.Compiled] = {}
    rejected: dict[str, str] = {}
    names = [name for name in available() if name != "reference"] or ["reference"]
    simulated = simulate(graph, params)
    noise_db = verify(graph, simulated, [batch]).sqnr_db
    for name in names:
        try:
            network = engines.compile(graph, params, engine=name)
            nearness_db = verify(simulated, network, [batch]).sqnr_db
        except QuantizationError as error:
            rejected[name] = error.seen
            continue
        if nearness_db < noise_db + NEARER_DB:
            rejected[name] = f"{nearness_db:.1f} dB from the simulation, which is {noise_db:.1f} dB from float"
        else:
            candidates[name] = network
    if not candidates:
        raise QuantizationError(
            asked='compile with engine="auto"',
            seen="; ".join(f"{name} {reason}" for name, reason in rejected.items()),
            remedy='use engine="reference", and report the network',
        )
    latencies = _timed(candidates, args, kwargs, rounds)
    winner = min(candidates, key=lambda name: latencies[name].median_ms)
    beside = {"int8": candidates[winner]} | {
        precision: engines.compile(graph, None, engine=winner, precision=precision)
        for precision in WITH_FLOAT.get(winner, ())
    }
    float_ms = _timed(beside, args, kwargs, rounds) if len(beside) > 1 else Latencies()
    return candidates[winner], Choice(engine=winner, latencies=latencies, float_ms=float_ms, rejected=rejected)


def _timed(networks: Mapping[str, engines.Compiled], args: Any, kwargs: Any, rounds: int) -> Latencies:
    def call(network: engines.Compiled) -> Callable[[], object]:
        return lambda: network(*args, **kwargs)

    with torch.inference_mode():
        return latency_ms({name: call(network) for name, network in networks.items()}, rounds=rounds)


def export(graph: Graph, params: Params | None, path: str | PathLike[str]) -> None:
    """Write the network as one ONNX model with QuantizeLinear and DequantizeLinear, for any engine that reads them.

    Dynamic axes are those of `graph`; what the plan leaves in float is float there. With a plan for the target
    "tensorrt" the model is checked against the rules that TensorRT documents (`octavo.engines.tensorrt`).
    params  None writes the float network
    raises  QuantizationError for an operation that ONNX cannot express, or a rule that is broken
    """
    from octavo.engines.onnx import export_onnx  # noqa: PLC0415 (the exporter takes seconds to import)
    from octavo.engines.tensorrt import check_tensorrt  # noqa: PLC0415

    model = export_onnx(graph, params)
    if params is not None and params.plan.target.name == "tensorrt":
        check_tensorrt(model)
    Path(path).write_bytes(model.SerializeToString())
