"""engine="auto" and `octavo bench`: what is chosen was compiled, checked and timed here, and what was found is said."""

import json
import warnings

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import octavo
from octavo import engines
from octavo.cli import app
from octavo.engines import auto, available, deploy
from octavo.engines.auto import Choice
from octavo.errors import QuantizationError
from octavo.measure import Latencies, Latency
from octavo.workflow.bench import batch_of

FAST = [name for name in available() if name != "reference"]


@pytest.fixture(scope="module")
def made():
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).eval()
    graph = octavo.capture(model, torch.randn(16, 64))
    plan = octavo.make_plan(graph)
    return octavo.choose_params(plan, octavo.observe(plan, [torch.randn(64, 64)]))


def test_auto_takes_the_fastest_of_those_it_timed(made):
    net = made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # which engine wins, and whether float does, is not ours to say
        network = octavo.compile(net, engine="auto")
    choice = network.choice
    assert choice.rejected == {}
    assert set(choice.latencies) == set(FAST)
    assert choice.engine == min(FAST, key=lambda name: choice.latencies[name].median_ms)
    assert str(choice).startswith(f"{choice.engine} is the fastest engine for this network here: {choice.engine} ")
    x = torch.randn(5, 64)
    assert torch.equal(network(x), octavo.compile(net, engine=choice.engine)(x))


def latency(median: float) -> Latency:
    return Latency(median_ms=median, p10_ms=median, p90_ms=median, rounds=3)


def choice(**float_ms: float) -> Choice:
    times = Latencies({name: latency(median) for name, median in float_ms.items()})
    return Choice(
        engine="openvino",
        latencies=Latencies(openvino=latency(2.0), inductor=latency(3.0)),
        float_ms=times,
        rejected={"onnxruntime": "it failed"},
    )


def test_it_says_plainly_when_int8_is_not_the_fastest():
    assert str(choice(int8=2.0, f32=4.0, bf16=1.5)).endswith("int8 is not the fastest for this network: bf16 is")
    assert "not the fastest" not in str(choice(int8=2.0, f32=4.0, bf16=2.5))
    assert str(choice()) == (
        "openvino is the fastest engine for this network here: openvino 2 ms, inductor 3 ms; "
        "onnxruntime is out: it failed"
    )


def test_a_faster_float_network_is_a_warning(made, monkeypatch):
    found = choice(int8=2.0, f32=1.0)
    monkeypatch.setattr(deploy, "choose_engine", lambda net, check: (nn.Identity(), found))
    with pytest.warns(UserWarning, match="int8 is not the fastest for this network: f32 is"):
        assert octavo.compile(made, engine="auto").choice is found


def test_an_engine_that_computes_something_else_or_fails_is_out(made, monkeypatch):
    params = made
    compile_one = engines.compile

    def broken(net, *, engine, **options):
        if engine == "openvino" and isinstance(net, octavo.Quantized):
            return lambda x: compile_one(net, engine="reference")(x) * 1.5
        if engine == "inductor":
            raise QuantizationError(asked="compile", seen="the compiler is on strike", remedy="negotiate")
        return compile_one(net, engine="reference")

    monkeypatch.setattr(engines, "compile", broken)
    monkeypatch.setattr(auto, "available", lambda: ("openvino", "inductor", "onnxruntime", "reference"))
    _, found = octavo.choose_engine(params)
    assert found.engine == "onnxruntime"
    assert found.rejected["inductor"] == "the compiler is on strike"
    assert "dB from the simulation, where rounding accounts for" in found.rejected["openvino"]
    monkeypatch.setattr(auto, "available", lambda: ("openvino", "inductor", "reference"))
    with pytest.raises(QuantizationError, match=r"the compiler is on strike; use engine=\"reference\""):
        octavo.choose_engine(params)


def test_without_engines_the_reference_is_what_there_is(made, monkeypatch):
    monkeypatch.setattr(auto, "available", lambda: ("reference",))
    network = octavo.compile(made, engine="auto")
    assert network.choice.engine == "reference"
    assert network.choice.fastest == "int8"


@pytest.mark.parametrize(
    ("quantized", "options", "says"),
    [(False, {}, "a captured graph is the float network"), (True, {"threads": 1}, "options were given: threads")],
)
def test_auto_needs_a_quantized_network_and_no_options(quantized, options, says, made):
    with pytest.raises(QuantizationError, match=f"{says}; name one of the engines"):
        octavo.compile(made if quantized else made.graph, engine="auto", **options)


# ---- octavo bench


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_bench_times_a_saved_network_beside_float(made, tmp_path):
    octavo.save(made, tmp_path / "net.octavo")
    done = command("bench", tmp_path / "net.octavo", "--batch", 3, "--rounds", 2, "--json", tmp_path / "bench.json")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "bench.json").read_text())
    assert list(record["latency_ms"]) == ["torch_eager", "torch_compile", "openvino_fp32", "openvino_bf16", "int8"]
    assert (record["batch"], record["engine"], record["latency_errors"]) == (3, "openvino", {})
    assert "2 of 2 compute-heavy operations planned int8, 2 ran int8 on openvino" in done.output


def test_bench_of_what_is_no_network(tmp_path):
    (tmp_path / "net.octavo").write_text("poem")
    done = command("bench", tmp_path / "net.octavo")
    assert done.exit_code == 2
    assert "it is not a zip that can be read" in done.output


def test_a_batch_repeats_the_example_along_the_first_dynamic_axis(calibrated):
    graph = calibrated(nn.Linear(4, 3), torch.arange(8.0).reshape(2, 4)).graph
    (found,) = batch_of(graph, 5)
    assert found[:, 0].tolist() == [0, 4, 0, 4, 0]
    graph = calibrated(nn.Linear(4, 3), torch.randn(2, 4), dynamic_axes=()).graph
    with pytest.raises(QuantizationError, match="without dynamic axes; capture it with"):
        batch_of(graph, 5)


def test_inductor_has_a_bfloat16_float_network(network, calibrated):
    if "inductor" not in available():
        pytest.skip("there is no C++ compiler")
    model = network(lambda self, x: self.a(x) @ self.b(x).transpose(1, 2), a=nn.Linear(32, 32), b=nn.Linear(32, 32))
    graph = calibrated(model.eval(), x := torch.randn(2, 4, 32)).graph
    rounded = octavo.compile(graph, engine="inductor", precision="bf16")(x)
    exact = octavo.compile(graph, engine="inductor")(x)
    assert rounded.dtype == torch.float32
    assert 30 < octavo.sqnr_db(exact, rounded) < 70
    assert octavo.sqnr_db(model(x), exact) > 100


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.parametrize(("bits", "overflows", "warned"), [(8, True, 1), (7, True, 0), (8, False, 0)])
def test_weights_that_may_overflow_on_this_cpu_are_warned_of(bits, overflows, warned, monkeypatch, calibrated):
    monkeypatch.setattr("octavo.engines.adds_int8_pairs_in_16_bits", lambda: overflows)
    rules = [octavo.Rule(role="weight", bits=bits), octavo.Rule("*")]
    net = calibrated(torch.nn.Sequential(torch.nn.Linear(8, 4)).eval(), torch.randn(2, 8), rules)
    with warnings.catch_warnings(record=True) as found:
        octavo.compile(net, engine="openvino")
    assert len([w for w in found if "this CPU, which has no VNNI" in str(w.message)]) == warned
    with warnings.catch_warnings(record=True) as found:
        octavo.compile(net, engine="reference")
    assert not found
