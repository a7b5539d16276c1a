"""Whether an engine is right is measured on real inputs, against a bar that the network itself gives."""

import json
import math
import sys
import warnings
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

import octavo
from conftest import BasicBlock
from octavo import engines
from octavo.engines import ENGINES, Engine, available
from octavo.engines.artifact import read
from octavo.engines.check import DRAWS, ENOUGH_DB, LEAST_DB, agreement, moved, nearness, ran, simulated
from octavo.engines.container import write_container
from octavo.engines.faults import EngineFaultError
from octavo.engines.reference import compile_reference
from octavo.errors import QuantizationError
from octavo.network.edit import attribute
from octavo.network.graph import clone
from octavo.network.origin import origin_of
from octavo.network.samples import SAMPLES, Samples, packed, unpacked
from octavo.network.target import target_for
from octavo.workflow import race

# ---- the samples that calibration keeps


def kept(graph, *batches):
    samples = Samples(graph)
    for args in batches:
        samples.show(args, {})
    return [args for args, _ in samples.calls]


def test_a_few_samples_are_kept_over_the_batches(calibrated):
    graph, params = calibrated(nn.Linear(4, 3), torch.randn(2, 4))
    first, second = torch.randn(3, 4), torch.randn(9, 4)
    (one,), (other,) = kept(graph, (first,), (second,), (torch.randn(5, 4),))
    assert torch.equal(one, first)
    assert torch.equal(other, second[: SAMPLES - 3])
    ((args, kwargs),) = params.samples  # what the fixture calibrated with
    assert (args[0].shape, kwargs) == (torch.Size([2, 4]), {})


def test_samples_are_copies_of_the_inputs_alone(calibrated):
    graph, _ = calibrated(nn.Linear(4, 3), x := torch.randn(2, 4))
    plan = octavo.make_plan(graph)
    ((args, _),) = octavo.observe(graph, plan, [(x, "a label")]).samples
    assert torch.equal(args[0], x)
    x.zero_()
    assert args[0].abs().sum() > 0


def test_what_cannot_be_cut_is_kept_whole_once(network, calibrated):
    model = network(lambda self, nodes, edges: self.a(nodes)[edges[0]], a=nn.Linear(4, 3))
    example = (torch.randn(6, 4), torch.randint(0, 6, (2, 9)))
    graph, _ = calibrated(model, example, dynamic_axes=(0, 1))
    batches = [(torch.randn(700, 4), torch.randint(0, 700, (2, 100_000))) for _ in range(3)]
    ((nodes, edges),) = kept(graph, *batches)
    assert torch.equal(nodes, batches[0][0])
    assert torch.equal(edges, batches[0][1])


def test_large_samples_are_fewer_and_empty_batches_none(calibrated):
    graph, _ = (
        calibrated(nn.Flatten(0), torch.randn(2, 3))
        if False
        else calibrated(nn.Linear(300_000, 1), torch.randn(2, 300_000))
    )
    ((x,),) = kept(graph, (torch.randn(4, 300_000),), (torch.randn(1, 300_000),))
    assert len(x) == 1
    graph, _ = calibrated(nn.Linear(4, 1), torch.randn(2, 4))
    ((y,),) = kept(graph, (torch.randn(1, 4),))
    assert len(y) == 1


def test_samples_come_back_from_data():
    calls = (((torch.randn(2, 3), None, 2.5), {"mask": torch.ones(2, dtype=torch.bool), "mode": ["a", 1, True]}),)
    records, tensors = packed(calls)
    ((args, kwargs),) = unpacked([type(r).model_validate_json(r.model_dump_json()) for r in records], tensors)
    assert torch.equal(args[0], calls[0][0][0])
    assert args[1:] == (None, 2.5)
    assert torch.equal(kwargs["mask"], calls[0][1]["mask"])
    assert kwargs["mode"] == ["a", 1, True]


# ---- how near two executions are


def near(a, b):
    return nearness(([a],), ([b],))


def test_nearness_of_known_numbers():
    a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.1], [-1.0, 0.0]])
    assert near(a, b) == [pytest.approx(10 * math.log10(2 / 0.01))]
    assert near(a, a) == [math.inf]
    assert nearness(([a], [a]), ([b], [a])) == [pytest.approx(10 * math.log10(4 / 0.01))]


