"""Float against int8 accuracy of a zoo network, on the engine that would be deployed, sample by sample.

    python benchmarks/accuracy.py --model resnet20 --method entropy --json benchmarks/results/resnet20-entropy.json

METHOD is max, entropy, mse, a percentile like 99.99, `float` for the float network alone, or `all` for every method of
the paper. The best of `all` is picked on the very samples that score it, so its interval is a little too kind.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from octavo.engines import compile
from octavo.errors import QuantizationError
from octavo.machine import machine, versions
from octavo.measure import paired_interval
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.target import TARGETS
from octavo.numerics import METHODS
from octavo.zoo import TASKS, Task, task

PAPER_METHODS = ("max", "entropy", "99.9", "99.99", "99.999", "99.9999")
CONSOLE = Console()


class Stopwatch(dict[str, float]):
    """{stage: seconds spent in it}."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce the stage, and add the time it takes."""
        CONSOLE.print(f"[dim]{name} …[/dim]")
        start = time.perf_counter()
        yield
        self[name] = round(self.get(name, 0.0) + time.perf_counter() - start, 2)


def measure(name: str, methods: list[str], target: str, engine: str) -> dict[str, Any]:
    """The JSON record of one network: its float metric, and what each method makes of it."""
    seconds = Stopwatch()
    with seconds.stage("load"):
        scored = task(name)
        model = scored.build()
    with seconds.stage("score float"):
        reference = scored.predict(model, progress=True)
    record: dict[str, Any] = {
        "model": name,
        "engine": engine,
        "target": target,
        "metric": {"name": scored.metric, "float": round(scored.score(reference), 4), "samples": scored.samples},
    }
    if methods:
        with seconds.stage("capture"):
            graph = capture(model, scored.example, dynamic_axes=scored.dynamic_axes)
            plan = make_plan(graph, target=target)
        with seconds.stage("observe"):
            stats = observe(plan, scored.calibration(), progress=True)
        record["coverage"] = asdict(plan.coverage)
        record["methods"] = {}
    for method in methods:
        with seconds.stage(f"quantize {method}"):
            network = compile(choose_params(plan, stats, method), engine=engine)
        with seconds.stage(f"score {method}"):
            predictions = scored.predict(network, progress=True)
        record["methods"][method] = compared(scored, reference, predictions)
    return record | {"versions": versions(), "machine": machine(), "seconds": seconds}


def compared(scored: Task, reference: Tensor, predictions: Tensor) -> dict[str, Any]:
    """The metric of `predictions` and what was lost, in points: {"int8", "drop", "interval", "confidence"}."""
    lost = paired_interval(reference, predictions, scored.score)
    return {
        "int8": round(scored.score(predictions), 4),
        "drop": round(lost.drop, 4),
        "interval": [round(lost.low, 4), round(lost.high, 4)],
        "confidence": lost.confidence,
    }


def with_best(record: dict[str, Any]) -> dict[str, Any]:
    """The record whose "metric" also holds the int8 side of its best method, named in "best"."""
    methods = record.get("methods")
    if not methods:
        return record
    best = max(methods, key=lambda method: methods[method]["int8"])
    return record | {"best": best, "metric": record["metric"] | methods[best]}


def show(record: dict[str, Any]) -> None:
    """Print the float metric and a row for each method."""
    metric = record["metric"]
    table = Table(
        "method", metric["name"], "drop", "95 % interval", title=f"{record['model']}, N = {metric['samples']}"
    )
    table.add_row("float", f"{metric['float']:.2f}", "", "")
    for name, row in record.get("methods", {}).items():
        low, high = row["interval"]
        table.add_row(name, f"{row['int8']:.2f}", f"{row['drop']:+.2f}", f"{low:+.2f} … {high:+.2f}")
    CONSOLE.print(table)


def main(
    model: Annotated[str, typer.Option(help=f"one of {', '.join(TASKS)}")],
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}, another percentile, float, or all")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write the record here")] = None,
    target: Annotated[str, typer.Option(help=f"one of {', '.join(TARGETS)}")] = "openvino",
    engine: Annotated[str, typer.Option(help="what executes the integers")] = "openvino",
) -> None:
    """Score a zoo network in float and on an integer engine, on the same samples."""
    methods = {"all": list(PAPER_METHODS), "float": []}.get(method, [method])
    try:
        record = {"method": method} | with_best(measure(model, methods, target, engine))
    except QuantizationError as error:
        CONSOLE.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from error
    show(record)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
