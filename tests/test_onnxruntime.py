"""The ONNX Runtime engine: it computes what the simulation says, and is called like the user's model.

Without its fusions it is the simulation but for ties. With them it rounds in other places: biases to integers of the
accumulator's scale, sums and pooled values to those of the next operation; near a tie these go either way, by one step.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import octavo
from conftest import runs_here
from octavo.engines import available, compile
from octavo.engines.onnxruntime_kernels import owner
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import call_arguments, capture
from octavo.network.placement import compute_heavy, make_plan
from octavo.network.rule import Rule
from octavo.network.simulate import simulate

pytest.importorskip("onnxruntime")

BOUNDS = {"none": (3e-4, 3e-2), "all": (4e-3, 4e-2)}  # mean and largest difference, of the largest output


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        y = F.relu6(self.stem(x))
        y = y + self.pointwise(F.relu6(self.depthwise(y)))
        return {"logits": self.head(y.mean((2, 3))), "nothing": None}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)

    def forward(self, tokens):
        return self.encoder(self.table(tokens))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layer(x)[0])


CASES = {
    "convolutions": (Convolutions, lambda n: torch.randn(n, 3, 12, 12), (0,)),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 5, 6), (0,)),
    "tokens": (Tokens, lambda n: torch.randint(50, (n, 5 + n)), (0, 1)),
}


def assert_agrees(engine, reference, batch, fusion) -> None:
    mean, largest = BOUNDS[fusion]
    args, kwargs = call_arguments(batch)
    with torch.no_grad():
        wanted, found = tree_leaves(reference(*args, **kwargs)), tree_leaves(engine(*args, **kwargs))
    for want, have in zip(wanted, found, strict=True):
        if want is None:
            assert have is None
            continue
        errors = (have - want).abs() / want.abs().max()
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
        assert float(errors.mean()) <= mean
        assert float(errors.max()) <= largest


# Without fusions, only what this engine is planned for; the other plans in `make slow`.
PLANS = [("onnxruntime", "none"), *[(target, "all") for target in ("onnxruntime", "openvino", "tensorrt", "paper")]]
OTHERS = [pytest.param(target, "none", marks=pytest.mark.slow) for target in ("openvino", "tensorrt", "paper")]


@pytest.mark.parametrize(("target", "fusion"), [*PLANS, *OTHERS])
@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_simulation_says(calibrated, case, target, fusion) -> None:
    build, make, axes = CASES[case]
    net = calibrated(build(), make(4), target=runs_here(target), dynamic_axes=axes)
    engine = compile(net, engine="onnxruntime", threads=1, fusion=fusion)
    for batch in (1, 3):
        assert_agrees(engine, simulate(net), make(batch), fusion)


class Pooled(nn.Module):
    """Residual blocks, one behind a max-pool and one before an average, and what is not a fusion of a convolution."""

    def __init__(self, block) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), block(8), block(8, downsample=True)
        self.wide, self.last, self.head = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        y = self.two(self.one(F.max_pool2d(F.relu(self.stem(x)), 2)))
        return self.head(F.relu6(self.last(F.silu(self.wide(y)))).mean((2, 3)))


def ran(engine) -> tuple[set[str], set[str]]:
    """(layers on integers, layers in float)."""
    executions = engine.executions()
    on_integers = {layer for layer, execution in executions.items() if execution.arithmetic == "int8"}
    return on_integers, executions.keys() - on_integers


def test_every_convolution_runs_on_integers(calibrated, basic_block) -> None:
    """A sum of convolutions, a pooling or an activation that is no fusion once left them in float."""
    net = calibrated(Pooled(basic_block).eval(), torch.randn(4, 3, 16, 16), target=runs_here("onnxruntime"))
    on_integers, in_float = ran(compile(net, engine="onnxruntime", threads=1))
    assert on_integers == set(net.plan.coverage.layers)
    assert in_float == set()
    assert len(on_integers) == 9


@pytest.mark.parametrize("axes", [(0,), (0, 1), ()])
def test_every_product_of_a_transformer_runs_on_integers(calibrated, axes) -> None:
    """With sizes that are fixed, ONNX Runtime once made Gemms in float of the linears."""
    net = calibrated(Tokens(), torch.randint(50, (4, 9)), target=runs_here("onnxruntime"), dynamic_axes=axes)
    engine = compile(net, engine="onnxruntime", threads=1)
    assert ran(engine) == (set(net.plan.coverage.layers), set())
    assert engine.executions()["table"].kernel == "Gather"
    assert_agrees(engine, simulate(net), torch.randint(50, (4, 9)), "all")


def test_a_linear_called_twice_runs_on_integers_twice(calibrated, network) -> None:
    """ONNX Runtime once computed both in float: its fusion asks for a weight that nothing else reads."""
    model = network(lambda self, x: self.a(F.relu(self.a(x))), a=nn.Linear(8, 8))
    net = calibrated(model, torch.randn(4, 5, 8), target=runs_here("onnxruntime"))
    engine = compile(net, engine="onnxruntime", threads=1)
    assert ran(engine) == ({"a", "a@1"}, set())
    assert_agrees(engine, simulate(net), torch.randn(7, 5, 8), "all")


def test_what_runs_in_float_is_named_as_the_user_names_it(calibrated, network) -> None:
    def forward(self, x):
        y = self.back(self.up(F.relu(self.first(x)))[..., :16])
        return F.bilinear(y, y, self.pair), self.rnn(y)[0]

    model = network(
        forward,
        first=nn.Conv1d(4, 8, 3, padding=1),
        up=nn.ConvTranspose1d(8, 8, 2),
        back=nn.Conv1d(8, 4, 1),
        pair=nn.Parameter(torch.randn(3, 16, 16)),
        rnn=nn.LSTM(16, 5, bidirectional=True, batch_first=True),
    )
    net = calibrated(model, torch.randn(3, 4, 16), target=runs_here("onnxruntime"))
    graph = net.graph
    engine = compile(net, engine="onnxruntime", threads=1)
    names = list(compute_heavy(graph, net.plan.target).values())
    assert list(engine.executions()) == names == ["first", "up", "back", "bilinear", "rnn"]
    assert ran(engine) == ({"first", "back"}, {"up", "bilinear", "rnn"})
    engine = compile(graph, engine="onnxruntime", threads=1)
    assert ran(engine) == (set(), set(names))


def test_a_kernel_belongs_to_the_longest_layer_whose_name_it_has() -> None:
    layers = ["stem", "stem_token_1", "a.b", "a", "matmul@1"]
    names = ["stem", "stem_token_7", "stem_token_1", "stem_token_1_token_2", "a.b/MatMulScaleFusion/", "a", "a.c", "b"]
    owners = ["stem", "stem", "stem_token_1", "stem_token_1", "a.b", "a", None, None]
    assert [owner(name, layers) for name in names] == owners


def test_a_weight_alone_in_integers_is_multiplied_by_real_values(calibrated) -> None:
    """ONNX Runtime's MatMulNBits rounds the other input too, unless it is told not to: 38 dB in place of no noise."""
    rules = [Rule(role="input", skip=True), Rule("*")]
    net = calibrated(nn.Sequential(nn.Linear(64, 64)), torch.randn(8, 64), rules, runs_here("onnxruntime"))
    engine, x = compile(net, engine="onnxruntime", threads=1), torch.randn(5, 64)
    torch.testing.assert_close(engine(x), simulate(net)(x).detach(), rtol=0, atol=1e-3)
    assert ran(engine) == (set(), {"0"})