def test_what_an_output_always_says_is_no_signal():
    """A thousand on every sample: half of the network may be lost and 60 dB are left of the plain ratio."""
    says = torch.randn(16, 8)
    assert octavo.sqnr_db(1000 + says, torch.full((16, 8), 1000.0)) > 50
    assert near(1000 + says, torch.full((16, 8), 1000.0))[0] < 1


def test_rounding_in_float32_is_no_deviation_of_steady_outputs():
    steady = torch.full((4, 8), 1000.0) + 1e-5 * torch.randn(4, 8)
    assert near(steady, steady * (1 + 1e-7))[0] > ENOUGH_DB


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2, dtype=torch.float16)),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 1.0])),
        (torch.tensor([1.0, 1.0]), torch.tensor([1.0, math.inf])),
        (torch.tensor([1.0, -math.inf]), torch.tensor([1.0, math.inf])),
        (torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 1e-6])),
    ],
)
def test_another_kind_of_output_is_never_near(a, b):
    assert near(a, b) == [-math.inf]
    assert nearness(([a],), ([b, b],)) == [-math.inf]


def test_masks_zeros_and_empty_outputs_are_near_themselves():
    for leaf in (torch.tensor([1.0, -math.inf, math.nan]), torch.zeros(3), torch.zeros(0, 2), torch.tensor(2.0)):
        assert near(leaf, leaf.clone()) == [math.inf]


def test_of_integers_the_share_counts():
    a = torch.arange(100)
    b = a.clone()
    b[:5] += 10**9
    assert near(a, b) == [pytest.approx(10 * math.log10(20))]
    assert agreement(([a],), ([b],), lambda: []).holds  # 5 % may differ
    b[:20] += 1
    assert not agreement(([a],), ([b],), lambda: []).holds


def test_the_worst_output_decides_and_nothing_is_drawn_without_need():
    a, b = torch.randn(4, 5), torch.randn(4, 5)

    def never():
        raise AssertionError

    assert agreement(([a, b],), ([a, b],), never).holds
    found = agreement(([a, b],), ([a, 1.1 * b],), lambda: [([a, b],)] * DRAWS)
    assert not found.holds
    assert 15 < found.nearness_db < 25
    assert found.bar_db == ENOUGH_DB


def test_an_output_that_always_says_the_same_is_never_near_enough():
    """However much rounding shakes the network: half of what it says has to be there."""
    says = torch.randn(64, 8)
    silent, shaken = says.mean(0).expand(64, 8), torch.randn(64, 8)
    found = agreement(([says],), ([silent],), lambda: [([shaken],)] * DRAWS)
    assert not found.holds
    assert found.bar_db == LEAST_DB


# ---- the bar, from both sides


def deep(blocks: int) -> nn.Module:
    """As deep as trained networks are, and as steady: every block adds a little to what passes it by."""
    made = [BasicBlock(8) for _ in range(blocks)]
    for block in made:
        nn.init.constant_(block.norm2.weight, 0.3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *made, nn.Flatten(), nn.Linear(800, 10))


@pytest.mark.parametrize("engine", available())
@pytest.mark.parametrize("blocks", [1, 12])
def test_right_engines_pass_however_deep_the_network_is(blocks, engine, calibrated):
    graph, params = calibrated(deep(blocks).eval(), torch.randn(8, 3, 12, 12), target=target_for(engine))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = octavo.compile(graph, params, engine=engine)
    assert origin_of(network).params is params


def wrongly(graph, params, layer, factor):
    """(graph, params) whose weight of `layer`, and the unit of its integers, are `factor` times what they should be."""
    quantizer = next(q for q in params.plan.quantizers if q.constant and q.sites[0].layer == layer)
    other = clone(graph)
    node = next(node for node in other.module.graph.nodes if node.name == quantizer.edges[0].source)
    attribute(other.module, node).data.mul_(factor)
    scale = params.values[quantizer.name].scale * (abs(factor) or 1)
    values = {**params.values, quantizer.name: replace(params.values[quantizer.name], scale=scale)}
    return other, replace(params, values=values)


