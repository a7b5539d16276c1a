"""The inductor engine: integer kernels against exact arithmetic, the lowered graph against the simulation.

The bounds are those of the OpenVINO engine's tests: values half-way between two integers may go either way.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import runs_here
from octavo.engines import compile
from octavo.engines.inductor import lowered
from octavo.engines.native import compiler, load_kernels
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.numerics import Scheme
from test_openvino import assert_agrees, prepared

pytestmark = pytest.mark.skipif(compiler() is None, reason="the inductor engine needs a C++ compiler")


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    load_kernels()


class Attention(nn.Module):
    """Query, key and value from one input; masked; a residual addition, a norm and two linears with GELU."""

    def __init__(self, width=32, heads=4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, mask):
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.norm(x + self.output(context.transpose(1, 2).flatten(2)))
        return x + self.contract(F.gelu(self.expand(x)))


class Causal(nn.Module):
    """One packed projection; scores divided by a number and hidden above the diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Linear(16, 48, bias=False)

    def forward(self, x):
        q, k, v = self.packed(x).chunk(3, -1)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(1, 2) / math.sqrt(16)).masked_fill(hidden, -math.inf)
        return torch.softmax(scores, -1) @ v


class Products(nn.Module):
    """Products that are no attention: of two activations, of different ranks, with a constant matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))

    def forward(self, x, y):
        return torch.relu(x @ y.transpose(1, 2)) @ (y[0] @ self.weight)


class Convolutions(nn.Module):
    """Strided, depthwise, padded, pooled and added convolutions, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding="same", groups=16, bias=False)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu6(self.stem(F.pad(x, (1, 0, 1, 0))))
        x = F.max_pool2d(x, 2)
        x = x + self.pointwise(F.hardswish(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


class Sequence(nn.Module):
    """Convolutions over time, as speech encoders begin, and an embedding beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(8, 12, 3, padding=1), nn.Conv1d(12, 12, 3, stride=2, padding=1)
        self.positions = nn.Embedding(64, 12)

    def forward(self, x):
        x = F.gelu(self.two(F.gelu(self.one(x)))).transpose(1, 2)
        return x + self.positions(torch.arange(x.shape[1]))


class Twice(nn.Module):
    """One linear called twice, with inputs of different ranges, and one that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.tied = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.linear.weight

    def forward(self, x):
        return self.tied(self.linear(torch.tanh(self.linear(x)) * 5))


class Mixed(nn.Module):
    """Integers moved about: concatenated, sliced, repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 4)

    def forward(self, x):
        both = torch.cat([self.one(x), self.two(x)], -1)
        return self.three(both.flip(1)), self.three(both.roll(1, 1))


CASES = {
    "attention": (Attention(), (torch.randn(3, 10, 32), torch.rand(3, 10) < 0.8)),
    "causal": (Causal(), (torch.randn(2, 9, 16),)),
    "products": (Products(), (torch.randn(2, 5, 8), torch.randn(2, 7, 8))),
    "convolutions": (Convolutions(), (torch.randn(2, 3, 32, 32),)),
    "sequence": (Sequence(), (torch.randn(2, 8, 20),)),
    "twice": (Twice(), (torch.randn(4, 8),)),
    "mixed": (Mixed(), (torch.randn(2, 6, 8),)),
}
TARGETS = ("onednn", "openvino", "paper", "tensorrt")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_the_lowered_graph_is_the_simulation(name, target) -> None:
    model, example = CASES[name]
    net = prepared(model.eval(), example, target=target)
    module, executions = lowered(net)
    assert_agrees(module, simulate(net), example)
    assert executions
    assert all(execution.on_integers for execution in executions.values())


@pytest.mark.parametrize(
    "scheme",
    [Scheme(bits=4, full_range=True), Scheme(signed=False, symmetric=False), Scheme(symmetric=False), Scheme(bits=5)],
)
@pytest.mark.parametrize("name", ["attention", "convolutions", "mixed"])
def test_activations_of_any_scheme(name, scheme) -> None:
    model, example = CASES[name]
    graph = capture(model.eval(), example)
    rules = [Rule("*", role="weight"), Rule("*", scheme=scheme)]
    plan = make_plan(graph, rules, target=runs_here("paper"))
    net = choose_params(plan, observe(plan, [example]))
    module, _ = lowered(net)
    with torch.no_grad():
        runs = [torch.utils._pytree.tree_leaves(run(*example)) for run in (model, simulate(net), module)]
    for exact, want, have in zip(*runs, strict=True):
        # One value at a tie moves all that is computed from it, so elements are not counted: a few ties are far less
        # than quantization itself. In 60 draws of every case it was at most 0.013 of it.
        noise = (want - exact).double().square().sum()
        assert (have - want).double().square().sum() <= noise / 10


def test_linears_of_one_input_become_one() -> None:
    model, example = CASES["attention"]
    net = prepared(model.eval(), example, target="onednn")
    module, executions = lowered(net)
    linears = {torch.ops.octavo.int8_linear.default, torch.ops.octavo.int8_linear_of_bytes.default}
    kernels = [node for node in module.graph.nodes if node.target in linears]
    assert len(kernels) == 4  # of six linears
    assert {name: row.kernel for name, row in executions.items()}["key"] == "linear"


@pytest.mark.parametrize("rule", [Rule("query", skip=True), Rule("*value", skip=True), Rule("matmul@1", skip=True)])
def test_layers_left_in_float_are_said_to_be(rule) -> None:
    model, example = CASES["attention"]
    net = prepared(model.eval(), example, rules=(rule, EVERYTHING), target="onednn")
    module, executions = lowered(net)
    assert_agrees(module, simulate(net), example)
    in_float = {name for name, row in executions.items() if not row.on_integers}
    assert in_float
    assert not in_float & {"expand", "contract", "output"}


@pytest.mark.parametrize(
    ("model", "example", "layer"),
    [
        (nn.Conv3d(2, 3, 3), torch.randn(1, 2, 5, 5, 5), "conv3d"),
        (nn.ConvTranspose2d(2, 3, 3), torch.randn(1, 2, 5, 5), "conv_transpose2d"),
    ],
)
def test_operations_without_a_kernel_run_in_float_and_say_so(model, example, layer) -> None:
    net = prepared(nn.Sequential(model, nn.ReLU()).eval(), (example,), target="onednn")
    module, executions = lowered(net)
    assert_agrees(module, simulate(net), (example,))
    (execution,) = executions.values()
    assert (execution.kernel, execution.on_integers) == (layer, False)


def test_a_weight_in_blocks_or_with_a_zero_point_runs_in_float() -> None:
    for scheme in (Scheme(axis=1, block=4), Scheme(symmetric=False, axis=0)):
        rules = [Rule("*", role="weight", scheme=scheme), EVERYTHING]
        net = prepared(nn.Sequential(nn.Linear(8, 8)).eval(), (torch.randn(4, 8),), rules, "paper")
        module, executions = lowered(net)
        assert_agrees(module, simulate(net), (torch.randn(4, 8),))
        assert not any(execution.on_integers for execution in executions.values())


@pytest.fixture(scope="module")
def transformer():
    model, example = CASES["attention"]
    net = prepared(model.eval(), example, target="onednn", dynamic_axes=(0, 1))
    graph = net.graph
    return graph, net, compile(net, engine="inductor")


@pytest.mark.parametrize(("batch", "length"), [(3, 10), (1, 10), (5, 1), (1, 1), (2, 37)])
def test_the_compiled_network_takes_any_batch_and_length(transformer, batch, length) -> None:
    _, net, network = transformer
    example = torch.randn(batch, length, 32), torch.ones(batch, length, dtype=torch.bool)
    assert_agrees(network, simulate(net), example)
    assert torch.equal(network(*example), network(*example))


def test_inputs_may_lie_anyhow_in_memory(transformer) -> None:
    _, _, network = transformer
    x, mask = torch.randn(3, 32, 10).transpose(1, 2), (torch.rand(10, 3) < 0.9).t()
    assert torch.equal(network(x, mask), network(x.contiguous(), mask.contiguous()))


def test_the_second_compilation_comes_from_the_cache(transformer, monkeypatch) -> None:
    _, net, network = transformer
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda *_, **__: pytest.fail("compiled again"))
    again = compile(net, engine="inductor")
    x = torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool)
    assert torch.equal(network(*x), again(*x))
    assert again.size_mb == network.size_mb > 0
    assert {row.kernel for row in network.executions().values()} == {"linear", "attention"}


def test_convolutions_and_the_float_network_compile() -> None:
    model, example = CASES["convolutions"]
    net = prepared(model.eval(), example, target="openvino")
    graph = net.graph
    assert_agrees(compile(net, engine="inductor"), simulate(net), example)
    assert torch.allclose(compile(graph, engine="inductor")(*example), model(*example), atol=1e-5)


def test_no_compiler_is_said_plainly(monkeypatch) -> None:
    monkeypatch.setattr("octavo.engines.compiler", lambda: None)
    net = prepared(nn.Sequential(nn.Linear(4, 4)).eval(), (torch.randn(2, 4),))
    with pytest.raises(QuantizationError, match=r"there is no C\+\+ compiler; install g\+\+, or choose one of"):
        compile(net, engine="inductor")


def test_an_example_in_channels_last_compiles_for_all_layouts():
    """Images read as [N, H, W, C] and permuted are not contiguous; compiled code is for one layout."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(2, 12, 12, 3).permute(0, 3, 1, 2)
    net = prepared(model, x, target="onednn")
    network, sim = compile(net, engine="inductor"), simulate(net)
    for batch in (x, x.contiguous()):
        assert_agrees(network, sim, batch)