UNITS = torch.tensor([1e-3, 1.0, 300.0, 1e5, 0.1, 50.0])
OFFSETS = torch.tensor([0.0, 5.0, 273.0, 1e5, 0.0, -20.0])


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_bias_smaller_than_the_unit_of_the_sums_is_not_lost(kind, network) -> None:
    """Columns of very different units: as an integer of the sums the bias would be 0."""

    def forward(self, x):
        return self.b(F.relu(self.a(x)))

    a, b = (nn.Linear(6, 32), nn.Linear(32, 4)) if kind == "linear" else (nn.Conv1d(6, 32, 1), nn.Conv1d(32, 4, 1))
    columns = (slice(None), slice(None), *[None] * (kind == "convolution"))
    with torch.no_grad():
        a.bias -= (a.weight.flatten(1) / UNITS) @ OFFSETS
        a.weight /= UNITS[columns[1:]]
    example = ((torch.randn(64, 6) * UNITS + OFFSETS)[columns],)
    graph = capture(network(forward, a=a, b=b), example)
    plan = make_plan(graph, target=runs_here("onnxruntime"))
    net = choose_params(plan, observe(plan, [example]))
    engine = compile(net, engine="onnxruntime", threads=1)
    assert_agrees(engine, simulate(net), example, "all")
    assert ("a" in ran(engine)[0]) == (kind == "linear")  # a convolution is left in float, and named


