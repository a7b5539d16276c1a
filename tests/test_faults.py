"""What an engine computes wrongly is gone around and named, or is one error: when it compiles, searches and loads."""

import json
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

import octavo
from octavo import engines
from octavo.engines import ENGINES, Engine, auto
from octavo.engines.check import simulated
from octavo.engines.faults import EngineFaultError
from octavo.engines.reference import compile_reference
from octavo.errors import QuantizationError
from octavo.network.quantized import origin_of
from octavo.saved.artifact import read
from octavo.saved.container import read_container, write_container
from test_check import wrongly


def engine_that(monkeypatch, name, compile, **row):
    """Register an engine whose compile function is `compile`."""
    module = ModuleType(f"octavo_test_{name}")
    module.compile = compile
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(ENGINES, name, Engine(module=module.__name__, function="compile", **row))


def wrong_in(*wrong):
    """The reference, which multiplies by 1.5 too much in the layers `wrong`, where they are quantized."""

    def compile(net, **options):
        layers = {site.layer for q in net.plan.quantizers for site in q.sites}
        for layer in set(wrong) & layers:
            net = wrongly(net, layer, 1.5)
        return compile_reference(net)

    return compile


@pytest.fixture
def made(network, calibrated):
    def forward(self, x):
        return self.last(torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))))

    layers = {name: nn.Linear(16, 16) for name in ("first", "second", "third", "last")}
    return calibrated(network(forward, **layers).eval(), torch.randn(32, 16), target="paper")


@pytest.mark.parametrize("wrong", [("first",), ("second",), ("last",), ("second", "last"), ("first", "third")])
def test_a_layer_that_the_engine_computes_wrongly_is_left_in_float(wrong, made, monkeypatch):
    net = made
    engine_that(monkeypatch, "wrong", wrong_in(*wrong))
    with pytest.warns(UserWarning, match="left in float: .* because wrong computes it wrongly: it would be .* dB"):
        network = octavo.compile(net, engine="wrong")
    found = origin_of(network).net
    assert {kept.site for kept in found.plan.coverage.kept_float} == set(wrong)
    assert all("wrong computes it wrongly" in kept.reason for kept in found.plan.coverage.kept_float)
    assert net.plan.coverage.kept_float == ()
    x = torch.randn(64, 16)
    assert octavo.sqnr_db(octavo.simulate(found)(x), network(x)) > 40  # but for ties
    assert octavo.sqnr_db(octavo.simulate(net)(x), octavo.compile(net, engine="wrong", check=False)(x)) < 30


def always_wrong(net, **options):
    network = compile_reference(net)
    return lambda x: network(x) * 1.5


def failing(net, **options):
    def run(x):
        raise RuntimeError("Unsupported post op swish")

    return run


class _Callable:
    def __init__(self, run):
        self.run = run

    def __call__(self, *args):
        return self.run(*args)


def wrapped(make):
    return lambda net, **options: _Callable(make(net))


@pytest.mark.parametrize(
    ("make", "says"), [(always_wrong, "dB from the simulation"), (failing, "Unsupported post op swish")]
)
def test_an_engine_that_is_wrong_with_every_plan_is_one_error(make, says, made, monkeypatch):
    engine_that(monkeypatch, "wrong", wrapped(make))
    with pytest.raises(EngineFaultError, match=f"computes something else than the network.*{says}.*check=False"):
        octavo.compile(made, engine="wrong")
    assert octavo.compile(made, engine="wrong", check=False) is not None


def test_auto_takes_the_fastest_that_is_right(made, monkeypatch, tmp_path):
    engine_that(monkeypatch, "wrong", wrapped(always_wrong))
    engine_that(monkeypatch, "half", wrong_in("second"))
    monkeypatch.setattr(auto, "available", lambda: ("wrong", "reference"))
    with pytest.raises(QuantizationError, match=r'wrong: it computes something else.*; use engine="reference"'):
        octavo.compile(made, engine="auto")
    monkeypatch.setattr(auto, "available", lambda: ("wrong", "half", "reference"))
    with pytest.warns(UserWarning, match="left in float: second"):
        network = octavo.compile(made, engine="auto")
    assert network.choice.engine == "half"
    assert "dB from the simulation" in network.choice.rejected["wrong"]


def test_an_engines_fault_is_not_repaired_by_the_search(network, monkeypatch, tmp_path):
    """The layer is left in float on this engine, whatever the score, and no trial is spent on it."""
    model = network(lambda self, x: self.b(torch.relu(self.a(x))), a=nn.Linear(8, 16), b=nn.Linear(16, 4)).eval()
    engine_that(monkeypatch, "wrong", wrong_in("a"))
    batches = [torch.randn(32, 8) for _ in range(2)]
    labels = [model(x).argmax(1) for x in batches]

    def evaluate(net):
        return torch.cat([(net(x).argmax(1) == y).float() for x, y in zip(batches, labels, strict=True)])

    with pytest.warns(UserWarning, match="left in float: a, because wrong computes it wrongly"):
        result = octavo.quantize(
            model, calibration=batches, evaluate=evaluate, max_drop=0.5, engine="wrong", out=tmp_path, progress=False
        )
    assert result.verdict.met
    assert not result.met
    assert result.int8_share == pytest.approx(64 / (128 + 64))  # what is left on the engine, not what was planned
    assert {(trial.stage, trial.kept_float) for trial in result.trials} == {("ptq", ())}
    assert [kept.site for kept in result.coverage.kept_float] == ["a"]
    assert "left in float: a, because wrong computes it wrongly" in result.summary
    record = json.loads((tmp_path / "result.json").read_text())
    assert "wrong computes it wrongly" in record["coverage"]["kept_float"][0]["reason"]


