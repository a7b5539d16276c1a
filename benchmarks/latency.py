"""How fast the integer networks are, beside every peer on the same machine. Run it alone on the machine.

    make peers    # the peers, in an environment of their own: .peers
    python -m benchmarks.latency --json benchmarks/results/latency.json

Every contestant lives in a process of its own (`contestant.py`; peers in their own environment) and waits. Each round
gives each of them one turn, in random order; nobody else runs meanwhile. Reported are medians over all turns, and
ratios of medians within the run: absolute times mean little on a machine shared with others.

    OCTAVO_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.latency …    as on such a CPU

ONNX Runtime cannot be held to fewer instructions: its rows mean nothing then.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestant import CONTESTANTS
from benchmarks.networks import NETWORKS, Network
from octavo import capture
from octavo.engines.isa import isa
from octavo.engines.onnx import export_onnx
from octavo.machine import machine, versions

HERE = Path(__file__).parent
PATIENCE_S = 420  # for a contestant to get ready
PAUSE_S = 0.03  # after each turn: threads of the last contestant stop waiting for work
PEAK = "int8 GEMM peak"
PEAK_OPERATIONS = 2 * 2048**3
# What holds the others to fewer instructions than the CPU has: torch's own kernels, and oneDNN's, in OpenVINO too.
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
TRANSFORMERS = {"minilm", "bert_base", "whisper_tiny_encoder"}


class Contestant:
    """A process that waits for its turn; `error` says why it cannot run."""

    def __init__(self, name: str, folder: Path, python: str) -> None:
        self.name, self.kind = name, CONTESTANTS[name][0]
        self.times_ms: list[float] = []
        self.error: str | None = None
        self.process: subprocess.Popen[str] | None = None
        if not Path(python).exists():
            self.error = f"{python} is not there; make peers"
            return
        self.log = (folder / f"{name}.log").open("w")
        self.process = subprocess.Popen(
            [python, str(HERE / "contestant.py"), name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        timer = threading.Timer(PATIENCE_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        heard: dict[str, Any] = json.loads(line) if line else {"error": f"ended with {self.process.wait()}"}
        self.error = heard.get("error", self.error)
        return heard

    def turn(self) -> None:
        """One turn, if it can run."""
        if self.error is None:
            assert self.process is not None
            assert self.process.stdin is not None
            self.process.stdin.write("turn\n")
            self.process.stdin.flush()
            self.times_ms += self._hear().get("ms", [])
            time.sleep(PAUSE_S)

    def leave(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.log.close()


def prepare(name: str, row: Network, batch: int, folder: Path) -> int:
    """Write what all contestants read; return the operations, 2 for a multiplication and its addition."""
    torch.manual_seed(0)
    model, example = row.build(), row.inputs(batch)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*example)
    torch.export.save(torch.export.export(model, example), folder / "network.pt2")
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.save(example, folder / "inputs.pt")
    export_onnx(capture(model, example, dynamic_axes=row.dynamic_axes), path=folder / "network.onnx")
    (folder / "facts.json").write_text(json.dumps({"network": name, "transformer": name in TRANSFORMERS}))
    return counter.get_total_flops()


def race(name: str, batch: int, chosen: list[str], rounds: int, peers: str, console: Console) -> list[dict[str, Any]]:
    """The rows of one network at one batch size."""
    row = NETWORKS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        operations = prepare(name, row, batch, folder)
        contestants = []
        for contestant in chosen:
            python = peers if CONTESTANTS[contestant][0] == "peer" else sys.executable
            console.print(f"{name}, batch {batch}: {contestant} …", end=" ")
            contestants.append(Contestant(contestant, folder, python))
            console.print(contestants[-1].error or "ready", highlight=False, markup=False)
        shuffle = random.Random(0)
        for _ in range(rounds):
            shuffle.shuffle(contestants)
            for one in contestants:
                one.turn()
        for one in contestants:
            one.leave()
    return records(name, row, batch, operations, contestants)


def records(
    name: str, row: Network, batch: int, operations: int, contestants: list[Contestant]
) -> list[dict[str, Any]]:
    """One row for each contestant, in the order of the table."""
    medians = {one.name: statistics.median(one.times_ms) for one in contestants if one.times_ms}
    best = min((medians[one.name] for one in contestants if one.kind == "peer" and one.name in medians), default=None)
    peak = PEAK_OPERATIONS / medians[PEAK] if PEAK in medians else None
    found = []
    for one in sorted(contestants, key=lambda one: list(CONTESTANTS).index(one.name)):
        median = medians.get(one.name)
        count = PEAK_OPERATIONS if one.name == PEAK else operations
        deciles = statistics.quantiles(one.times_ms, n=10) if len(one.times_ms) > 1 else [None] * 9
        found.append(
            {
                "network": name,
                "random_weights": row.random_weights,
                "batch": batch,
                "contestant": one.name,
                "kind": one.kind,
                "median_ms": median,
                "p10_ms": deciles[0],
                "p90_ms": deciles[8],
                "ratio_to_best_peer": None if median is None or best is None or one.kind == "peak" else best / median,
                "share_of_peak": None if median is None or peak is None else count / median / peak,
                "error": one.error,
            }
        )
    return found


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{rows[0]['network']}, batch {rows[0]['batch']}")
    for heading in ("contestant", "kind", "median ms", "p10 … p90", "× best peer", "of int8 peak"):
        table.add_column(heading, justify="left" if heading in ("contestant", "kind") else "right")
    for row in rows:
        if row["median_ms"] is None:
            table.add_row(row["contestant"], row["kind"], "–", (row["error"] or "")[:40])
            continue
        ratio = "" if row["ratio_to_best_peer"] is None else f"{row['ratio_to_best_peer']:.2f}"
        share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
        spread = f"{row['p10_ms']:.2f} … {row['p90_ms']:.2f}"
        table.add_row(row["contestant"], row["kind"], f"{row['median_ms']:.2f}", spread, ratio, share)
    console.print(table)


def main(
    json_out: Annotated[Path, typer.Option("--json", help="where the record goes; written after every network")],
    networks: Annotated[str, typer.Option(help="comma-separated")] = ",".join(NETWORKS),
    batches: Annotated[str, typer.Option(help="comma-separated")] = "1,8",
    rounds: Annotated[int, typer.Option(help="turns of every contestant")] = 10,
    contestants: Annotated[str, typer.Option(help="comma-separated")] = ",".join(CONTESTANTS),
    peers: Annotated[str, typer.Option(help="python of the peers' environment")] = ".peers/bin/python",
) -> None:
    """Time every network, at every batch size, on every contestant."""
    console, rows = Console(), []
    for name in networks.split(","):
        for batch in map(int, batches.split(",")):
            found = race(name, batch, contestants.split(","), rounds, peers, console)
            show(found, console)
            rows += found
            record = {
                "rows": rows,
                "rounds": rounds,
                "machine": machine(),
                "isa": isa().name,  # of our own kernels; OCTAVO_ISA
                "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
                "versions": versions() | peer_versions(peers),
            }
            json_out.write_text(json.dumps(record, indent=1) + "\n")


def peer_versions(python: str) -> dict[str, str]:
    """{"peer package": version} of the peers' environment, if it is there."""
    if not Path(python).exists():
        return {}
    packages = {"torch", "openvino", "nncf", "onnxruntime", "torchao"}
    listed = f"d.name + ' ' + d.version for d in distributions() if d.name in {packages}"
    code = f"from importlib.metadata import distributions\nprint(*({listed}), sep='\\n')"
    lines = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    return {f"peer {name}": version for name, version in map(str.split, lines)}


if __name__ == "__main__":
    typer.run(main)