@pytest.mark.parametrize("blocks", [1, 12])
@pytest.mark.parametrize("factor", [2.0, -1.0, 0.0])
def test_wrong_ones_do_not(factor, blocks, calibrated):
    graph, params = calibrated(deep(blocks).eval(), torch.randn(8, 3, 12, 12), target="paper")
    calls = params.samples
    wanted = simulated(graph, params, calls)
    for layer in ("0", f"{blocks + 2}", *["1.conv2"] * (blocks == 1)):
        wrong = ran(compile_reference(*wrongly(graph, params, layer, factor)), calls)
        found = agreement(wanted, wrong, lambda: moved(graph, params, calls, 2**-10))
        assert not found.holds, (layer, found)


# ---- an engine's fault


def engine_that(monkeypatch, name, compile, **row):
    """Register an engine whose compile function is `compile`."""
    module = ModuleType(f"octavo_test_{name}")
    module.compile = compile
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(ENGINES, name, Engine(module=module.__name__, function="compile", **row))


def wrong_in(*wrong):
    """The reference, which multiplies by 1.5 too much in the layers `wrong`, where they are quantized."""

    def compile(graph, params, **options):
        layers = {site.layer for q in params.plan.quantizers for site in q.sites}
        for layer in set(wrong) & layers:
            graph, params = wrongly(graph, params, layer, 1.5)
        return compile_reference(graph, params)

    return compile


@pytest.fixture
def made(network, calibrated):
    def forward(self, x):
        return self.last(torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))))

    layers = {name: nn.Linear(16, 16) for name in ("first", "second", "third", "last")}
    return calibrated(network(forward, **layers).eval(), torch.randn(32, 16), target="paper")


@pytest.mark.parametrize("wrong", [("first",), ("second",), ("last",), ("second", "last"), ("first", "third")])
def test_a_layer_that_the_engine_computes_wrongly_is_left_in_float(wrong, made, monkeypatch):
    graph, params = made
    engine_that(monkeypatch, "wrong", wrong_in(*wrong))
    with pytest.warns(UserWarning, match="left in float: .* because wrong computes it wrongly: it would be .* dB"):
        network = octavo.compile(graph, params, engine="wrong")
    found = origin_of(network).params
    assert {kept.site for kept in found.plan.coverage.kept_float} == set(wrong)
    assert all("wrong computes it wrongly" in kept.reason for kept in found.plan.coverage.kept_float)
    assert params.plan.coverage.kept_float == ()
    x = torch.randn(64, 16)
    assert octavo.sqnr_db(octavo.simulate(graph, found)(x), network(x)) > 40  # but for ties
    assert (
        octavo.sqnr_db(octavo.simulate(graph, params)(x), octavo.compile(graph, params, engine="wrong", check=False)(x))
        < 30
    )


def always_wrong(graph, params, **options):
    network = compile_reference(graph, params)
    return lambda x: network(x) * 1.5


def failing(graph, params, **options):
    def run(x):
        raise RuntimeError("Unsupported post op swish")

    return run


class _Callable:
    def __init__(self, run):
        self.run = run

    def __call__(self, *args):
        return self.run(*args)


def wrapped(make):
    return lambda graph, params, **options: _Callable(make(graph, params))


@pytest.mark.parametrize(
    ("make", "says"), [(always_wrong, "dB from the simulation"), (failing, "Unsupported post op swish")]
)
def test_an_engine_that_is_wrong_with_every_plan_is_one_error(make, says, made, monkeypatch):
    engine_that(monkeypatch, "wrong", wrapped(make))
    with pytest.raises(EngineFaultError, match=f"computes something else than the network.*{says}.*check=False"):
        octavo.compile(*made, engine="wrong")
    assert octavo.compile(*made, engine="wrong", check=False) is not None


def test_auto_takes_the_fastest_that_is_right(made, monkeypatch, tmp_path):
    engine_that(monkeypatch, "wrong", wrapped(always_wrong))
    engine_that(monkeypatch, "half", wrong_in("second"))
    monkeypatch.setattr(race, "available", lambda: ("wrong", "reference"))
    with pytest.raises(QuantizationError, match=r'wrong: it computes something else.*; use engine="reference"'):
        octavo.compile(*made, engine="auto")
    monkeypatch.setattr(race, "available", lambda: ("wrong", "half", "reference"))
    with pytest.warns(UserWarning, match="left in float: second"):
        network = octavo.compile(*made, engine="auto")
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
    assert result.met
    assert {(trial.rung, trial.kept_float) for trial in result.trials} == {("ptq", ())}
    assert [kept.site for kept in result.coverage.kept_float] == ["a"]
    assert "left in float: a, because wrong computes it wrongly" in result.summary
    record = json.loads((tmp_path / "result.json").read_text())
    assert "wrong computes it wrongly" in record["coverage"]["kept_float"][0]["reason"]


