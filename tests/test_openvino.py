"""The OpenVINO engine: it computes what the simulation says, on integers, and is called like the user's model.

Agreement. Engine and simulation round the same values to the same grids, but compute them in a different order, so that
a value half-way between two integers may go either way: one step, about 1 % of that tensor's range, for one value in
thousands. Hence two bounds: a small one on the mean, which any systematic difference breaks (a wrong scale, gate order
or clip gives 0.2 % and more), and a wide one on the largest.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_structure

from conftest import runs_here
from octavo.engines import available, compile
from octavo.engines.openvino import compile_openvino
from octavo.errors import QuantizationError
from octavo.machine import adds_int8_pairs_in_16_bits
from octavo.measure import sqnr_db
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import call_arguments, capture
from octavo.network.placement import make_plan
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.network.target import TARGETS
from octavo.numerics import Scheme, dequantize, quantize

MEAN, LARGEST = 3e-4, 3e-2  # of the largest output


def assert_agrees(engine, reference, batch) -> None:
    args, kwargs = call_arguments(batch)
    with torch.no_grad():
        wanted, found = reference(*args, **kwargs), engine(*args, **kwargs)
    assert tree_structure(found) == tree_structure(wanted)
    for want, have in zip(tree_leaves(wanted), tree_leaves(found), strict=True):
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
        errors = (have - want).abs() / want.abs().max()
        assert float(errors.mean()) <= MEAN
        assert float(errors.max()) <= LARGEST


def prepared(model, example, rules=(EVERYTHING,), target="openvino", **capturing):
    graph = capture(model, example, **capturing)
    plan = make_plan(graph, rules, target=runs_here(target))
    return choose_params(plan, observe(plan, [example]))


class Convolutions(nn.Module):
    """Plain, depthwise and pointwise convolution with a residual addition, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        y = F.relu6(self.stem(x))
        y = y + self.pointwise(F.relu6(self.depthwise(y)))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def convolutions():
    return prepared(Convolutions(), torch.randn(4, 3, 12, 12))


@pytest.fixture(scope="module")
def convolutions_compiled(convolutions):
    return compile_openvino(convolutions, threads=1)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_convolutional_network_at_any_batch_size(convolutions, convolutions_compiled, batch) -> None:
    assert_agrees(convolutions_compiled, simulate(convolutions), torch.randn(batch, 3, 12, 12))


def test_every_convolution_and_linear_multiplies_integers(convolutions_compiled) -> None:
    executions = convolutions_compiled.executions()
    assert list(executions) == ["stem", "depthwise", "pointwise", "head"]
    assert all(execution.on_integers for execution in executions.values())
    assert {executions[name].precision for name in ("depthwise", "pointwise")} == {"u8"}  # after a ReLU


def test_the_float_network_is_the_baseline(convolutions) -> None:
    graph = convolutions.graph
    engine = compile_openvino(graph, threads=1)
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(engine(x), graph(x).detach(), rtol=0, atol=1e-5)
    assert {execution.precision for execution in engine.executions().values()} == {"f32"}


def test_bf16_is_used_only_when_asked_for(convolutions) -> None:
    graph = convolutions.graph
    engine = compile_openvino(graph, precision="bf16", threads=1)
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(engine(x), graph(x).detach(), rtol=0, atol=0.05)


