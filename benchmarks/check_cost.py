"""What the check of an engine costs, and how near engines are to its bar: every network of the zoo, every engine.

    python -m benchmarks.check_cost --json benchmarks/results/check-cost.json

Seconds of the whole check: the simulation, the engine, and the moved simulations where they are needed, on the samples
that calibration kept. `load` pays for the engine's run alone, and once.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import typer
from rich.console import Console
from rich.table import Table

import octavo
from octavo import engines
from octavo.engines import ENGINES, available, target_for
from octavo.engines.check import agreement, moved, ran, simulated
from octavo.engines.faults import compile_right
from octavo.errors import QuantizationError
from octavo.machine import machine, versions
from octavo.zoo import task

NAMES = ("efficientnet_lite0", "resnet20", "ds_cnn_s", "lstm", "minilm")
METHODS = ("max", "entropy")


def measured(name: str, engine: str, method: str, rounds: int) -> dict[str, Any]:
    """Seconds that the check of one network takes, and what it finds."""
    scored = task(name)
    graph = octavo.capture(scored.build(), scored.example, dynamic_axes=scored.dynamic_axes)
    plan = octavo.make_plan(graph, target=target_for(engine))
    net = octavo.choose_params(plan, octavo.observe(plan, scored.calibration()), method)
    network = engines.compile(net, engine=engine)
    seconds = []
    with patch.object(engines, "compile", lambda *_, **__: network):
        for _ in range(rounds):
            start = time.perf_counter()
            compile_right(net, engine=engine)
            seconds.append(time.perf_counter() - start)
    wanted, found = simulated(net, net.samples), ran(network, net.samples)

    def draws() -> Any:
        return moved(net, net.samples, ENGINES[engine].near_tie)

    result = agreement(wanted, found, draws)
    return {
        "network": name,
        "engine": engine,
        "method": method,
        "samples": sum(len(args[0]) if args else len(next(iter(kw.values()))) for args, kw in net.samples),
        "seconds": round(statistics.median(seconds), 3),
        "slowest": round(max(seconds), 3),
        "nearness_db": round(min(result.nearness_db, 200.0), 1),
        "bar_db": round(result.bar_db, 1),
        "holds": result.holds,
    }


def main(
    path: Annotated[Path | None, typer.Option("--json", help="write what was measured there")] = None,
    rounds: Annotated[int, typer.Option(help="how often each check is timed")] = 5,
    only: Annotated[list[str] | None, typer.Option("--network", help="some networks")] = None,
) -> None:
    rows = []
    table = Table("network", "engine", "calibrated by", "seconds", "engine, dB", "bar, dB")
    for name in only or NAMES:
        for engine in (engine for engine in available() if engine != "reference"):
            for method in METHODS:
                try:
                    row = measured(name, engine, method, rounds)
                except QuantizationError as error:
                    Console().print(f"{name} on {engine}: {error.seen}", markup=False)
                    continue
                rows.append(row)
                shown = ("network", "engine", "method", "seconds", "nearness_db", "bar_db")
                table.add_row(*(str(row[key]) for key in shown))
    Console().print(table)
    if path is not None:
        record = {"machine": machine(), "versions": versions(), "checks": rows}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
