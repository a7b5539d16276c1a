"""What each step of quantization is worth on the engine that is deployed, beside NNCF, on networks with labelled data.

    python -m benchmarks.ablation --json benchmarks/results/ablation.json --networks yolox_nano,deeplab

The steps: float → one scale for each tensor → one for each channel in front of depthwise convolutions (the default)
→ repairs; and, where linears and matmuls are most of the network, rows on scales taken while it runs. Repairs start
from the best calibration with scales of channels or rows; each of `octavo.REPAIRS` (or of `--repairs`) is tried in
turn and kept if the metric is better for it, with the samples that `octavo.quantize` would repair with. So the best
method and the repairs are chosen by the samples that score them, which flatters them a little. NNCF, beside them by
default and with its mixed preset, chooses nothing.

The record is written after every row, and rows that it has are not measured again. `drop` is what is lost against
float; its interval (95 %, paired bootstrap) is there where a resample of the samples has a metric.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import octavo
from benchmarks.data_networks import SCORED, Scored
from benchmarks.latency import peer_versions
from benchmarks.peer_networks import PRESETS, PeerError, quantized_by_nncf
from octavo import Graph, QuantizationError, Quantized
from octavo.engines import target_for
from octavo.machine import machine, versions
from octavo.measure import paired_interval
from octavo.network.target import Target, by_rows
from octavo.workflow.calibration import for_repairs
from octavo.workflow.stages import mostly_rows

CONSOLE = Console()
Change = Callable[[Target], Target]
STEPS: dict[str, Change] = {  # what each makes of an engine's target
    "tensor": lambda target: replace(target, channels=False),
    "channel": lambda target: target,
    "rows": by_rows,
}
FACTS = ("network", "engine", "step", "method")  # which tell rows apart; the repairs' method is found by measuring


@dataclass(frozen=True, kw_only=True)
class Record:
    """The rows measured so far, in the file `path` after every one.

    before  versions that the file names already: of peers too, which may not be here now
    """

    path: Path
    rows: list[dict[str, Any]]
    peers: Path
    before: dict[str, str]

    def find(self, **facts: str) -> dict[str, Any] | None:
        """The row of these facts."""
        return next((row for row in self.rows if all(row.get(key) == value for key, value in facts.items())), None)

    def add(self, measured: Callable[[], dict[str, Any]], **facts: str) -> dict[str, Any]:
        """The row of these facts; measured and written unless it is there. What fails is a row with an "error"."""
        known = self.find(**facts)
        if known is not None:
            return known
        start = time.perf_counter()
        try:
            row = facts | measured()
        except (QuantizationError, PeerError) as error:
            row = facts | {"error": " ".join(str(error).split())}
        row["seconds"] = round(time.perf_counter() - start, 1)
        self.rows.append(row)
        found = self.before | versions() | peer_versions(str(self.peers))
        record = {"rows": self.rows, "machine": machine(), "versions": found}
        self.path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        CONSOLE.print(" ".join(facts.values()), row.get("error") or f"{row['value']:.2f}", highlight=False)
        return row


@dataclass(kw_only=True)
class Ablation:
    """One network, and what the rows have in common."""

    name: str
    scored: Scored
    record: Record
    float_network: Any = field(init=False)
    example: Any = field(init=False)

    def __post_init__(self) -> None:
        self.float_network, self.example = self.scored.build(), self.scored.calibration()[0]

    @cached_property
    def graph(self) -> Graph:
        return octavo.capture(self.float_network, self.example, dynamic_axes=self.scored.dynamic_axes)

    @cached_property
    def reference(self) -> Tensor:
        """What the float network says of every sample."""
        return self.scored.predict(self.float_network)

    @cached_property
    def whole(self) -> dict[str, Any]:
        """The row of the float network."""
        value = self.scored.of_all(self.reference)
        return {"metric": self.scored.metric, "samples": len(self.reference), "value": value}

    def judged(self, network: Callable[..., Any]) -> dict[str, Any]:
        """The metric, and what is lost against float."""
        predictions = self.scored.predict(network)
        value = self.scored.of_all(predictions)
        row = self.whole | {"value": value, "drop": self.whole["value"] - value}
        if self.scored.resampled:
            lost = paired_interval(self.reference, predictions, self.scored.score)
            row |= {"low": lost.low, "high": lost.high}
        return row

    def measure(self, engines: Sequence[str], methods: Sequence[str], repairs: Sequence[str]) -> None:
        """All rows of the network."""
        self.record.add(lambda: self.whole, network=self.name, engine="torch", step="float")
        if "openvino" in engines and self.record.peers.exists():
            for step in list(PRESETS)[: 1 if self.scored.transformer else None]:  # of transformers mixed is the default
                self.record.add(lambda step=step: self.by_nncf(step), network=self.name, engine="openvino", step=step)
        for engine in engines:
            steps = {step: Step(self, engine, change) for step, change in STEPS.items()}
            for step, one in steps.items():
                for method in methods if step != "rows" or mostly_rows(one.plan) else ():
                    facts = {"network": self.name, "engine": engine, "step": step, "method": method}
                    self.record.add(lambda one=one, method=method: one.calibrated(method), **facts)
            if repairs:
                facts = {"network": self.name, "engine": engine, "step": "repairs"}
                self.record.add(lambda steps=steps: self.repaired(steps, methods, repairs), **facts)

    def by_nncf(self, step: str) -> dict[str, Any]:
        return self.judged(quantized_by_nncf(self.float_network, self.graph, self.scored, step, self.record.peers))

    def repaired(self, steps: "dict[str, Step]", methods: Sequence[str], repairs: Sequence[str]) -> dict[str, Any]:
        """The row of the best calibration with those repairs that the metric kept, and the metric of each trial."""
        best = self.best(steps["channel"].engine, methods)
        step = steps[best["step"]]
        net, batches = step.quantized(best["method"]), for_repairs(self.graph, self.scored.calibration())
        kept, tried = list[str](), dict[str, float]()
        row = {key: value for key, value in best.items() if key not in FACTS}
        for name in repairs:
            torch.manual_seed(0)
            found = octavo.repair(net, batches, [name])
            now = step.deployed(found)
            tried[" + ".join([*kept, name])] = now["value"]
            if now["value"] > row["value"]:
                row, net = now, found
                kept.append(name)
        return row | {"method": best["method"], "from": best["step"], "kept": kept, "tried": tried}

    def best(self, engine: str, methods: Sequence[str]) -> dict[str, Any]:
        """The row of the best calibration with scales of channels or rows."""
        asked = product(("channel", "rows"), methods)
        facts = {"network": self.name, "engine": engine}
        rows = [self.record.find(**facts, step=step, method=method) for step, method in asked]
        sound = [row for row in rows if row is not None and "value" in row]
        if not sound:
            raise QuantizationError(asked="repair", seen="no calibration was measured", remedy="look at their rows")
        return max(sound, key=lambda row: row["value"])


@dataclass(frozen=True)
class Step:
    """The network planned for one engine, as `change` has its target."""

    ablation: Ablation
    engine: str
    change: Change

    @cached_property
    def plan(self) -> octavo.Plan:
        return octavo.make_plan(self.ablation.graph, target=self.change(target_for(self.engine)))

    @cached_property
    def stats(self) -> octavo.Stats:
        return octavo.observe(self.plan, self.ablation.scored.calibration())

    def quantized(self, method: str) -> Quantized:
        return octavo.choose_params(self.plan, self.stats, method)

    def calibrated(self, method: str) -> dict[str, Any]:
        """The row of one method. Where nothing has a scale for each channel, that of one scale for each tensor."""
        facts = {"network": self.ablation.name, "engine": self.engine, "step": "tensor", "method": method}
        known = self.ablation.record.find(**facts)
        rows = any(quantizer.scheme.rows for quantizer in self.plan.quantizers)
        if known is not None and not rows and not any(_with_channels(self.plan)):
            return {key: value for key, value in known.items() if key not in FACTS} | {"same_plan_as": "tensor"}
        return self.deployed(self.quantized(method))

    def deployed(self, net: Quantized) -> dict[str, Any]:
        """The row of the network on its engine; how many layers have scales of channels, and which run in float."""
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            network = octavo.compile(net, engine=self.engine)
        row = self.ablation.judged(network)
        row["scales_of_channels"] = sum(1 for _ in _with_channels(net.plan))
        row["layers"] = len(net.coverage.layers)
        row["in_float"] = list(octavo.ran(network).in_float)
        if heard:
            row["warnings"] = [" ".join(str(one.message).split())[:300] for one in heard]
        return row


def _with_channels(plan: octavo.Plan) -> Iterator[octavo.Quantizer]:
    """Quantizers of activations that have an axis."""
    found = (one for one in plan.quantizers if not one.constant and not one.scheme.rows)
    return (one for one in found if one.scheme.axis is not None)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table of all rows, network by network."""
    table = Table("network", "engine", "step", "calibration", "metric", "value", "lost", "95 % interval", "kept")
    for row in rows:
        facts = (row["network"], row["engine"], row["step"], row.get("method", ""))
        if "error" in row:
            table.add_row(*facts, "", "–", "", "", row["error"][:60])
            continue
        bounds = f"{row['low']:+.2f} … {row['high']:+.2f}" if "low" in row else ""
        kept = ", ".join(row["kept"]) or "none" if "kept" in row else ""
        table.add_row(*facts, row["metric"], f"{row['value']:.2f}", f"{row.get('drop', 0.0):+.2f}", bounds, kept)
    CONSOLE.print(table)