def test_quantize_measures_which_engine_is_fastest_and_remembers_it(network, monkeypatch, tmp_path):
    compiled = []

    def compile(name, wrong, wait):
        def make(net, **options):
            compiled.append(name)
            run_one = compile_reference(net)

            def run(x):
                for _ in range(wait):
                    run_one(x)
                return run_one(x) * (1.5 if wrong else 1)

            return _Callable(run)

        return make

    engine_that(monkeypatch, "slow", compile("slow", wrong=False, wait=20))
    engine_that(monkeypatch, "fast", compile("fast", wrong=False, wait=0))
    engine_that(monkeypatch, "faster", compile("faster", wrong=True, wait=0))
    names = ("faster", "slow", "fast", "reference")
    monkeypatch.setattr(auto, "available", lambda: names)
    monkeypatch.setattr("octavo.workflow.trial.available", lambda: names)
    model = network(lambda self, x: self.a(x), a=nn.Linear(8, 16)).eval()
    x = torch.randn(32, 8)
    arguments = {"calibration": [x], "evaluate": lambda net: float(net(x).norm()), "out": tmp_path, "progress": False}
    assert octavo.quantize(model, **arguments).engine == "fast"
    assert set(compiled) == {"faster", "slow", "fast"}
    compiled.clear()
    assert octavo.quantize(model, **arguments).engine == "fast"
    assert set(compiled) == {"fast"}


def test_the_float_network_is_the_users(made, monkeypatch):
    engine_that(monkeypatch, "wrong", lambda net, **options: _Callable(lambda x: net(x) * 1.1))
    with pytest.raises(EngineFaultError, match=r"compile the float network for wrong.* dB from the network itself"):
        octavo.compile(made.graph, engine="wrong")
    octavo.compile(made.graph, engine="wrong", check=False)


# ---- the same where a saved network is loaded


@pytest.fixture
def saved(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    octavo.save(made, tmp_path / "net.octavo", engine="reference")
    return tmp_path / "net.octavo"


def counted(monkeypatch, target="octavo.saved.artifact.compile_right"):
    calls = []
    module, _, name = target.rpartition(".")
    original = getattr(sys.modules[module], name)
    monkeypatch.setattr(target, lambda *args, **options: calls.append(options) or original(*args, **options))
    return calls


def test_a_check_that_held_is_not_made_again(saved, monkeypatch):
    calls = counted(monkeypatch)
    octavo.load(saved)
    octavo.load(saved)
    assert len(calls) == 1
    octavo.load(saved, check=False)
    assert len(calls) == 1
    monkeypatch.setattr("octavo.saved.evidence.machine", lambda: {"cpu": "another", "flags": []})
    octavo.load(saved)
    assert len(calls) == 2
    monkeypatch.setattr("octavo.saved.evidence.versions", lambda: {"openvino": "2027.0"})
    octavo.load(saved)
    assert len(calls) == 3


def test_another_file_is_checked_again(made, saved, monkeypatch):
    calls = counted(monkeypatch)
    octavo.load(saved)
    net = made
    octavo.save(wrongly(net, "second", 1.01), saved, engine="reference")
    octavo.load(saved)
    assert len(calls) == 2


def test_what_the_simulation_returned_lies_in_the_file(made, saved):
    net = made
    artifact = read(saved)
    assert [call[0][0].tolist() for call in artifact.net.samples] == [call[0][0].tolist() for call in net.samples]
    wanted = [[leaf.tolist() for leaf in leaves] for leaves in simulated(net, net.samples)]
    assert [[leaf.tolist() for leaf in leaves] for leaves in artifact.expected] == wanted


def test_an_engine_that_is_wrong_where_the_file_is_loaded(saved, monkeypatch):
    engine_that(monkeypatch, "wrong", wrong_in("third"))
    for _ in range(2):  # what had to be left in float is not remembered as right
        with pytest.warns(UserWarning, match="left in float: third, because wrong computes it wrongly"):
            octavo.load(saved, engine="wrong")
    engine_that(monkeypatch, "wrong", wrapped(always_wrong))
    with pytest.raises(EngineFaultError, match="computes something else"):
        octavo.load(saved, engine="wrong")


def test_a_cache_that_cannot_be_written_is_no_error(saved, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file"))
    octavo.load(saved)


def test_files_without_samples_are_checked_on_their_example(made, saved, tmp_path, monkeypatch):
    """Those of schema 1, which earlier versions wrote."""
    manifest, files = read_container(saved)
    artifact_files = {name: data for name, data in files.items() if name != "samples.safetensors"}
    record = json.loads(files["network.json"])
    del record["samples"], record["notes"]
    artifact_files["network.json"] = json.dumps(record).encode()
    monkeypatch.setattr("octavo.saved.container.SCHEMA", 1)
    write_container(
        tmp_path / "old.octavo", artifact_files, form="file", engine="reference", versions=manifest.versions
    )
    monkeypatch.undo()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    calls = counted(monkeypatch)
    x = torch.randn(3, 16)
    assert torch.equal(octavo.load(tmp_path / "old.octavo")(x), engines.compile(made, engine="reference")(x))
    assert len(calls) == 1
