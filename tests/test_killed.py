"""A search that is killed again and again ends as if nothing had happened. Minutes: `make slow`."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys, time, os
from pathlib import Path
import torch
from torch import nn
import octavo
from octavo import Rule

folder = Path(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(5)

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(9))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)

model = Network().eval()
inputs = torch.randn(600, 16)
targets = model(inputs).argmax(1)
log = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def evaluate(network):
    os.write(log, b"call\\n")
    time.sleep(0.15)
    return (network(inputs).argmax(1) == targets).float()

(folder / "ready").touch()
rules = [Rule("layers.2", bits=2), Rule("layers.5", bits=2), Rule("layers.7", bits=3), Rule("*")]
octavo.quantize(model, calibration=[torch.randn(64, 16) for _ in range(4)], evaluate=evaluate, rules=rules,
                max_drop=0.05, min_int8=0.0, engine="simulation", out=folder / "run", progress=False)
"""


def start(folder: Path) -> subprocess.Popen:
    (folder / "ready").unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)])
    while not (folder / "ready").exists():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def without_times(record: dict) -> dict:
    for row in (*record["stages"], *record["trials"]):
        del row["seconds"]
    for row in record["sensitivities"]:
        del row["latency_ms"]
    return record


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times_it_ends_as_an_undisturbed_run_does(seed, tmp_path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    begun = time.monotonic()
    assert start(undisturbed).wait(300) == 0
    length = time.monotonic() - begun
    trials = len(json.loads((undisturbed / "run" / "result.json").read_text())["trials"])
    assert trials > 7, "the case reaches partial quantization"

    source, kills = random.Random(seed), 0
    while kills < 20:
        process = start(killed)
        try:
            process.wait(source.uniform(0, 0.2 * length))
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        kills += 1
    assert start(killed).wait(300) == 0

    found, wanted = (
        without_times(json.loads((folder / "run" / "result.json").read_text())) for folder in (killed, undisturbed)
    )
    assert found == wanted
    calls = len((killed / "calls").read_text().splitlines())
    # The float network, every trial once, and at most one call that each kill cut short.
    assert calls <= 1 + trials + kills
    assert len((undisturbed / "calls").read_text().splitlines()) == 1 + trials
