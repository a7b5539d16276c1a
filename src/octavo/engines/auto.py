"""engine="auto": every engine that can be used here, compiled, checked against the simulation, and timed.

Which engine is fastest depends on the network and the machine, and now and then it is none of the integer ones: the
winner is timed beside its own float32 and bfloat16, and a warning says so where those are as fast.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from octavo import engines
from octavo.arguments import checked
from octavo.engines import ENGINES, available
from octavo.engines.faults import compile_right
from octavo.errors import QuantizationError
from octavo.measure import Latencies, latency_ms
from octavo.network.device import on_cpu
from octavo.network.graph import network_inputs
from octavo.network.quantized import Network, Quantized

AUTO = "auto"


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


@checked
def choose_engine(
    net: Quantized, example: Any = None, *, check: bool = True, rounds: int = 15
) -> tuple[Network, Choice]:
    """(The network on the engine that is fastest here, how that was found out).

    example  what is timed, in the form of `capture`'s; None takes the captured one
    check    leave out engines that do not agree with the simulation
    raises   QuantizationError if no engine can run the network as the simulation says
    """
    if rounds < 1:
        raise QuantizationError(
            asked=f"time engines with rounds={rounds}",
            seen="there has to be one",
            remedy="leave it as it is by default",
        )
    net = on_cpu(net)
    graph = net.graph
    args, kwargs = (graph.example_args, graph.example_kwargs) if example is None else network_inputs(graph, example)
    contestants = dict.fromkeys(integer_engines(), net)
    candidates, latencies, rejected = race(contestants, (args, kwargs), check=check, rounds=rounds)
    winner = next(iter(latencies))
    beside = {"int8": candidates[winner]} | {
        precision: engines.compile(graph, engine=winner, precision=precision)
        for precision in ENGINES[winner].precisions
    }
    float_ms = _timed(beside, args, kwargs, rounds) if len(beside) > 1 else Latencies()
    return candidates[winner], Choice(engine=winner, latencies=latencies, float_ms=float_ms, rejected=rejected)


def integer_engines() -> list[str]:
    """The engines that a network may be deployed on here; the reference if there are none."""
    return [name for name in available() if name != "reference"] or ["reference"]


def race(
    nets: Mapping[str, Quantized], example: tuple[Any, Any], *, check: bool, rounds: int
) -> tuple[dict[str, Network], Latencies, dict[str, str]]:
    """({engine: network} of those that are right, their times, the fastest first, {engine: why it is out})."""
    candidates: dict[str, Network] = {}
    rejected: dict[str, str] = {}
    for name, net in nets.items():
        try:
            candidates[name] = (compile_right if check else engines.compile)(net, engine=name)
        except QuantizationError as error:
            rejected[name] = error.seen
    if not candidates:
        raise QuantizationError(
            asked="find the fastest engine that is right",
            seen="; ".join(f"{name}: {reason}" for name, reason in rejected.items()),
            remedy='use engine="reference", and report the network',
        )
    latencies = _timed(candidates, *example, rounds)
    order = sorted(latencies, key=lambda name: latencies[name].median_ms)
    return candidates, Latencies({name: latencies[name] for name in order}), rejected


def _timed(networks: Mapping[str, Network], args: Any, kwargs: Any, rounds: int) -> Latencies:
    def call(network: Network) -> Callable[[], object]:
        return lambda: network(*args, **kwargs)

    with torch.inference_mode():
        return latency_ms({name: call(network) for name, network in networks.items()}, rounds=rounds)