def test_calls_from_several_threads_do_not_mix(convolutions_compiled) -> None:
    batches = [torch.randn(1 + i % 3, 3, 12, 12) for i in range(24)]
    alone = [convolutions_compiled(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(convolutions_compiled, batches))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_output_outlives_the_next_call(convolutions_compiled) -> None:
    x = torch.randn(2, 3, 12, 12)
    first = convolutions_compiled(x)
    kept = first.clone()
    convolutions_compiled(-x)
    assert torch.equal(first, kept)


def test_an_input_of_another_dtype_is_refused(convolutions_compiled) -> None:
    with pytest.raises(QuantizationError, match=r"x: asked to run on torch.float64, but the network was captured with"):
        convolutions_compiled(torch.randn(1, 3, 12, 12, dtype=torch.float64))


def test_an_input_that_is_a_view_is_read_as_it_looks(convolutions_compiled) -> None:
    x = torch.randn(2, 12, 12, 3).permute(0, 3, 1, 2)
    assert torch.equal(convolutions_compiled(x), convolutions_compiled(x.contiguous()))


def test_attention_runs_on_integers_in_both_products() -> None:
    encoder = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
    net = prepared(encoder, torch.randn(4, 6, 32), dynamic_axes=(0, 1))
    engine = compile_openvino(net, threads=1)
    assert_agrees(engine, simulate(net), torch.randn(3, 9, 32))
    executions = engine.executions()
    assert {"self_attn.matmul", "self_attn.matmul@1", "linear1", "linear2"} <= executions.keys()
    assert all(execution.on_integers for execution in executions.values())


def test_dicts_in_and_out_and_a_none_between() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 8)
            self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, tokens, weights):
            hidden = torch.relu(self.first(self.table(tokens)))
            logits = self.head((hidden * weights.unsqueeze(-1)).sum(1))
            return {"logits": logits, "nothing": None, "weights": weights, "twice": [logits, hidden]}

    example = {"tokens": torch.randint(20, (4, 6)), "weights": torch.rand(4, 6)}
    net = prepared(Inner(), example)
    engine = compile_openvino(net, threads=1)
    batch = {"weights": torch.rand(3, 6), "tokens": torch.randint(20, (3, 6))}
    reference = simulate(net)
    out = engine(**batch)
    assert list(out) == ["logits", "nothing", "weights", "twice"]
    assert out["nothing"] is None
    assert torch.equal(out["weights"], batch["weights"])
    assert out["twice"][0] is out["logits"]
    wanted = reference(**batch)
    for key in ("logits", "twice"):
        for want, have in zip(tree_leaves(wanted[key]), tree_leaves(out[key]), strict=True):
            torch.testing.assert_close(have, want.detach(), rtol=0, atol=LARGEST * float(want.detach().abs().max()))
    executions = engine.executions()
    assert {name: execution.arithmetic for name, execution in executions.items()} == {
        "table": "float",  # OpenVINO makes a float table of it
        "first": "int8",
        "head": "int8",
    }


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("settings", [{"bidirectional": True, "num_layers": 2}, {"bias": False}])
def test_recurrent_layers_compute_in_float_from_integer_weights(network, kind, settings) -> None:
    layer = kind(6, 8, batch_first=True, **settings)
    net = prepared(network(lambda self, x: self.layer(x), layer=layer), torch.randn(4, 5, 6))
    engine = compile_openvino(net, threads=1)
    batch = torch.randn(3, 5, 6)
    with torch.no_grad():
        wanted, found = tree_leaves(simulate(net)(batch)), tree_leaves(engine(batch))
    for want, have in zip(wanted, found, strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-5)  # no activation is rounded: no ties


def decibels(engine, reference, batch) -> float:
    """How far `engine` is from `reference` on one batch; only rounding at ties separates what is right."""
    args, kwargs = call_arguments(batch)
    with torch.no_grad():
        return min(
            sqnr_db(want, have)
            for want, have in zip(
                tree_leaves(reference(*args, **kwargs)), tree_leaves(engine(*args, **kwargs)), strict=True
            )
        )


def _concat(self, x):
    return self.last(torch.cat([self.second(x), self.first(x)], 1))


def _normalized(self, x):
    return self.last(self.norm(torch.cat([self.first(x), self.second(x)], 1)))


def _chained(self, x):
    y = F.relu(self.first(x))
    return self.last(torch.cat([y, self.second(x) - self.first(x)], 1))


def _unsqueezed(self, x):
    return self.last(
        torch.cat([self.first(x), self.second(x)], 1).flatten(1).unsqueeze(1).unsqueeze(1).expand(-1, 16, 2, -1)
    )


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("scheme", [None, Scheme(), Scheme(bits=6), Scheme(bits=7, full_range=True)])
@pytest.mark.parametrize("forward", [_concat, _normalized, _chained, _unsqueezed])
def test_convolutions_of_signed_activations(network, forward, scheme, groups) -> None:
    """OpenVINO 2026.4 computes those of int8 wrongly behind a concat, an unsqueeze or a norm: 3 to 11 dB."""
    model = network(
        forward,
        first=nn.Conv2d(3, 8, 3, padding=1),
        second=nn.Conv2d(3, 8, 1),
        norm=nn.GroupNorm(4, 16),
        last=nn.Conv2d(16, 16, 3, padding=1, groups=groups),
    )
    rules = [EVERYTHING] if scheme is None else [Rule("*", role="input", scheme=scheme), EVERYTHING]
    net = prepared(model, torch.randn(8, 3, 9, 8), rules)
    engine = compile_openvino(net, threads=1)
    assert decibels(engine, simulate(net), 2 * torch.randn(3, 3, 9, 8)) >= 40
    assert all(execution.on_integers for execution in engine.executions().values())