def main(
    json_out: Annotated[Path, typer.Option("--json", help="where the record goes, and what is in it stays")],
    networks: Annotated[str, typer.Option(help="comma-separated")] = ",".join(SCORED),
    methods: Annotated[str, typer.Option(help="of calibration, comma-separated")] = "max,entropy,99.99",
    engines: Annotated[str, typer.Option(help="comma-separated")] = "openvino,onnxruntime,inductor",
    repairs: Annotated[str, typer.Option(help="in this order; an empty list leaves the step out")] = ",".join(
        octavo.REPAIRS
    ),
    peers: Annotated[Path, typer.Option(help="python of the peers' environment")] = Path(".peers/bin/python"),
) -> None:
    """Measure every step of every network, and write the record."""
    known = json.loads(json_out.read_text(encoding="utf-8")) if json_out.exists() else {"rows": [], "versions": {}}
    if not peers.exists():
        CONSOLE.print(f"NNCF is left out: {peers} is not there; make peers", style="red")
    record = Record(path=json_out, rows=known["rows"], peers=peers, before=known["versions"])
    asked = [[one for one in option.split(",") if one] for option in (engines, methods, repairs)]
    for name in networks.split(","):
        torch.manual_seed(0)
        try:
            Ablation(name=name, scored=SCORED[name](), record=record).measure(*asked)
        except (QuantizationError, PackageNotFoundError) as error:  # data or a package is not here
            CONSOLE.print(f"{name} is left out: {error}", style="red", highlight=False)
    show(record.rows)


if __name__ == "__main__":
    typer.run(main)
