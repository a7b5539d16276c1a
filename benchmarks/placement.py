"""What finer scales cost in time: two plans of one network on one engine, in one process, call by call. Run it alone.

    python -m benchmarks.placement --json benchmarks/results/placement.json

Networks of convolutions: a scale for each channel of what depthwise convolutions read, beside one for the tensor.
Transformers: rows rounded on scales taken while the network runs, beside one calibrated scale for the tensor.
Reported are medians of interleaved calls and the ratio of the two; absolute times mean little on a machine shared with
others.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.networks import NETWORKS, Network
from octavo.engines import compile, target_for
from octavo.machine import machine, versions
from octavo.measure import latency_ms
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import Graph, capture
from octavo.network.plan import make_plan
from octavo.network.target import Target, by_rows

Call = Callable[[], object]
STATISTICS = ("median_ms", "p10_ms", "p90_ms")

# {what is compared: (the plans by name, the finer one first, the networks)}
COMPARISONS: dict[str, tuple[dict[str, Callable[[Target], Target]], tuple[str, ...]]] = {
    "channels": (
        {"channels": lambda target: target, "tensor": partial(replace, channels=False)},
        ("mobilenet_v2", "efficientnet_lite0", "ds_cnn_s"),
    ),
    "rows": ({"rows": by_rows, "tensor": lambda target: target}, ("minilm", "bert_base")),
}


def compiled(graph: Graph, inputs: tuple[torch.Tensor, ...], target: Target, engine: str) -> Call:
    """A call of the network, calibrated on the very inputs: how fast it is does not depend on the scales."""
    plan = make_plan(graph, target=target)
    net = choose_params(plan, observe(plan, [inputs]), "max")
    network = compile(net, engine=engine)
    return lambda: network(*inputs)


def compared(name: str, row: Network, batch: int, engine: str, what: str, rounds: int) -> dict[str, Any]:
    """The record of one network on one engine."""
    torch.manual_seed(0)
    plans, _ = COMPARISONS[what]
    model, inputs = row.build(), row.inputs(batch)
    graph = capture(model, inputs, dynamic_axes=row.dynamic_axes)
    calls = {plan: compiled(graph, inputs, change(target_for(engine)), engine) for plan, change in plans.items()}
    with torch.inference_mode():
        for call in calls.values():
            call()
        times = latency_ms(calls, rounds=rounds)
    finer, coarser = (times[plan] for plan in plans)
    return {
        "network": name,
        "random_weights": row.random_weights,
        "engine": engine,
        "batch": batch,
        "compared": what,
        "ratio": round(finer.median_ms / coarser.median_ms, 4),
        "ms": {plan: {key: round(getattr(times[plan], key), 4) for key in STATISTICS} for plan in plans},
    }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The records as a table."""
    table = Table(title="finer scales beside one for the tensor")
    for heading in ("network", "batch", "engine", "compared", "finer ms", "tensor ms", "ratio of medians"):
        table.add_column(heading, justify="left" if heading in ("network", "engine", "compared") else "right")
    for row in rows:
        finer, coarser = (
            f"{one['median_ms']:.3g} ({one['p10_ms']:.3g} … {one['p90_ms']:.3g})" for one in row["ms"].values()
        )
        cells = row["network"], str(row["batch"]), row["engine"], row["compared"], finer, coarser, f"{row['ratio']:.3f}"
        table.add_row(*cells)
    console.print(table)


def main(
    json_out: Annotated[Path, typer.Option("--json", help="where the record goes; written after every network")],
    engines: Annotated[str, typer.Option(help="comma-separated")] = "openvino,inductor,onnxruntime",
    batches: Annotated[str, typer.Option(help="comma-separated")] = "1,8",
    rounds: Annotated[int, typer.Option(help="calls of each plan")] = 60,
    compare: Annotated[str, typer.Option(help="comma-separated: channels, rows")] = ",".join(COMPARISONS),
) -> None:
    """Time both plans of every network, on every engine, at every batch size."""
    console, rows = Console(), []
    for what in compare.split(","):
        for name in COMPARISONS[what][1]:
            for engine in engines.split(","):
                for batch in map(int, batches.split(",")):
                    console.print(f"{name}, batch {batch}, {engine}, {what} …")
                    rows.append(compared(name, NETWORKS[name], batch, engine, what, rounds))
                    record = {"rows": rows, "rounds": rounds, "machine": machine(), "versions": versions()}
                    json_out.write_text(json.dumps(record, indent=1) + "\n")
    show(rows, console)


if __name__ == "__main__":
    typer.run(main)
