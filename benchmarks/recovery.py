"""What recovers accuracy, network by network: calibration, repairs, layers left in float, training.

    python -m benchmarks.recovery --json benchmarks/results/recovery.json

Every column starts from the best calibration of the paper's four methods. Repairs: each alone, and together those that
the metric kept, one after the other. Partial: the fewest layers in float within 1 %. Training: as `TRAININGS` says, on
labels (ResNet-20 at eight bits) or towards the float network on unlabelled data; the epoch of least loss
is kept, so no scored sample has a say in it. On a CPU without VNNI, OpenVINO's weights have seven bits where eight are
asked for (docs/engines.md), and the row says so. Methods and repairs are chosen by the metric that is reported.

It ends with status 1 if a network loses more than AIMS allows.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor
from torch.utils._pytree import tree_map

import octavo
from octavo import Graph, Quantized, Rule, Schedule
from octavo.machine import machine, versions
from octavo.measure import paired_interval
from octavo.recovery.stepwise import samples
from octavo.workflow.stages import PAPER_METHODS
from octavo.zoo import Task, minilm, resnet20, task
from octavo.zoo.task import Batches

CONSOLE = Console()
MAX_DROP = 0.01
REPAIR_SAMPLES, REPAIR_BATCH = 64, 8


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained.

    loss        None: towards the float network alone
    distill     towards the float network as well
    batch_norm  "fold": frozen in the convolutions; "keep": live while it trains, folded afterwards
    """

    batches: Callable[[Task], Any]
    loss: Callable[[Any, Any], Tensor] | None = None
    schedule: Schedule
    optimizer: Callable[..., torch.optim.Optimizer] = octavo.recovery.finetune.sgd
    distill: Callable[[Any, Any], Tensor] | None = None
    batch_norm: str = "fold"
    ranges: tuple[str, ...] = ("fixed",)


def _images(_: Task) -> Any:
    """The 5000 labelled training images, flipped at random, with a border of four pixels to crop from."""
    return _training_images(lambda batch: batch)


def _cut_images(_: Task) -> Any:
    """The same; in half of the batches each has a rectangle of the next (Yun et al. 2019): labels mean nothing."""

    def paste(batch: Tensor) -> Tensor:
        height, width = torch.randint(8, 24, (2,)).tolist()
        top, left = int(torch.randint(33 - height, ())), int(torch.randint(33 - width, ()))
        if torch.rand(()) < 0.5:
            part = (..., slice(top, top + height), slice(left, left + width))
            batch[part] = batch.roll(1, 0)[part]
        return batch

    return _training_images(paste)


def _training_images(change: Callable[[Tensor], Tensor]) -> Any:
    parts = [f"train_{number}" for number in range(5)]
    images = torch.cat([resnet20.images(part) for part in parts])
    labels = torch.cat([resnet20.labels(part) for part in parts])

    def collate(rows: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.tensor(rows)
        batch = F.pad(images[index], (4, 4, 4, 4))
        batch = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, batch.flip(3), batch)
        corners = torch.randint(9, (len(rows), 2)).tolist()
        batch = torch.stack(
            [x[:, top : top + 32, left : left + 32] for x, (top, left) in zip(batch, corners, strict=True)]
        )
        return change(batch), labels[index]

    return torch.utils.data.DataLoader(range(len(images)), batch_size=64, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]


