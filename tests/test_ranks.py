"""Two processes of torch.distributed against one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, warnings
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
import octavo

folder, world, rank, what = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
batches = [torch.randn(8 + i, 16) for i in range(6)]
if what == "nan":
    batches[1][0, 0] = float("nan")  # in the share of rank 1
inputs = torch.cat([torch.randn(290, 16), batches[0][:4], batches[1][2:8]])
targets = model(inputs).argmax(1)
calls = 0

def evaluate(network):
    global calls
    calls += 1
    return (network(inputs).argmax(1) == targets).float()

if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
share = batches[rank::world]
try:
    if what == "observe" or what == "nan":
        graph = octavo.capture(model, batches[0])
        plan = octavo.make_plan(graph)
        stats = octavo.observe(plan, share)
        found = {name: {k: v.tolist() for k, v in h.state().items()} for name, h in stats.items()}
    else:
        result = octavo.quantize(model, calibration=share, evaluate=evaluate, max_drop=0.2, example=batches[0],
                                 engine="simulation", out=folder / "run", progress=False)
        found = {"trials": [t.key for t in result.trials], "metric": result.metric, "calls": calls,
                 "overlap": vars(result.overlap), "output": result.model(inputs[:3]).tolist()}
except octavo.QuantizationError as error:
    found = {"error": str(error)}
(folder / f"found{rank}.json").write_text(json.dumps(found))
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


def ranks(folder: Path, world: int, what: str) -> list[dict]:
    folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(folder), str(world)]
    processes = [subprocess.Popen([*command, str(rank), what]) for rank in range(world)]
    assert [process.wait(120) for process in processes] == [0] * world
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(world)]


def test_two_ranks_observe_what_one_process_observes_bit_for_bit(tmp_path) -> None:
    (alone,) = ranks(tmp_path / "one", 1, "observe")
    first, second = ranks(tmp_path / "two", 2, "observe")
    assert first == second == alone
    assert sum(sum(state["counts"]) for state in alone.values()) == sum(8 + i for i in range(6)) * (16 + 32)


def test_a_rank_that_sees_nan_stops_them_all(tmp_path) -> None:
    first, second = ranks(tmp_path / "two", 2, "nan")
    assert "0.input: asked to observe a tensor, but on rank 1 in batch 0 (counted from 0) 1 NaN" in first["error"]
    assert first == second


@pytest.mark.parametrize("repeat", ["fresh", pytest.param("resumed", marks=pytest.mark.slow)])
def test_trials_run_once_and_not_once_a_rank(tmp_path, repeat) -> None:
    first, second = ranks(tmp_path / "two", 2, "quantize")
    assert first["calls"] == 5
    assert second["calls"] == 0
    assert first["trials"] == second["trials"]
    assert first["output"] == second["output"]
    assert first["overlap"] == second["overlap"] == {"calibrated": sum(range(8, 14)), "scored_too": 10}  # 6 of rank 1
    if repeat == "resumed":
        for file in (tmp_path / "two").glob("rendezvous*"):
            file.unlink()
        (tmp_path / "two").rename(tmp_path / "moved")
        (tmp_path / "two").mkdir()
        (tmp_path / "moved" / "run").rename(tmp_path / "two" / "run")
        (tmp_path / "two").rename(tmp_path / "again")
        folder = tmp_path / "again"
        command = [sys.executable, "-c", PROGRAM, str(folder), "2"]
        processes = [subprocess.Popen([*command, str(rank), "quantize"]) for rank in range(2)]
        assert [process.wait(120) for process in processes] == [0, 0]
        again = json.loads((folder / "found0.json").read_text())
        assert again["calls"] == 0
        assert again["output"] == first["output"]
        assert again["overlap"] == first["overlap"]
