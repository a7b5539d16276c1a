"""`kill -9` at random moments of a search, of saving and of training: nothing is lost, and nothing is left over.

Each program appends a line to `log` for whatever it measures, and is started again after every kill. The 200 kills take
minutes: `make slow`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from select import select

import onnx
import pytest

import octavo
from octavo.files import PREFIX
from octavo.saved.artifact import read

SETUP = """
import json, os, sys, traceback
from pathlib import Path
import accelerate, torch
from torch import nn
import octavo
from octavo.engines.onnx import export_onnx

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
batches = [torch.randn(32, 16) for _ in range(8)]
inputs = torch.randn(300, 16)
targets = model(inputs).argmax(1)
graph = octavo.capture(model, batches[0])
plan = octavo.make_plan(graph)
net = octavo.choose_params(plan, octavo.observe(plan, batches), "max")
"""

SERVE = """
print("ready", flush=True)
for line in sys.stdin:  # a process that is to be killed starts where torch is imported already
    child = os.fork()
    if child == 0:
        try:
            folder = Path(line.strip())
            log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            work(folder, folder / "out")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""

RUN = """
def evaluate(network):
    os.write(log, b"evaluated\\n")
    return (network(inputs).argmax(1) == targets).float()


def work(folder, out):
    octavo.quantize(model, calibration=batches, evaluate=evaluate, rules=[octavo.Rule("*", bits=3)], max_drop=0.0,
                    min_int8=0.0, engine="simulation", out=out, progress=False)
"""

SAVE = """
def work(folder, out):
    for number in range(1 if folder.name == "undisturbed" else 10**6):
        method = f"method {number % 2}"
        chosen = type(net)(plan=net.plan, values=net.values, method=method, samples=net.samples)
        for form in ("folder", "file"):
            octavo.save(chosen, out / f"net.{form}", engine="reference", form=form)
        octavo.export(net, out / "net.onnx")
"""

TRAIN = """
def evaluate(network):
    os.write(log, b"evaluated\\n")
    with torch.no_grad():
        return -float(sum((network(x) - graph(x)).square().mean() for x in batches))


def work(folder, out):
    found = octavo.finetune(net, train=batches, schedule=octavo.Schedule(epochs=12, learning_rate=1e-2),
                            evaluate=evaluate, out=out, progress=False)
    (folder / "history.json").write_text(json.dumps([[epoch.loss, epoch.metric] for epoch in found.history.epochs]))
"""


class Program:
    """One of the programs, for two folders: `undisturbed`, and `killed`. Octavo writes to `out` in them."""

    def __init__(self, code: str, folder: Path) -> None:
        self.undisturbed, self.killed = folder / "undisturbed", folder / "killed"
        for one in (self.undisturbed, self.killed):
            (one / "out").mkdir(parents=True)
        command = [sys.executable, "-c", SETUP + code + SERVE]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)
        assert self._server.stdout.readline() == "ready\n"

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=60)

    def run(self, folder: Path, seconds: float | None = None) -> tuple[bool, float]:
        """(Whether it had to be killed after `seconds`, how many it took)."""
        self._server.stdin.write(f"{folder}\n")
        self._server.stdin.flush()
        child, begun = int(self._server.stdout.readline()), time.monotonic()
        in_time = select([self._server.stdout], [], [], seconds)[0] != []
        if not in_time:
            with suppress(ProcessLookupError):  # it ended between the two lines
                os.kill(child, signal.SIGKILL)
        status = int(self._server.stdout.readline())
        assert status == 0 or (status == signal.SIGKILL and not in_time)
        return status != 0, time.monotonic() - begun

    def kills(self, count: int, source: random.Random, length: float) -> int:
        """How many of `count` random moments within `length` seconds it was killed at."""
        return sum(self.run(self.killed, source.uniform(0, length))[0] for _ in range(count))

    def measured(self) -> list[int]:
        """How often it measured anything, in either folder."""
        return [len((one / "log").read_text().splitlines()) for one in (self.undisturbed, self.killed)]


def kills_of_a_search(kills: int, source: random.Random, folder: Path) -> int:
    with Program(RUN, folder) as program:
        length = program.run(program.undisturbed)[1]
        done = program.kills(kills, source, length / 4)
        program.run(program.killed)
    records = [json.loads((one / "out" / "result.json").read_text()) for one in (program.undisturbed, program.killed)]
    trials = [[{**row, "seconds": 0} for row in record["trials"]] for record in records]
    assert trials[0] == trials[1]
    once, often = program.measured()
    assert often <= once + done  # a kill costs what was being measured, and nothing else
    assert list((program.killed / "out").rglob(f"{PREFIX}*")) == []
    return done


def kills_of_saving(kills: int, source: random.Random, folder: Path) -> int:
    done = 0
    with Program(SAVE, folder) as program:
        length, out = program.run(program.undisturbed)[1], program.killed / "out"
        for path in (program.undisturbed / "out").iterdir():
            path.rename(out / path.name)
        for _ in range(kills):
            done += program.kills(1, source, length)
            for form in ("file", "folder"):
                assert read(out / f"net.{form}").net.method.startswith("m")
            onnx.checker.check_model(onnx.load(out / "net.onnx"))
        octavo.files.write(out / "another", "")
    assert sorted(path.name for path in out.iterdir()) == ["another", "net.file", "net.folder", "net.onnx"]
    return done


def kills_of_training(kills: int, source: random.Random, folder: Path) -> int:
    with Program(TRAIN, folder) as program:
        length = program.run(program.undisturbed)[1]
        done = program.kills(kills, source, length / 4)
        program.run(program.killed)
    histories = [(one / "history.json").read_text() for one in (program.undisturbed, program.killed)]
    assert histories[0] == histories[1]
    once, often = program.measured()
    assert often <= once + done
    assert sorted(path.name for path in (program.killed / "out").iterdir()) == ["best", "last"]
    return done


KILLS = {"search": kills_of_a_search, "saving": kills_of_saving, "training": kills_of_training}


@pytest.mark.parametrize(
    "what", [what if what == "search" else pytest.param(what, marks=pytest.mark.slow) for what in KILLS]
)
def test_two_kills(what, seed, tmp_path) -> None:
    KILLS[what](2, random.Random(seed), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("what", "kills"), [("search", 67), ("saving", 67), ("training", 66)])
def test_two_hundred_kills(what, kills, seed, tmp_path) -> None:
    begun, asked, done = time.monotonic(), 0, 0
    while done < kills:  # each that came too late is made up for
        asked += 1
        done += KILLS[what](kills - done, random.Random(seed + asked), tmp_path / str(asked))
    print(f"{done} kills of {what} in {time.monotonic() - begun:.0f} s")