def _sentences(_: Task) -> Any:
    """2048 training sentences, sorted by length, none of them a test sentence."""
    first, second, _scores = minilm.pairs("test")
    usable = [sentence for sentence in dict.fromkeys(minilm.pairs("train")[0]) if sentence not in {*first, *second}]
    tokens = sorted(minilm.tokenize(usable[:: max(1, len(usable) // 2048)][:2048]), key=len)
    return list(Batches(tokens, 32, minilm.padded))


def _calibration(scored: Task) -> Any:
    return scored.calibration()


def adam(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, rate)


def cross_entropy(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


UNLABELLED = Training(batches=_calibration, schedule=Schedule(epochs=4, learning_rate=1e-5), optimizer=adam)
TRAININGS = {
    ("resnet20", 8): Training(batches=_images, loss=cross_entropy, schedule=Schedule(epochs=6, learning_rate=1e-4)),
    # Far from where it starts: about a tenth of 200 epochs, at a tenth of 0.1. Towards the float network alone, on
    # images that it has not learned by heart: whole images, or labels, end 1.3 × as far from it on images held out.
    ("resnet20", 4): Training(
        batches=_cut_images,
        distill=octavo.divergence,
        batch_norm="keep",
        ranges=("fixed", "learned"),
        schedule=Schedule(epochs=24, learning_rate=1e-2),
    ),
    ("minilm", 8): Training(batches=_sentences, schedule=Schedule(epochs=2, learning_rate=2e-5), optimizer=adam),
}

# (network, bits of weights, bits of activations)
CASES = (
    ("efficientnet_lite0", 8, 8),
    ("resnet20", 8, 8),
    ("resnet20", 4, 4),
    ("ds_cnn_s", 8, 8),
    ("lstm", 8, 8),
    ("minilm", 8, 8),
)

# {case: {column: points that it may lose at most}}
AIMS: dict[str, dict[str, float]] = {
    "efficientnet_lite0:8": {"repairs": 0.4},
    "resnet20:8": {"qat": 0.3},
    "resnet20:4": {"qat": 2.0},
    "minilm:8": {"repairs": 0.3},
}


def measure(name: str, weight_bits: int, activation_bits: int) -> dict[str, Any]:
    """The row of one network, with every repair's own metric and the intervals of the drops."""
    start = time.perf_counter()
    scored = task(name)
    model = scored.build()
    reference = scored.predict(model)
    rules = [Rule(role="weight", bits=weight_bits), Rule("*", bits=activation_bits)] if weight_bits < 8 else [Rule("*")]
    engine = "openvino" if weight_bits == 8 and name != "lstm" else "simulation"
    graph = octavo.capture(model, scored.example, dynamic_axes=scored.dynamic_axes)
    plan = octavo.make_plan(graph, rules, target="paper" if name == "lstm" else "openvino")
    stats = octavo.observe(plan, scored.calibration())
    row: dict[str, Any] = {
        "network": name, "case": f"{name}:{weight_bits}", "engine": engine,
        "weight_bits": max(q.scheme.bits for q in plan.quantizers if q.constant), "activation_bits": activation_bits,
        "machine": machine(), "metric": scored.metric, "samples": scored.samples, "float": scored.score(reference),
    }  # fmt: skip
    intervals: dict[str, Any] = {}

    def score(what: str, net: Quantized) -> float:
        network = octavo.compile(net, engine=engine) if engine == "openvino" else octavo.simulate(net)
        predictions = scored.predict(network)
        lost = paired_interval(reference, predictions, scored.score)
        intervals[what] = {"drop": lost.drop, "low": lost.low, "high": lost.high}
        CONSOLE.print(
            f"{name} {weight_bits}/{activation_bits} {what}: {scored.score(predictions):.3f}, lost {lost.drop:+.3f}"
        )
        return scored.score(predictions)

    calibrated = {method: octavo.choose_params(plan, stats, method) for method in PAPER_METHODS}
    metrics = {method: score(method, net) for method, net in calibrated.items()}
    row["method"] = max(metrics, key=lambda method: metrics[method])
    row["ptq"] = metrics[row["method"]]
    net = calibrated[row["method"]]
    row |= _repaired(net, row["ptq"], _first(graph, scored), score)
    row |= _partial(scored, model, rules, engine, plan.target)
    training = TRAININGS.get((name, weight_bits), UNLABELLED)
    if training.batch_norm == "keep":
        graph = octavo.capture(model, scored.example, dynamic_axes=scored.dynamic_axes, batch_norm="keep")
        plan = octavo.make_plan(graph, rules, target=plan.target)
        net = octavo.choose_params(plan, octavo.observe(plan, scored.calibration()), row["method"])
    row |= _trained(net, scored, training, score)
    return row | {"drops": intervals, "minutes": round((time.perf_counter() - start) / 60, 2)}


def _first(graph: Graph, scored: Task) -> list[Any]:
    """REPAIR_SAMPLES of the calibration samples, REPAIR_BATCH at a time: learned rounding takes one batch a step."""
    axis, found = graph.dynamic_axes[0], list[Any]()
    for batch in scored.calibration():
        for start in range(0, samples(graph, batch), REPAIR_BATCH):
            size = min(REPAIR_BATCH, samples(graph, batch) - start)
            found.append(tree_map(lambda x, start=start, size=size: x.narrow(axis, start, size), batch))
    return found[: REPAIR_SAMPLES // REPAIR_BATCH]


def _repaired(net: Quantized, ptq: float, batches: list[Any], score: Any) -> dict[str, Any]:
    """{"repairs": metric of those that were kept, "kept", "each": {repair: metric of it alone}}."""
    alone: dict[str, float] = {}
    best, kept, last = ptq, [], net
    for name in octavo.REPAIRS:
        found = octavo.repair(net, batches, [name])
        alone[name] = score(name, found)
        together = octavo.repair(last, batches, [name]) if kept else found
        metric = score(f"{' + '.join([*kept, name])}", together) if kept else alone[name]
        if metric > best:
            best, last = metric, together
            kept.append(name)
    return {"repairs": best, "kept": kept, "each": alone}


def _partial(scored: Task, model: Any, rules: list[Rule], engine: str, target: Any) -> dict[str, Any]:
    """{"partial": metric, "kept_float": layers} of the smallest set in float within 1 %, without repairs."""
    from octavo.workflow import stages  # noqa: PLC0415 (only its table is needed, without one row)

    table = stages.STAGES
    stages.STAGES = {name: stage for name, stage in table.items() if name in ("ptq", "partial")}
    try:
        with TemporaryDirectory() as out:
            result = octavo.quantize(
                model,
                calibration=scored.calibration(),
                evaluate=lambda network: scored.score(scored.predict(network)),
                example=scored.example,
                dynamic_axes=scored.dynamic_axes,
                rules=rules,
                target=target,
                engine=engine,
                max_drop=MAX_DROP,
                min_int8=0.0,
                out=out,
                progress=False,
            )
    finally:
        stages.STAGES = table
    return {"partial": result.metric, "kept_float": list(result.kept_float), "met": result.met}


def _trained(net: Quantized, scored: Task, training: Training, score: Any) -> dict[str, Any]:
    """{"qat": the best metric, "ranges": {how ranges were trained: metric, minutes, losses}}."""
    results: dict[str, dict[str, Any]] = {}
    for ranges in training.ranges:
        torch.manual_seed(0)
        start = time.perf_counter()
        found = octavo.finetune(
            net,
            train=training.batches(scored),
            ranges=ranges,  # type: ignore[arg-type]
            loss=training.loss,
            distill=training.distill,
            schedule=training.schedule,
            optimizer=training.optimizer,
        )
        results[ranges] = {
            "minutes": round((time.perf_counter() - start) / 60, 2),
            "losses": [epoch.loss for epoch in found.history.epochs[1:]],
            "metric": score(f"trained, ranges {ranges}", found.net),
        }
    return {"qat": max(result["metric"] for result in results.values()), "ranges": results}


def main(
    out: Annotated[Path | None, typer.Option("--json", help="Where to write the record, after every network.")] = None,
    networks: Annotated[str, typer.Option(help="Some of the cases, as NAME or NAME:BITS.")] = "",
) -> None:
    """Measure every case, and write the record."""
    asked = [name for name in networks.split(",") if name]
    rows = json.loads(out.read_text())["rows"] if out is not None and out.exists() and asked else []
    for name, weights, activations in CASES:
        if not asked or name in asked or f"{name}:{weights}" in asked:
            torch.manual_seed(0)
            row = measure(name, weights, activations)
            measured = {old["case"]: old for old in rows} | {row["case"]: row}
            rows = [measured[case] for case in (f"{name}:{bits}" for name, bits, _ in CASES) if case in measured]
            if out is not None:
                record = {"rows": rows, "versions": versions()}
                out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        CONSOLE.print(
            {key: row[key] for key in ("network", "weight_bits", "float", "ptq", "repairs", "partial", "qat")}
        )
    missed = [
        f"{row['case']} {column}: {row['float'] - row[column]:.2f} points lost, {most} allowed"
        for row in rows
        for column, most in AIMS.get(row["case"], {}).items()
        if row["float"] - row[column] > most
    ]
    for line in missed:
        CONSOLE.print(line, style="red")
    raise typer.Exit(bool(missed))


if __name__ == "__main__":
    typer.run(main)
