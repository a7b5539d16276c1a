"""Partial quantization where calibration cannot do: ResNet-20 with four-bit activations.

    python -m benchmarks.partial --json benchmarks/results/partial-resnet20.json

Beside what the road finds: the metric against the number of layers left in float, the most sensitive first; and sets of
fewer layers, the most promising by the sum of the sensitivities that they remove, none of which should meet the goal.
"""

import json
import math
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

import octavo
from octavo import Result, Rule
from octavo.machine import machine, versions
from octavo.network.partial import keep_float, layers
from octavo.network.simulate import simulate
from octavo.zoo import task

RULES = [Rule(role="input", bits=4), Rule(role="rhs", bits=4), Rule("*")]  # rhs: the residual branch


def measure(max_drop: float, smaller: int) -> dict[str, Any]:
    """The record: the set found, what it cost, the curve, and the sets that were tried to beat it."""
    scored = task("resnet20")

    def evaluate(network: Any) -> float:
        return scored.score(scored.predict(network))

    with TemporaryDirectory() as out:
        result = octavo.quantize(
            scored.build(),
            calibration=scored.calibration(),
            evaluate=evaluate,
            rules=RULES,
            max_drop=max_drop,
            min_int8=0.0,
            engine="simulation",
            out=out,
        )
    full = octavo.make_plan(result.net.graph, RULES, target="paper")
    stats = octavo.observe(full, scored.calibration())
    net = octavo.choose_params(full, stats, result.best.method)

    def metric(kept: tuple[str, ...]) -> float:
        return evaluate(simulate(keep_float(net, kept) if kept else net))

    count = len(layers(full))
    ranked = [row.layer for row in result.sensitivities]
    partial = [trial for trial in result.trials if trial.stage == "partial"]
    goal = result.reference.metric - result.goal.allowed(result.reference)
    beaten = list(smaller_sets(result, smaller))
    return {
        "model": "resnet20",
        "activation_bits": 4,
        "max_drop": max_drop,
        "float": result.reference.metric,
        "ptq": max(trial.metric for trial in result.trials if trial.stage.startswith("ptq")),
        "partial": result.metric,
        "met": result.met,
        "kept_float": result.kept_float,
        "layers": count,
        "evaluations": len(partial),
        "evaluations_allowed": math.floor(2 * math.log2(count) + 10),
        "curve": [
            {"left_in_float": k, "metric": metric(tuple(ranked[:k]))} for k in track(range(count), "curve", total=count)
        ],
        "smaller_sets": {
            "size": len(beaten[0]) if beaten else 0,
            "tried": len(beaten),
            "meeting_the_goal": sum(metric(kept) >= goal for kept in track(beaten, "smaller sets")),
        },
        "versions": versions(),
        "machine": machine(),
    }


def smaller_sets(result: Result, number: int) -> list[tuple[str, ...]]:
    """The sets of two layers fewer that remove most of the summed sensitivity."""
    loss = {row.layer: row.loss for row in result.sensitivities}
    size = len(result.kept_float) - 2
    if size < 1:
        return []
    likely = sorted(loss, key=loss.__getitem__, reverse=True)[: size + 8]
    sets = sorted(combinations(likely, size), key=lambda kept: -sum(loss[layer] for layer in kept))
    return sets[:number]


def main(
    max_drop: Annotated[float, typer.Option(help="of the float metric, relative")] = 0.01,
    smaller: Annotated[int, typer.Option(help="how many smaller sets to try")] = 100,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the record here")] = None,
) -> None:
    """Find the smallest set of layers to leave in float, and try to beat it."""
    record = measure(max_drop, smaller)
    Console().print(record)
    if json_file:
        json_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