def test_one_dimensional_and_transposed_convolutions(network) -> None:
    def forward(self, x):
        return self.last(torch.relu(self.up(torch.relu(self.first(x)))))

    model = network(
        forward,
        first=nn.Conv1d(4, 16, 5, stride=2, padding=2),
        up=nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1),
        last=nn.Conv1d(8, 4, 3, dilation=2),
    )
    net = prepared(model, torch.randn(4, 4, 32))
    engine = compile_openvino(net, threads=1)
    assert_agrees(engine, simulate(net), torch.randn(3, 4, 32))
    executions = engine.executions()
    in_float = ["up"] if adds_int8_pairs_in_16_bits() else []  # OpenVINO's transposed convolution needs AVX-512
    assert list(executions) == ["first", "up", "last"]
    assert [name for name, execution in executions.items() if not execution.on_integers] == in_float


def test_a_grouped_transposed_convolution_falls_back_to_float_and_says_so(network) -> None:
    model = network(lambda self, x: self.up(x), up=nn.ConvTranspose1d(8, 8, 4, stride=2, groups=2))
    net = prepared(model, torch.randn(4, 8, 16))
    engine = compile_openvino(net, threads=1)
    assert_agrees(engine, simulate(net), torch.randn(3, 8, 16))
    assert not engine.executions()["up"].on_integers


def test_a_layer_called_twice_runs_twice(network) -> None:
    model = network(lambda self, x: self.layer(torch.relu(self.layer(x))), layer=nn.Linear(8, 8))
    net = prepared(model, torch.randn(16, 8))
    engine = compile_openvino(net, threads=1)
    assert_agrees(engine, simulate(net), torch.randn(50, 8))
    assert list(engine.executions()) == ["layer", "layer@1"]


def test_a_quantized_weight_alone_does_not_count_as_integer_arithmetic(network) -> None:
    model = network(lambda self, x: self.layer(x), layer=nn.Linear(64, 64))
    net = prepared(model, torch.randn(16, 64), rules=[Rule("*", role="input", skip=True), Rule("*")])
    engine = compile_openvino(net, threads=1)
    x, (layer,) = torch.randn(5, 64), model.children()
    (weight,) = net.values.values()
    # Of the integers that are stored: the simulation, by its reciprocal, may have a neighbour of one near a tie.
    wanted = F.linear(x, dequantize(quantize(layer.weight.detach(), weight), weight), layer.bias)
    torch.testing.assert_close(engine(x), wanted.detach(), rtol=0, atol=1e-5)
    assert not engine.executions()["layer"].on_integers


