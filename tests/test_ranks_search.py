"""A whole search under torchrun, with every stage of the road, against one process; and ranks that fail."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

SETUP = """
import json, os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
import octavo
from octavo import Rule, Schedule

folder, what = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.manual_seed(0)
world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
if world > 1 and what != "not started":
    dist.init_process_group("gloo")
layers = [nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 5)]
model = nn.Sequential(*layers).eval()
batches = [torch.randn(64, 16) for _ in range(4)]
share = batches[rank * 2 : rank * 2 + 2] if world > 1 else batches
inputs = torch.randn(300, 16)
targets = model(inputs).argmax(1)


def evaluate(network):
    return (network(inputs).argmax(1) == targets).float()


def train(module):
    torch.manual_seed(1)
    data = torch.utils.data.DataLoader(torch.randn(320, 16), 32, shuffle=True)
    octavo.fit(module, train=data, schedule=Schedule(epochs=2, learning_rate=1e-2), progress=False)


def quantize(**options):
    rules = [Rule(role="weight", bits=3), Rule("*", bits=4)]
    arguments = {"calibration": share, "evaluate": evaluate, "train": train, "rules": rules, "max_drop": 0.0}
    arguments |= {"engine": "simulation", "progress": False, "example": batches[0], "min_int8": 0.0}
    return octavo.quantize(model, **{**arguments, **options})


def tell(found):
    (folder / f"found{rank}.json").write_text(json.dumps(found))
"""

SEARCH = """
result = quantize()
with torch.no_grad():
    trials = [[t.key, t.stage, t.method, list(t.repairs), t.trained, list(t.kept_float), t.metric, t.scores, t.error]
              for t in result.trials]
    tell({"trials": trials, "best": result.best.key, "output": result.model(inputs[:5]).tolist(),
          "trained": result.best.trained, "stages": [stage.stage for stage in result.stages]})
octavo.quantize(model, calibration=share, evaluate=evaluate, engine="simulation", progress=False)
left = dist.distributed_c10d._world.pg_names if world > 1 else {}
assert len(left) in (0, 1), "Octavo's own process groups are destroyed"
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


def torchrun(folder: Path, program: str, what: str = "", ranks: int = 2, seconds: float = 100) -> list[dict]:
    """What each rank told; all of them ended by themselves."""
    script = folder / "program.py"
    script.write_text(SETUP + program)
    command = [*(TORCHRUN if ranks > 1 else [sys.executable]), str(script), str(folder), what]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, timeout=seconds, capture_output=True, text=True, check=False)
    found = [folder / f"found{rank}.json" for rank in range(ranks)]
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in found]


