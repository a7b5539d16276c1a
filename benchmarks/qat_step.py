"""What a step of quantization-aware training costs beside a float one: time and peak memory, as ratios.

    python -m benchmarks.qat_step --json benchmarks/results/qat-step.json

Each contestant is a process of its own, which waits for its turn; turns are interleaved. A step is forward,
backward and the optimizer, on one batch. Memory is the most that tensors hold at one time in a step: parameters,
gradients and the optimizer's state with it.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import nn
from torch.profiler import ProfilerActivity, profile

import octavo
from octavo.machine import machine, versions
from octavo.zoo import minilm, resnet20

NETWORKS = ("resnet20", "minilm")
KINDS = ("float", "float compiled", "qat", "qat compiled", "qat learned ranges")
STEPS = 3  # timed in one turn
PAUSE_S = 0.03
BATCH, TOKENS = {"resnet20": 128, "minilm": 16}, 64


def problem(network: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], Callable[[Any], torch.Tensor]]:
    """(the float network, one batch, the loss of its outputs)."""
    torch.manual_seed(0)
    size = BATCH[network]
    if network == "resnet20":
        model, labels = resnet20.ResNet20(), torch.randint(10, (size,))
        return model, (torch.randn(size, 3, 32, 32),), lambda outputs: F.cross_entropy(outputs, labels)
    tokens = torch.randint(1000, 20000, (size, TOKENS))
    return minilm.build(), (tokens, torch.ones_like(tokens)), lambda outputs: outputs.square().mean()


def step_of(network: str, kind: str) -> tuple[Callable[[], None], Callable[[], int]]:
    """(one step of training, the bytes that tensors hold between steps)."""
    model, batch, loss = problem(network)
    if kind.startswith("qat"):
        graph = octavo.capture(model, tuple(x[:2] for x in batch), dynamic_axes=(0, 1) if network == "minilm" else (0,))
        plan = octavo.make_plan(graph, target="paper")
        net = octavo.choose_params(plan, octavo.observe(plan, [batch]), "max")
        model = octavo.trainable(net, ranges="learned" if "learned" in kind else "fixed")
    model.train()
    run = torch.compile(model) if "compiled" in kind else model
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss(run(*batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def held() -> int:
        optimizer.zero_grad()  # gradients come back within the step
        momentum = [value for state in optimizer.state.values() for value in state.values()]
        tensors = [*batch, *momentum, *model.buffers(), *model.parameters()]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))

    return step, held


def serve(network: str, kind: str) -> None:
    """A contestant: gets ready, then answers each line with the times of one turn and its memory."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step, held = step_of(network, kind)
    step(), step()
    peak = held() + _most_allocated(step)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        step()
        times = []
        for _ in range(STEPS):
            start = time.perf_counter()
            step()
            times.append(1000 * (time.perf_counter() - start))
        print(json.dumps({"ms": times, "mb": peak / 2**20}), file=answers, flush=True)


def _most_allocated(work: Callable[[], None]) -> int:
    """The most bytes that `work` holds at one time beyond those held before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = (e for e in found.profiler.kineto_results.events() if e.name() == "[memory]")  # type: ignore[union-attr]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def measure(network: str, rounds: int, console: Console) -> list[dict[str, Any]]:
    """A row for every kind of step."""
    processes = {}
    for kind in KINDS:
        command = [sys.executable, "-m", "benchmarks.qat_step", "--serve", network, "--kind", kind]
        processes[kind] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert processes[kind].stdout.readline() == "ready\n", kind  # type: ignore[union-attr]
        console.print(f"{network}: {kind} ready")
    order, found = list(KINDS), {kind: [] for kind in KINDS}  # type: dict[str, list[dict[str, Any]]]
    for _ in range(rounds):
        random.shuffle(order)
        for kind in order:
            time.sleep(PAUSE_S)
            print(file=processes[kind].stdin, flush=True)
            found[kind].append(json.loads(processes[kind].stdout.readline()))  # type: ignore[union-attr]
    for process in processes.values():
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()
    times = {kind: sorted(ms for turn in turns for ms in turn["ms"]) for kind, turns in found.items()}
    memory = {kind: turns[-1]["mb"] for kind, turns in found.items()}
    return [
        {
            "network": network,
            "kind": kind,
            "median_ms": statistics.median(times[kind]),
            "p10_ms": times[kind][len(times[kind]) // 10],
            "p90_ms": times[kind][-1 - len(times[kind]) // 10],
            "peak_mb": memory[kind],
            "time_ratio": statistics.median(times[kind]) / statistics.median(times["float"]),
            "memory_ratio": memory[kind] / memory["float"],
        }
        for kind in KINDS
    ]


def main(
    out: Annotated[Path | None, typer.Option("--json", help="Where to write the record.")] = None,
    networks: Annotated[str, typer.Option(help="Some of " + ", ".join(NETWORKS))] = ",".join(NETWORKS),
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contestant.")] = 10,
    serve_network: Annotated[str | None, typer.Option("--serve", hidden=True)] = None,
    kind: Annotated[str, typer.Option(hidden=True)] = "float",
) -> None:
    """Time a step of each kind on each network, and write the record."""
    if serve_network is not None:
        serve(serve_network, kind)
        return
    console = Console()
    rows = [row for network in networks.split(",") for row in measure(network, rounds, console)]
    for row in rows:
        console.print(
            f"{row['network']:10} {row['kind']:20} {row['median_ms']:8.1f} ms {row['time_ratio']:5.2f} x   "
            f"{row['peak_mb']:7.0f} MB {row['memory_ratio']:5.2f} x"
        )
    if out is not None:
        record = {"rows": rows, "rounds": rounds, "machine": machine(), "versions": versions()}
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
