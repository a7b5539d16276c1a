"""Trials on a local Ray of two workers, and one that is lost."""

import importlib
import linecache
import os
import pickle
import sys
import time

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import QuantizationError
from octavo.workflow.cluster import Payload, content
from octavo.workflow.goal import Goal, Score
from octavo.workflow.overlap import Overlap
from octavo.workflow.study import Study


def test_ray_is_an_extra(monkeypatch) -> None:
    monkeypatch.setattr("octavo.workflow.cluster.find_spec", lambda name: None)
    model = nn.Linear(4, 4).eval()
    with pytest.raises(QuantizationError, match=r"Ray is not installed; pip install 'octavo\[distributed\]'"):
        octavo.quantize(
            model,
            calibration=[torch.randn(4, 4)],
            evaluate=lambda network: 1.0,
            trials_on="ray",
            engine="simulation",
            progress=False,
        )


MODULE = """
import torch
from torch import nn

class Net(nn.Linear):
    pass

def evaluate(network):
    return {score}
"""


def payload(folder, score=1.0, **changed):
    """What a worker is sent for the recipe file in `folder`, as a process that reads it now makes it."""
    (folder / "shared_recipe.py").write_text(MODULE.replace("{score}", str(score)))
    sys.modules.pop("shared_recipe", None)
    importlib.invalidate_caches()
    linecache.clearcache()
    module = importlib.import_module("shared_recipe")
    torch.manual_seed(0)
    facts = {
        "network": module.Net(4, 4), "example": torch.ones(2, 4), "dynamic_axes": (0,), "rules": (), "target": "paper",
        "stats": b"", "evaluate": module.evaluate, "goal": Goal(), "engine": "simulation",
        "reference": Score(metric=1.0), "model": "m", "data": "d", "batches": (),
    }  # fmt: skip
    return Payload(**facts | changed)


def test_a_worker_tells_recipes_apart_by_all_that_they_hold(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        names = [
            content(payload(tmp_path, **changed), pickle.Pickler)
            for changed in (
                {},
                {"score": 2.0},  # the same file, written again
                {"rules": ("another",)},
                {"engine": "openvino"},
                {"goal": Goal(max_drop=0.5)},
                {"stats": b"others"},
                {"batches": (torch.ones(1),)},
                {"network": nn.Linear(4, 4)},
            )
        ]
        assert len(set(names)) == len(names)
        assert content(payload(tmp_path), pickle.Pickler) == names[0]
    finally:
        sys.modules.pop("shared_recipe", None)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # Ray's own
def test_two_workers_and_one_that_is_lost(tmp_path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
        inputs = torch.randn(300, 16)
        with torch.no_grad():
            targets = model(inputs).argmax(1)
        driver, lost, calls = os.getpid(), tmp_path / "lost", tmp_path / "calls"
        calls.mkdir()

        def evaluate(network):
            scores = (network(inputs).argmax(1) == targets).float()
            if os.getpid() != driver:
                if not lost.exists():
                    lost.touch()
                    os._exit(1)  # the machine goes down in the middle of a trial
                time.sleep(2)
                (calls / f"{os.getpid()}-{time.monotonic_ns()}").touch()
            return scores

        arguments = {
            "calibration": [torch.randn(32, 16)],
            "evaluate": evaluate,
            "max_drop": 0.2,
            "engine": "simulation",
            "progress": False,
        }
        spread = octavo.quantize(model, **arguments, trials_on="ray", out=tmp_path / "ray")
        assert lost.exists()
        workers = {call.name.partition("-")[0] for call in calls.iterdir()}
        assert len(workers) == 2
        assert len(list(calls.iterdir())) == 4  # each of the four methods once, the lost one again
        here = octavo.quantize(model, **arguments)
        assert [trial.scores for trial in spread.trials] == [trial.scores for trial in here.trials]
        assert [trial.method for trial in spread.trials] == ["max", "entropy", "99.99", "99.999"]
        with Study(tmp_path / "ray") as study:
            assert {trial.key for trial in study.trials()} == {trial.key for trial in spread.trials}
        again = octavo.quantize(model, **arguments, trials_on="ray", out=tmp_path / "ray")
        assert len(list(calls.iterdir())) == 4
        assert again.metric == spread.metric
        assert again.overlap == spread.overlap == here.overlap == Overlap(calibrated=32, scored_too=0)
    finally:
        ray.shutdown()