def test_a_stack_of_weights_is_multiplied_in_float() -> None:
    """OpenVINO 2026.4 returned up to 1e32 here: its integer product reads past one matrix of the stack."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(3, 8, 6))

        def forward(self, x):
            return x @ self.experts

    net = prepared(Experts(), torch.randn(4, 3, 50, 8))
    engine = compile_openvino(net, threads=1)
    assert_agrees(engine, simulate(net), torch.randn(2, 3, 50, 8))
    assert not engine.executions()["matmul"].on_integers


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(),
        Scheme(bits=4),
        Scheme(signed=False, symmetric=False),
        Scheme(signed=False, symmetric=False, bits=5),
        Scheme(symmetric=False),
    ],
    ids=["paper", "4-bit", "affine", "5-bit affine", "signed affine"],
)
def test_activations_saturate_where_the_scheme_ends(network, scheme) -> None:
    """Inputs far outside the calibrated range: a missing clip would let them through to −128 or 255."""
    model = network(lambda self, x: self.layer(x), layer=nn.Linear(8, 4))
    rules = [Rule("*", role="input", scheme=scheme), Rule("*")]
    net = prepared(model, torch.randn(32, 8), rules=rules)
    engine = compile_openvino(net, threads=1)
    assert_agrees(engine, simulate(net), 10 * torch.randn(64, 8) - 3)


def test_both_branches_of_a_residual_rounded_is_more_than_openvino_does() -> None:
    """Why the openvino target leaves one branch alone: the plugin fuses that rounding away, and is up to a step off."""
    x = torch.randn(4, 3, 12, 12)
    model = Convolutions()
    differences = {}
    for residual in ("skip", "both"):
        net = prepared(model, x, target=replace(TARGETS["openvino"], residual=residual))
        want = simulate(net)(x).detach()
        differences[residual] = float((compile_openvino(net, threads=1)(x) - want).abs().mean() / want.abs().max())
    assert differences["skip"] <= MEAN
    assert differences["both"] <= 1e-2


def test_what_openvino_cannot_compile_names_the_way_out(monkeypatch, convolutions) -> None:
    import openvino  # noqa: PLC0415

    def refuse(*_):
        raise RuntimeError("Check failed at core.cpp:117:\nno such kernel")

    monkeypatch.setattr(openvino.Core, "compile_model", refuse)
    with pytest.raises(QuantizationError, match=r"failed \(no such kernel\); use another engine"):
        compile_openvino(convolutions)


def test_the_door_knows_its_engines(convolutions) -> None:
    assert {"openvino", "reference"} <= set(available())
    with pytest.raises(QuantizationError, match=r"'tensorflow', but the known engines are openvino, .*; choose one"):
        compile(convolutions, engine="tensorflow")


def test_a_missing_package_is_named(monkeypatch, convolutions) -> None:
    monkeypatch.setattr("octavo.engines.find_spec", lambda name: None if name == "openvino" else name)
    assert "openvino" not in available()
    with pytest.raises(QuantizationError, match=r"openvino cannot be imported; pip install openvino, or choose"):
        compile(convolutions, engine="openvino")


def test_the_door_opens_to_openvino_by_default(convolutions) -> None:
    x = torch.randn(2, 3, 12, 12)
    assert_agrees(compile(convolutions, threads=1), simulate(convolutions), x)


LOWEST = torch.finfo(torch.float32).min
MASKS = {
    "1e4": lambda scores, keep: scores + (1 - keep) * -1e4,
    "1e9": lambda scores, keep: scores + (1 - keep) * -1e9,
    "subtracted": lambda scores, keep: scores - (1 - keep) * 1e9,
    "in two halves": lambda scores, keep: scores + 2 * (1 - keep) * (LOWEST / 2),
    "divided": lambda scores, keep: scores + (keep - 1) / 1e-9,
    "moved": lambda scores, keep: scores + (keep * 1e9 - 1e9).expand(-1, 2, -1, -1),
    "lowest": lambda scores, keep: scores + torch.where(keep > 0.5, 0.0, LOWEST),
}


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_mask_does_not_swallow_the_scores(network, form, kind) -> None:
    """OpenVINO takes the user's constant for a scale and moves it across the sum: 0.4 to 50 dB."""

    def attention(self, x, keep):
        q, k, v = (f(x).view(x.shape[0], -1, 2, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = MASKS[form](q @ k.transpose(-1, -2) / 8**0.5, keep[:, None, None, :].float())
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def batch(n):
        keep = torch.rand(n, 7) > 0.4
        keep[:, 0] = True
        return torch.randn(n, 7, 16), keep.to(kind)

    net = prepared(network(attention, **{name: nn.Linear(16, 16) for name in "qkvo"}), batch(8))
    engine = compile_openvino(net, threads=1)
    x, keep = batch(5)
    keep[0] = 0  # a row that is masked throughout
    assert decibels(engine, simulate(net), (x, keep)) >= 60
    assert all(execution.on_integers for execution in engine.executions().values())


@pytest.mark.parametrize(
    "reduce", [torch.amax, torch.amin, lambda *a, **k: torch.max(*a, **k)[0]], ids=["amax", "amin", "max"]
)
@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("last", ["conv", "linear"])
@pytest.mark.parametrize("then", [torch.clone, torch.relu, lambda y: y * 2 + 1])
def test_an_extreme_is_rounded_as_any_other(network, reduce, axis, last, then) -> None:
    """OpenVINO's ReduceMax and ReduceMin round wrongly when they do it themselves: 0 to 30 dB."""
    model = network(
        lambda self, x: self.last(then(reduce(self.first(x), axis, keepdim=True).expand(-1, 8, 8, 8))),
        first=nn.Conv2d(8, 8, 3, padding=1),
        last=nn.Conv2d(8, 8, 1) if last == "conv" else nn.Linear(8, 8),
    )
    net = prepared(model, torch.randn(8, 8, 8, 8))
    engine = compile_openvino(net, threads=1)
    assert decibels(engine, simulate(net), torch.randn(3, 8, 8, 8)) >= 40


def test_a_product_with_a_vector(network) -> None:
    """OpenVINO's integer product of [K] and [K, N] returned [1, N], and a softmax over axis 0 was all ones."""

    def forward(self, x):
        share = self.mix(x.mean((0, 2, 3))).softmax(0)
        weight = (share.view(3, 1, 1, 1, 1) * self.experts).sum(0)
        pooled = x.mean((2, 3))
        return F.conv2d(x, weight, padding=1), self.mix(pooled[0]), pooled @ pooled[0], pooled[0] @ pooled[0]

    model = network(forward, mix=nn.Linear(3, 3), experts=nn.Parameter(torch.randn(3, 8, 3, 3, 3)))
    net = prepared(model, torch.randn(8, 3, 8, 8) + 1)
    engine = compile_openvino(net, threads=1)
    x = torch.randn(3, 3, 8, 8) + 1
    want, have = simulate(net)(x), engine(x)
    assert [y.shape for y in have] == [y.shape for y in want]
    assert decibels(engine, simulate(net), x) >= 40


def test_a_failed_conversion_names_the_layers(network) -> None:
    """OpenVINO reads the axis of ONNX's DFT wrongly, so that a recurrent layer behind it has unknown sizes."""

    def forward(self, x):
        return self.memory(torch.fft.rfft(x.unfold(-1, 16, 8)).abs())[0]

    net = prepared(network(forward, memory=nn.LSTM(9, 8, batch_first=True)), torch.randn(4, 64))
    with pytest.raises(QuantizationError, match="cannot convert LSTM memory") as raised:
        compile_openvino(net, threads=1)
    assert raised.value.__cause__ is not None


OVERFLOW = """
import torch
from torch import nn
from dataclasses import replace
from conftest import Network
from octavo.engines.openvino import compile_openvino
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.simulate import simulate
from octavo.network.target import TARGETS
from octavo.numerics import Scheme
from octavo.measure import sqnr_db

narrow = replace(TARGETS["openvino"], weight=Scheme(bits=7, axis=0), factor=Scheme(bits=7, full_range=True))
near = lambda *shape: 0.9 + 0.1 * torch.rand(*shape)  # of one sign and near the largest: sums of pairs leave 16 bits
for function in (
    lambda self, x, y: x @ y.transpose(1, 2),
    lambda self, x, y: x.relu() @ y.transpose(1, 2),
    lambda self, x, y: (x / 100).softmax(-1) @ y.transpose(1, 2),
    lambda self, x, y: nn.functional.linear(x.relu(), y[0]),
    lambda self, x, y: nn.functional.conv1d(x.relu(), y.transpose(1, 2)[:, :5]),
    lambda self, x, y: self.layer(x.relu()),
):
    layer = nn.Linear(64, 8)
    torch.nn.init.uniform_(layer.weight, 0.9, 1)
    batch = near(3, 5, 64), near(3, 6, 64)
    graph = capture(Network(function, layer=layer), batch, dynamic_axes=())
    plan = make_plan(graph, target=narrow)
    params = choose_params(plan, observe(plan, [batch, tuple(-x for x in batch)]))
    with torch.no_grad():
        print(sqnr_db(simulate(params)(*batch), compile_openvino(params, threads=1)(*batch)))
"""


@pytest.mark.parametrize("isa", ["AVX2", pytest.param("AVX512_CORE", marks=pytest.mark.slow)])
def test_products_do_not_overflow_without_vnni(isa) -> None:
    """With right-hand sides of eight bits these are at 0.6 to 16 dB there."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    run = subprocess.run(
        [sys.executable, "-c", OVERFLOW], env=environment, capture_output=True, text=True, check=True, timeout=250
    )
    found = [float(line) for line in run.stdout.split()]
    assert len(found) == 6
    assert min(found) >= 40, found