def test_quantize_measures_which_engine_is_fastest_and_remembers_it(network, monkeypatch, tmp_path):
    compiled = []

    def compile(name, wrong, wait):
        def make(graph, params, **options):
            compiled.append(name)
            net = compile_reference(graph, params)

            def run(x):
                for _ in range(wait):
                    net(x)
                return net(x) * (1.5 if wrong else 1)

            return _Callable(run)

        return make

    engine_that(monkeypatch, "slow", compile("slow", wrong=False, wait=20))
    engine_that(monkeypatch, "fast", compile("fast", wrong=False, wait=0))
    engine_that(monkeypatch, "faster", compile("faster", wrong=True, wait=0))
    names = ("faster", "slow", "fast", "reference")
    monkeypatch.setattr(race, "available", lambda: names)
    monkeypatch.setattr("octavo.workflow.trial.available", lambda: names)
    model = network(lambda self, x: self.a(x), a=nn.Linear(8, 16)).eval()
    arguments = {"calibration": [torch.randn(32, 8)], "evaluate": lambda net: 1.0, "out": tmp_path, "progress": False}
    assert octavo.quantize(model, **arguments).engine == "fast"
    assert set(compiled) == {"faster", "slow", "fast"}
    compiled.clear()
    assert octavo.quantize(model, **arguments).engine == "fast"
    assert set(compiled) == {"fast"}


def test_the_float_network_is_the_users(made, monkeypatch):
    graph, _ = made
    engine_that(monkeypatch, "wrong", lambda graph, params, **options: _Callable(lambda x: graph(x) * 1.1))
    with pytest.raises(EngineFaultError, match=r"compile the float network for wrong.* dB from the network itself"):
        octavo.compile(graph, None, engine="wrong")
    octavo.compile(graph, None, engine="wrong", check=False)


# ---- the same where a saved network is loaded


@pytest.fixture
def saved(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    octavo.save(*made, tmp_path / "net.octavo", engine="reference")
    return tmp_path / "net.octavo"


def counted(monkeypatch, target="octavo.engines.artifact.compile_right"):
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
    monkeypatch.setattr("octavo.engines.evidence.machine", lambda: {"cpu": "another", "flags": []})
    octavo.load(saved)
    assert len(calls) == 2
    monkeypatch.setattr("octavo.engines.evidence.versions", lambda: {"openvino": "2027.0"})
    octavo.load(saved)
    assert len(calls) == 3


def test_another_file_is_checked_again(made, saved, monkeypatch):
    calls = counted(monkeypatch)
    octavo.load(saved)
    graph, params = made
    octavo.save(*wrongly(graph, params, "second", 1.01), saved, engine="reference")
    octavo.load(saved)
    assert len(calls) == 2


def test_what_the_simulation_returned_lies_in_the_file(made, saved):
    graph, params = made
    artifact = read(saved)
    assert [call[0][0].tolist() for call in artifact.params.samples] == [call[0][0].tolist() for call in params.samples]
    wanted = [[leaf.tolist() for leaf in leaves] for leaves in simulated(graph, params, params.samples)]
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
    artifact_files = {}
    from octavo.engines.container import read_container  # noqa: PLC0415

    manifest, files = read_container(saved)
    for name, data in files.items():
        if name != "samples.safetensors":
            artifact_files[name] = data
    record = json.loads(files["network.json"])
    del record["samples"], record["notes"]
    artifact_files["network.json"] = json.dumps(record).encode()
    monkeypatch.setattr("octavo.engines.container.SCHEMA", 1)
    write_container(
        tmp_path / "old.octavo", artifact_files, form="file", engine="reference", versions=manifest.versions
    )
    monkeypatch.undo()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    calls = counted(monkeypatch)
    x = torch.randn(3, 16)
    assert torch.equal(octavo.load(tmp_path / "old.octavo")(x), engines.compile(*made, engine="reference")(x))
    assert len(calls) == 1
