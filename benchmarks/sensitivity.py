"""What the sensitivity of every layer costs, exact and fast, and how well the two agree. Run it alone on the machine.

    python -m benchmarks.sensitivity --model efficientnet_lite0 --json OUT

Contestants are interleaved, round by round: `exact`, `fast`, one float forward pass, and the N separate evaluations
that `exact` replaces, each of the same eight calibration samples. The forward pass is the user's own float model's.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.utils._pytree import tree_map

from octavo.machine import machine, versions
from octavo.measure import latency_ms
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import call_arguments, capture
from octavo.network.partial import layers, quantize_only
from octavo.network.placement import make_plan
from octavo.network.quantized import Quantized
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.recovery.sensitivity import exact, fast, rank_correlation
from octavo.zoo import TASKS, task

SAMPLES = 8


def measure(model: str, bits: int | None, rounds: int) -> dict[str, Any]:
    """The record: times, their ratios, and the rank correlation."""
    scored = task(model)
    network = scored.build()
    graph = capture(network, scored.example, dynamic_axes=scored.dynamic_axes)
    rules = (Rule(role="input", bits=bits), EVERYTHING) if bits else (EVERYTHING,)
    plan = make_plan(graph, rules)
    batches = scored.calibration()
    net = choose_params(plan, observe(plan, batches), "99.99")
    batch = first(batches[0], SAMPLES)
    names = layers(plan)
    networks = [simulate(quantize_only(net, [name])) for name in names]
    times = latency_ms(
        {
            "exact": lambda: exact(net, [batch]),
            "fast": lambda: fast(net, [batch]),
            "forward": forward(network, batch),
            "separate": separate(networks, batch),
        },
        rounds=rounds,
        warmup=1,
    )
    return {
        "model": model,
        "activation_bits": bits or 8,
        "layers": len(names),
        "batch": SAMPLES,
        "median_ms": {name: round(time.median_ms, 2) for name, time in times.items()},
        "p10_ms": {name: round(time.p10_ms, 2) for name, time in times.items()},
        "p90_ms": {name: round(time.p90_ms, 2) for name, time in times.items()},
        "exact_to_separate": round(times.ratio("exact", "separate"), 3),
        "fast_to_forward": round(times.ratio("fast", "forward"), 3),
        "rank_correlation": round(correlation(net, batches), 4),
        "versions": versions(),
        "machine": machine(),
    }


def first(batch: Any, samples: int) -> Any:
    """The first samples of a batch."""
    return tree_map(lambda leaf: leaf[:samples], batch)


def forward(network: Callable[..., Any], batch: Any) -> Callable[[], object]:
    """One float forward pass."""
    args, kwargs = call_arguments(batch)

    def call() -> object:
        with torch.no_grad():
            return network(*args, **kwargs)

    return call


def separate(networks: list[Any], batch: Any) -> Callable[[], object]:
    """One forward pass of every network in which a single layer is quantized."""
    args, kwargs = call_arguments(batch)

    def call() -> object:
        with torch.no_grad():
            return [network(*args, **kwargs) for network in networks]

    return call


def correlation(net: Quantized, batches: list[Any]) -> float:
    """Spearman's, between the two rankings on up to two batches."""
    return rank_correlation(exact(net, batches[:2]), fast(net, batches[:2]))


def main(
    model: Annotated[str, typer.Option(help=f"one of {', '.join(TASKS)}")] = "efficientnet_lite0",
    bits: Annotated[int | None, typer.Option(help="of activations, 8 by default")] = None,
    rounds: Annotated[int, typer.Option(help="how often each is timed")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the record here")] = None,
) -> None:
    """Time the two ways to rank layers, and compare them."""
    record = measure(model, bits, rounds)
    Console().print(record)
    if json_file:
        json_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