def test_every_rung_of_a_search_on_two_ranks_is_that_of_one_process(tmp_path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (alone,) = torchrun(tmp_path / "one", SEARCH, ranks=1)
    first, second = torchrun(tmp_path / "two", SEARCH)
    assert first == second
    assert alone["stages"] == ["ptq", "ptq_more", "repair", "rows", "partial", "train"]
    for name in alone:
        assert first[name] == alone[name], name


FAILS = """
def unpicklable(network):
    raise type("Odd", (Exception,), {"__reduce__": lambda self: (_ for _ in ()).throw(TypeError("no"))})("odd one")


def broken():
    yield batches[0]
    raise OSError("the disk of this rank is gone")


class Broken:
    def __iter__(self):
        return broken()


class Unsendable(torch.Tensor):
    def __reduce_ex__(self, protocol):
        raise TypeError("it stays here")


cases = {
    "evaluate": lambda: quantize(evaluate=unpicklable),
    "empty": lambda: quantize(calibration=[] if rank == 1 else share),
    "empty-example": lambda: quantize(calibration=[] if rank == 1 else share, example=None),
    "loader": lambda: quantize(calibration=Broken() if rank == 1 else share),
    "batch": lambda: quantize(calibration=[b.as_subclass(Unsendable) for b in share] if rank == 0 else share),
    "observe": lambda: observe(Broken() if rank == 1 else share),
    "loss": lambda: training(lambda out, batch: 1 / 0 if rank == 1 else out.sum(), batches),
    "nan": lambda: training(lambda out, batch: out.sum() * (float("nan") if rank == 1 else 1), batches),
    "short": lambda: training(lambda out, batch: out.sum(), Short() if rank == 1 else batches),
    "lengths": lambda: training(lambda out, batch: out.sum(), batches[: 2 + rank]),
    "full": lambda: training(lambda out, batch: out.sum(), batches, out=folder / "file" / "out"),
}
(folder / "file").touch()


class Short(list):
    def __len__(self):
        return 4


def observe(data):
    graph = octavo.capture(model, batches[0])
    return octavo.observe(graph, octavo.make_plan(graph), data)


def training(loss, data, **options):
    graph = octavo.capture(model, batches[0])
    plan = octavo.make_plan(graph)
    net = octavo.choose_params(plan, octavo.observe(plan, batches), "max")
    octavo.finetune(net, train=data, loss=loss, schedule=Schedule(epochs=2, learning_rate=1e-3),
                    progress=False, **options)


found = {}
for name, case in cases.items():
    try:
        case()
        found[name] = None
    except BaseException as error:
        found[name] = [type(error).__name__, str(error)]
tell(found)
dist.barrier()
dist.destroy_process_group()
"""


def test_a_rank_that_fails_ends_all_of_them_with_an_error_that_names_it(tmp_path) -> None:
    first, second = torchrun(tmp_path, FAILS)
    assert first.keys() == second.keys()
    failing = dict.fromkeys(first, 1) | {"evaluate": 0, "batch": 0, "lengths": None, "full": 0}
    for name, rank in failing.items():
        other = (second if rank == 0 else first)[name]
        assert other is not None, name
        assert other[0] == "QuantizationError", (name, other)
        assert ("their data have 2, 3 batches" if rank is None else f"rank {rank}") in other[1], (name, other)
    assert first["evaluate"][0] == "Odd"
    assert second["loss"][0] == "ZeroDivisionError"
    assert "the loss of batch 0 in epoch 1 is nan" in first["nan"][1]
    assert "cannot be pickled" in second["batch"][1]


TRAINS = """
graph = octavo.capture(model, batches[0])
plan = octavo.make_plan(graph)
net = octavo.choose_params(plan, octavo.observe(plan, batches), "max")
found = []
for out in ("one", "two", "one"):
    history = octavo.finetune(net, train=batches, schedule=Schedule(epochs=2, learning_rate=1e-3),
                              progress=False, out=folder / out).history
    found.append([epoch.loss for epoch in history.epochs])
tell(found)
"""


def test_training_starts_the_ranks_by_itself_more_than_once_and_resumes(tmp_path) -> None:
    first, second = torchrun(tmp_path, TRAINS, "not started")
    assert first == second
    assert first[0] == first[1] == first[2]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["best", "last"]


LOST = """
import threading


def slow(network):
    (folder / "measuring").touch()
    time.sleep(0.3)
    return evaluate(network)


def leave():
    while not (folder / "measuring").exists():
        time.sleep(0.01)
    os._exit(9)


if rank == 1:
    threading.Thread(target=leave, daemon=True).start()
try:
    quantize(evaluate=slow, calibration=batches)
except octavo.QuantizationError as error:
    tell(str(error))
    os._exit(0)
"""


def test_a_rank_that_is_gone_is_an_error_and_no_waiting(tmp_path) -> None:
    (tmp_path / "program.py").write_text(SETUP + LOST)
    env = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        env["MASTER_PORT"] = str(found.getsockname()[1])
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), ""]
    processes = [subprocess.Popen(command, env=env | {"RANK": str(rank)}, stderr=subprocess.DEVNULL) for rank in (0, 1)]
    assert [process.wait(60) for process in processes] == [0, 9]
    assert "rank 0 lost the connection to another" in json.loads((tmp_path / "found0.json").read_text())
