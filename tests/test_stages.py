"""The stages of repairs and of training: what they try, what they keep, and that nothing is done twice."""

import copy
import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import octavo
from octavo import Rule, Schedule, Scheme
from octavo.cli import app
from octavo.recovery.repair import REPAIRS
from octavo.workflow.goal import halves

FAST = {"engine": "simulation", "progress": False, "min_int8": 0.0}  # so that every stage has something to try
THREE_BITS = [Rule(role="weight", bits=3), Rule("*", bits=4)]


class Case:
    """A classifier with 1 where a network agrees with it, per sample; counts the networks that are scored."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)]
        self.model = nn.Sequential(*layers).eval()
        self.inputs = torch.randn(1000, 16)
        self.targets = self.model(self.inputs).argmax(1)
        self.calibration = [torch.randn(64, 16) for _ in range(4)]
        self.calls = 0

    def evaluate(self, network):
        self.calls += 1
        return (network(self.inputs).argmax(1) == self.targets).float()


class Training:
    """Towards the float network, on unlabelled data; counts how often it is asked, and keeps what it made."""

    def __init__(self) -> None:
        self.calls, self.made = 0, None

    def __call__(self, module) -> None:
        self.calls += 1
        torch.manual_seed(1)
        data = [torch.randn(64, 16) for _ in range(30)]
        octavo.fit(
            module,
            train=data,
            schedule=Schedule(epochs=4, learning_rate=3e-3),
            optimizer=lambda parameters, rate: torch.optim.Adam(parameters, rate),
            progress=False,
        )
        self.made = copy.deepcopy(module)


def quantize(case, **options):
    return octavo.quantize(
        case.model, calibration=case.calibration, evaluate=case.evaluate, **{**FAST, "rules": THREE_BITS, **options}
    )


def keeps_function(trial) -> bool:
    return all(REPAIRS[name].keeps_function for name in trial.repairs)


def stage(result, name):
    return [trial for trial in result.trials if trial.stage == name]


def chosen_by(result, trial) -> float:
    """The metric on the samples that choose."""
    choosing, _ = halves(result.reference)
    return sum(trial.scores[number] for number in choosing) / len(choosing)


def test_a_repair_stays_only_where_the_metric_is_better_for_it() -> None:
    result = quantize(Case())
    best = max(stage(result, "ptq") + stage(result, "ptq_more"), key=lambda trial: chosen_by(result, trial))
    tried = stage(result, "repair")
    assert [trial.repairs[-1] for trial in tried] == list(octavo.REPAIRS)
    kept, metric = (), chosen_by(result, best)
    for trial in tried:
        assert trial.method == best.method
        assert trial.repairs[:-1] == kept
        if chosen_by(result, trial) > metric:
            kept, metric = trial.repairs, chosen_by(result, trial)
    assert metric > chosen_by(result, best)  # of six, some helped
    assert "repair" in result.summary


def test_layers_go_back_to_float_in_a_network_that_is_not_fitted_to_its_rounding() -> None:
    """What is fitted to the rounding of all layers is wrong when some are no longer rounded."""
    result = quantize(Case(), max_drop=0.0)
    assert any(not keeps_function(trial) for trial in stage(result, "repair"))
    unfitted = [trial for trial in result.trials if not trial.kept_float and keeps_function(trial)]
    start = max(unfitted, key=lambda trial: chosen_by(result, trial))
    assert stage(result, "partial")
    for trial in stage(result, "partial"):
        assert keeps_function(trial)
        same = [chosen_by(result, other) for other in unfitted if other.repairs == trial.repairs]
        assert max(same) == chosen_by(result, start)


def outlying(scale: float) -> tuple[nn.Module, torch.Tensor]:
    """A network whose output does not depend on the size of a sample, and samples of which some are `scale` larger."""
    layers = [
        nn.Linear(16, 32, bias=False),
        nn.ReLU(),
        nn.Linear(32, 32, bias=False),
        nn.ReLU(),
        nn.Linear(32, 5, bias=False),
    ]
    inputs = torch.randn(1000, 16)
    inputs[::10] *= scale
    return nn.Sequential(*layers).eval(), inputs


def test_rows_are_tried_before_layers_are_left_in_float(tmp_path) -> None:
    case = Case()
    case.model, case.inputs = outlying(200.0)
    case.targets = case.model(case.inputs).argmax(1)
    case.calibration = [outlying(200.0)[1][:64] for _ in range(4)]
    result = quantize(case, rules=(Rule("*"),), max_drop=0.05, out=tmp_path)
    assert [row.stage for row in result.stages] == ["ptq", "ptq_more", "repair", "rows"]
    assert result.met
    assert result.best.rows
    assert result.kept_float == ()
    assert any(quantizer.scheme.rows for quantizer in result.net.plan.quantizers)
    assert "scales of rows" in result.summary
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["rows"], [row["rows"] for row in record["trials"]].count(True)) == (True, 1)
    assert max(trial.metric for trial in result.trials if not trial.rows) < result.metric - 0.05
    calls = case.calls
    again = quantize(case, rules=(Rule("*"),), max_drop=0.05, out=tmp_path)
    assert case.calls == calls  # of the study
    assert again.best.rows


def test_rows_are_no_rung_of_a_network_of_convolutions() -> None:
    case = Case()
    layers = [nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 2), nn.Flatten(), nn.Linear(8, 5)]
    case.model = nn.Sequential(nn.Unflatten(1, (4, 4)), *layers).eval()
    case.targets = case.model(case.inputs).argmax(1)
    result = quantize(case, max_drop=0.0)
    assert [row.stage for row in result.stages if row.stage == "rows"] == []


CHANNELS = {"rules": (Rule("*"),), "target": "openvino", "max_drop": 0.05}


def depthwise(case: Case) -> Case:
    """`case` with a depthwise convolution that reads the inputs themselves, in four channels of four."""
    layers = [nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)]
    case.model = nn.Sequential(nn.Unflatten(1, (4, 4)), *layers).eval()
    case.targets = case.model(case.inputs).argmax(1)
    return case


def test_one_scale_a_tensor_is_tried_where_scales_of_channels_lose(tmp_path) -> None:
    """A channel that is quiet while the ranges are taken, and loud afterwards, is clipped by a range of its own."""
    case = depthwise(Case())
    quiet = torch.tensor([0.01, 1, 1, 1]).repeat_interleave(4)
    case.calibration = [batch * quiet for batch in case.calibration]
    result = quantize(case, **CHANNELS, out=tmp_path)
    assert [row.stage for row in result.stages] == ["ptq", "ptq_more", "tensor"]
    assert result.met
    assert not result.best.channels
    assert all(quantizer.constant or quantizer.scheme.axis is None for quantizer in result.net.plan.quantizers)
    assert "one scale a tensor" in result.summary
    assert len(result.coverage.per_tensor) == 1
    assert max(trial.metric for trial in result.trials if trial.channels) < result.metric - 0.05
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["channels"], [row["channels"] for row in record["trials"]].count(False)) == (False, 1)
    calls = case.calls
    assert not quantize(case, **CHANNELS, out=tmp_path).best.channels
    assert case.calls == calls  # of the study
    plan = octavo.make_plan(result.net.graph, target=result.net.plan.target)
    anew = octavo.choose_params(plan, octavo.observe(plan, case.calibration), result.best.method)
    for name, params in anew.values.items():  # the histograms of channels are coarser than one of the tensor
        torch.testing.assert_close(result.net.values[name].scale, params.scale, rtol=0.01, atol=0.0)


def test_all_methods_are_tried_with_one_scale_a_tensor_where_the_best_is_better_so() -> None:
    case = depthwise(Case())
    quiet = torch.tensor([0.01, 1, 1, 1]).repeat_interleave(4)
    case.calibration = [batch * quiet for batch in case.calibration]
    result = quantize(case, rules=(Rule("*", bits=3),), target="openvino", max_drop=0.0)
    tried = stage(result, "tensor")
    assert {"max", "entropy", "99.99", "99.999"} <= {trial.method for trial in tried}
    assert not any(trial.channels for trial in tried)
    assert not any(trial.channels for trial in stage(result, "repair"))  # of the best so far


def test_one_scale_a_tensor_is_no_stage_where_it_is_the_plan() -> None:
    result = quantize(depthwise(Case()), max_drop=0.0, target="paper")
    assert not stage(result, "tensor")
    own = Rule(operation="conv1d", role="input", scheme=Scheme(axis=1, bits=3))  # what a rule asks for stays
    result = quantize(depthwise(Case()), max_drop=0.0, target="openvino", rules=(own, Rule("*", bits=3)), trials=8)
    assert not stage(result, "tensor")


def test_training_is_the_last_resort_and_starts_without_layers_in_float(tmp_path) -> None:
    case, training = Case(), Training()
    result = quantize(case, train=training, out=tmp_path, max_drop=0.0)
    assert [row.stage for row in result.stages] == ["ptq", "ptq_more", "repair", "rows", "partial", "train"]
    (trial,) = stage(result, "train")
    assert training.calls == 1
    assert trial.trained
    assert trial.kept_float == ()
    whole = [other for other in result.trials if not other.kept_float and not other.trained]
    assert trial.repairs == max(whole, key=lambda other: chosen_by(result, other)).repairs
    # Whether it is better by the metric is chance: samples near ties, and other CPUs sum in another order.
    assert trial.metric == pytest.approx(float(case.evaluate(training.made).mean()))
    record = json.loads((tmp_path / "result.json").read_text())
    assert [row["stage"] for row in record["stages"]][-1] == "train"

    calls = case.calls
    again = quantize(case, train=training, out=tmp_path, max_drop=0.0)
    assert training.calls == 1  # what training made is in the study
    assert case.calls == calls
    assert [other.metric for other in again.trials] == [other.metric for other in result.trials]


def test_the_trained_network_is_what_is_returned(tmp_path) -> None:
    case = Case()

    def only_training_helps(network):
        scores = case.evaluate(network)
        return scores if case.calls in (1, 2) else scores * 0.5

    def train(module) -> None:
        Training()(module)
        case.calls = 1  # the next network that is scored is the trained one

    result = octavo.quantize(
        case.model, calibration=case.calibration, evaluate=only_training_helps, train=train, rules=THREE_BITS, **FAST
    )
    best = max(result.trials, key=lambda trial: chosen_by(result, trial))
    if best.stage == "train":
        x = case.inputs[:8]
        state, trained = case.model.state_dict(), result.model.state_dict()
        assert any(not torch.equal(state[name], trained[name]) for name in state if name in trained)
        assert result.model(x).shape == (8, 5)
    else:
        pytest.fail(f"{best.stage} was best")


def test_without_train_there_is_no_such_trial() -> None:
    result = quantize(Case(), max_drop=0.0)
    assert not stage(result, "train")
    assert "train" not in [row.stage for row in result.stages if row.trials]


def test_training_that_diverges_is_a_trial_with_an_error() -> None:
    def train(module) -> None:
        octavo.fit(
            module,
            train=[torch.randn(64, 16)],
            loss=lambda outputs, batch: outputs.sum() * float("nan"),
            schedule=Schedule(epochs=1, learning_rate=1.0),
            progress=False,
        )

    result = quantize(Case(), train=train, max_drop=0.0)
    (trial,) = stage(result, "train")
    assert "the loss of batch 0 in epoch 1 is nan" in trial.error
    assert not result.met
    assert result.metric == max(other.metric for other in result.trials if other.error is None)


def test_training_that_breaks_off_loses_nothing_that_was_measured(tmp_path) -> None:
    case, training = Case(), Training()

    def broken(module) -> None:
        raise RuntimeError("no disk space left")

    with pytest.raises(RuntimeError, match="no disk space left"):
        quantize(case, train=broken, out=tmp_path, max_drop=0.0)
    calls = case.calls
    result = quantize(case, train=training, out=tmp_path, max_drop=0.0)
    assert case.calls == calls + 1
    assert stage(result, "train")


RECIPE = """
import torch
import octavo
from torch import nn

torch.manual_seed(0)
layers = [nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)]
NETWORK = nn.Sequential(*layers).eval()
INPUTS = torch.randn(1000, 16)
TARGETS = NETWORK(INPUTS).argmax(1)


def model():
    return NETWORK


def calibration():
    return [torch.randn(64, 16) for _ in range(4)]


def evaluate(network):
    return (network(INPUTS).argmax(1) == TARGETS).float()


def train(module):
    octavo.fit(module, train=calibration(), schedule=octavo.Schedule(epochs=2, learning_rate=1e-3))


def options():
    return {"rules": [octavo.Rule(role="weight", bits=3), octavo.Rule("*", bits=4)]}
"""


def test_a_recipe_that_trains(tmp_path) -> None:
    recipe = tmp_path / "trains.py"
    recipe.write_text(RECIPE)
    out = tmp_path / "out"
    arguments = ["run", recipe, "--max-drop", "0%", "--engine", "simulation", "--out", out]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    record = json.loads((out / "result.json").read_text())
    assert [row["stage"] for row in record["stages"]] == ["ptq", "ptq_more", "repair", "rows", "partial", "train"], (
        result.output
    )
    assert record["trials"][-1]["trained"]
