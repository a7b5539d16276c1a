"""What the last version called otherwise still works, with a warning that names the new way."""

import inspect
import sqlite3

import pytest
import torch
from torch import nn

import octavo
from octavo.engines import auto
from octavo.former import RENAMED, REPAIRS_RENAMED, RETURNED_PAIRS, TOOK_PAIRS

X = torch.randn(8, 6)
SCHEDULE = octavo.Schedule(epochs=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def made():
    graph = octavo.capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), X)
    plan = octavo.make_plan(graph)
    stats = octavo.observe(plan, [X])
    return graph, plan, stats, octavo.choose_params(plan, stats)


def calls(net, stats, folder):
    """{function: (what it was made from, the arguments behind, keywords)}"""
    module = octavo.trainable(net)
    return {
        "observe": (net.plan, [[X]], {}),
        "choose_params": (net.plan, [stats, "entropy"], {}),
        "simulate": (net, [], {}),
        "compile": (net, [], {"engine": "reference"}),
        "choose_engine": (net, [], {"rounds": 1}),
        "export": (net, [folder / "net.onnx"], {}),
        "save": (net, [folder / "net.octavo"], {"engine": "reference"}),
        "repair": (net, [[X], ["correct_bias"]], {}),
        "finetune": (net, [], {"train": [X], "schedule": SCHEDULE, "progress": False}),
        "trainable": (net, [], {"ranges": "learned"}),
        "trained": (net, [module], {}),
    }


@pytest.mark.parametrize("name", TOOK_PAIRS)
@pytest.mark.parametrize("by", ["place", "name"])
def test_a_graph_beside_what_was_made_from_it(name, by, made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(auto, "available", lambda: ("reference",))
    graph, _, stats, net = made
    of, args, options = calls(net, stats, tmp_path)[name]
    function = getattr(octavo, name)
    behind = dict(zip(list(inspect.signature(function).parameters)[1:], args, strict=False))
    pair = {"graph": graph, "plan" if isinstance(of, octavo.Plan) else "params": of} | behind if by == "name" else {}
    with pytest.warns(DeprecationWarning, match=rf"octavo\.{name}\(graph, …\) is now octavo\.{name}\(…\)"):
        found = function(**pair, **options) if pair else function(graph, of, *args, **options)
    wanted = function(of, *args, **options)
    if name in RETURNED_PAIRS:
        graph_of_found, found = found
        assert graph_of_found is found.graph
    assert type(found) is type(wanted) or isinstance(found, nn.Module)
    if isinstance(found, octavo.Quantized):
        assert all(torch.equal(one.scale, wanted.values[key].scale) for key, one in found.values.items())


def test_a_float_network_was_one_without_parameters(made) -> None:
    with pytest.warns(DeprecationWarning, match=r"octavo\.compile\(graph, …\) is now"):
        network = octavo.compile(made[0], None, engine="openvino")
    torch.testing.assert_close(network(X), made[0](X))


def test_another_graph_is_an_error(made) -> None:
    other = octavo.capture(nn.Linear(6, 3), X)
    with (
        pytest.warns(DeprecationWarning, match=r"octavo\.simulate"),
        pytest.raises(octavo.QuantizationError, match="was made from another graph"),
    ):
        octavo.simulate(other, made[-1])


def test_names_and_fields(made) -> None:
    for old, new in RENAMED.items():
        with pytest.warns(DeprecationWarning, match=rf"octavo\.{old} is now octavo\.{new}"):
            assert getattr(octavo, old) is getattr(octavo, new)
    with pytest.raises(AttributeError, match="'octavo' has no attribute 'Parameters'"):
        octavo.Parameters  # noqa: B018
    found = octavo.finetune(made[-1], train=[X], schedule=SCHEDULE, progress=False)
    result = octavo.quantize(
        nn.Sequential(nn.Linear(6, 3)), calibration=[X], evaluate=lambda network: float(network(X).norm()),
        engine="simulation", trials=1, progress=False,
    )  # fmt: skip
    for value in (found, result):
        with pytest.warns(DeprecationWarning, match=r"\.graph is now .*\.net"):
            assert value.graph is value.net.graph
        with pytest.warns(DeprecationWarning, match=r"\.params is now .*\.net"):
            assert value.params is value.net
    with pytest.warns(DeprecationWarning, match=r"Result\.rungs is now Result\.stages"):
        assert result.rungs is result.stages


def test_calls_of_today_warn_of_nothing(made) -> None:
    graph, plan, stats, net = made
    octavo.simulate(octavo.choose_params(plan, stats))
    octavo.compile(net, engine="reference")
    octavo.compile(graph, engine="openvino")


def test_repairs_of_other_names(made) -> None:
    net = made[-1]
    for old, new in REPAIRS_RENAMED.items():
        with pytest.warns(DeprecationWarning, match=f"the repair '{old}' is now '{new}'"):
            found = octavo.repair(net, [X], [old])
        assert torch.equal(octavo.simulate(found)(X), octavo.simulate(octavo.REPAIRS[new](net, [X]))(X))


def test_a_study_that_knows_repairs_by_other_names_goes_on(tmp_path) -> None:
    """Their trials have the keys that they had, and are candidates of today."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    options = {
        "calibration": [X], "evaluate": lambda network: -float((network(X) - model(X)).square().sum()), "max_drop": 0.0,
        "rules": [octavo.Rule("*", bits=2)], "engine": "simulation", "out": tmp_path, "progress": False,
    }  # fmt: skip
    before = octavo.quantize(model, **options)
    tried = {name for trial in before.trials for name in trial.repairs}
    assert tried & set(REPAIRS_RENAMED.values())
    database = sqlite3.connect(tmp_path / "study.sqlite", isolation_level=None)
    for old, new in REPAIRS_RENAMED.items():
        database.execute("UPDATE trials SET repairs = replace(repairs, ?, ?)", (f'"{new}"', f'"{old}"'))
    database.close()
    after = octavo.quantize(model, **options)
    assert [trial.key for trial in after.trials] == [trial.key for trial in before.trials]
    assert torch.equal(after.model(X), before.model(X))
