"""Scales of channels beside one scale for the tensor where few samples calibrate: on those, and on others.

    python -m benchmarks.few_samples --json benchmarks/results/few-samples.json

EfficientNet-Lite0 on OpenVINO, calibrated on the demo's 48 views of 12 photographs. Other photographs say what that is
worth: how near their outputs are to float's, in how many the first class is the same, how many labelled ones are right.
Then what `octavo.quantize` makes of the same few, scored on the labelled ones; without a stage that costs time.
"""

import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import octavo
from octavo.machine import machine, versions
from octavo.zoo import photographs
from octavo.zoo.demo import ENGINE, METHODS, TARGETS, accuracy

SEARCHED = 12  # trials: all methods with scales of channels, and the paper's with one a tensor


def measured() -> list[dict[str, Any]]:
    """A row for each placement of scales and each method."""
    task = photographs.make_task()
    model, batches = task.build(), task.calibration()
    graph = octavo.capture(model, task.example)
    with torch.inference_mode():
        reference = torch.cat([graph(batch) for batch in batches])
    rows = []
    for scales, method in product(TARGETS, METHODS):
        plan = octavo.make_plan(graph, target=TARGETS[scales])
        net = octavo.choose_params(plan, octavo.observe(plan, batches), method)
        network = octavo.compile(net, engine=ENGINE)
        with torch.inference_mode():
            calibrating = octavo.sqnr_db(reference, torch.cat([network(batch) for batch in batches]))
        rows.append(
            {"scales": scales, "method": method, "calibrating_db": calibrating, **accuracy(task, model, network)}
        )
    return rows


def searched() -> dict[str, Any]:
    """The record of a search that ends before layers are left in float."""
    task = photographs.make_task()
    model = task.build()
    result = octavo.quantize(
        model,
        calibration=task.calibration(),
        evaluate=lambda network: task.score(task.predict(network)),
        example=task.example,
        engine=ENGINE,
        trials=SEARCHED,
    )
    found = {"summary": result.summary, "trials": result.record()["trials"]}
    return {**found, **accuracy(task, model, result.model)}


def main(json_out: Annotated[Path, typer.Option("--json", help="where the record goes")]) -> None:
    """Measure, print a table, and write the record."""
    rows = measured()
    record = {"rows": rows, "search": searched(), "machine": machine(), "versions": versions()}
    json_out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table = Table("scales", "method", "dB, calibrating", "dB, others", "same class %", "top-1 %", "float")
    for row in rows:
        numbers = (
            row["calibrating_db"],
            row["sqnr_db"],
            row["agreement"],
            row["metric"]["int8"],
            row["metric"]["float"],
        )
        table.add_row(row["scales"], row["method"], *(f"{number:.2f}" for number in numbers))
    Console().print(table)
    print(record["search"]["summary"])


if __name__ == "__main__":
    typer.run(main)