def test_channels_pruned_to_nothing_keep_their_bias(calibrated) -> None:
    """Their scale was so small that the bias left int32: 9.5 dB from the simulation."""
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(64, 4))
    with torch.no_grad():
        for layer, channels in ((model[0], slice(3)), (model[2], slice(2, 5)), (model[6], slice(1))):
            layer.weight[channels] *= 1e-14
            layer.bias.abs_().add_(0.5)
    net = calibrated(model, torch.randn(8, 3, 8, 8), target=runs_here("onnxruntime"))
    engine = compile(net, engine="onnxruntime", threads=1)
    assert_agrees(engine, simulate(net), torch.randn(3, 3, 8, 8), "all")
    assert ran(engine) == ({"0", "2", "4", "6"}, set())


def test_the_float_network_is_the_baseline(calibrated) -> None:
    graph = calibrated(Convolutions(), torch.randn(4, 3, 12, 12)).graph
    engine = compile(graph, engine="onnxruntime", threads=1)
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(engine(x)["logits"], graph(x)["logits"].detach(), rtol=0, atol=1e-5)


def test_calls_from_several_threads_do_not_mix(calibrated) -> None:
    net = calibrated(Convolutions(), torch.randn(4, 3, 12, 12))
    engine = compile(net, engine="onnxruntime", threads=1)
    batches = [torch.randn(1 + i % 3, 3, 12, 12) for i in range(24)]
    alone = [engine(x)["logits"] for x in batches]
    with ThreadPoolExecutor(4) as pool:
        together = [out["logits"] for out in pool.map(engine, batches)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_input_of_another_dtype_is_refused(calibrated) -> None:
    net = calibrated(Convolutions(), torch.randn(4, 3, 12, 12))
    engine = compile(net, engine="onnxruntime", threads=1)
    with pytest.raises(QuantizationError, match=r"x: asked to run on torch.float64, but the network was captured with"):
        engine(torch.randn(1, 3, 12, 12, dtype=torch.float64))


def test_the_door_knows_it() -> None:
    assert "onnxruntime" in available()


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("spatial", [2, 3])
def test_the_mean_of_an_image_is_pooled_in_integers(spatial, keepdim, axes, network, calibrated) -> None:
    """Of images alone: over the same axes of what conv3d returns there is another mean, which stays one."""
    from octavo.engines.onnx import export_onnx  # noqa: PLC0415 (its packages may be missing)
    from octavo.engines.onnxruntime import session_of  # noqa: PLC0415

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean(axes, keepdim=keepdim).flatten(1))

    conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial](3, 8, 3, padding=1)
    features = 8 if spatial == 2 else 8 * 6 if axes == [2, 3] else 8 * 4
    model = network(forward, conv=conv, head=nn.Linear(features, 5)).eval()
    shape = (6, 3, 4, 5) if spatial == 2 else (6, 3, 4, 5, 6)
    net = calibrated(model, torch.randn(shape), target=runs_here("onnxruntime"))
    _, optimized = session_of(export_onnx(net))
    pooled = any(node.op_type == "QLinearGlobalAveragePool" for node in optimized.graph.node)
    assert pooled == (spatial == 2)
    x = torch.randn(3, *shape[1:])
    compiled = octavo.compile(net, engine="onnxruntime")
    assert octavo.sqnr_db(octavo.simulate(net)(x), compiled(x)) > 40
