"""Integer execution: accumulators against plain Python integers, results against the simulation."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octavo.engines import reference
from octavo.engines.reference import Integers, accumulate, compile_reference, integers
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.operations import operation
from octavo.network.placement import make_plan
from octavo.network.quantized import Quantized
from octavo.network.rule import Rule
from octavo.network.simulate import simulate
from octavo.numerics import AFFINE_UINT8, UINT8, QParams, Scheme, params_from_range, params_from_tensor, quantize

aten = torch.ops.aten


def randint(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape)


def spread(size, parts):
    return size if isinstance(size, tuple) else (size,) * parts


def convolve(x, w, stride, padding, dilation, groups):
    """Any number of spatial axes, in plain Python integers; x [N, C, …], w [K, C/groups, …]."""
    space = x.ndim - 2
    stride, padding, dilation = (spread(option, space) for option in (stride, padding, dilation))
    out = [
        (x.shape[2 + a] + 2 * padding[a] - dilation[a] * (w.shape[2 + a] - 1) - 1) // stride[a] + 1
        for a in range(space)
    ]
    sums = torch.zeros(x.shape[0], w.shape[0], *out, dtype=torch.int64)
    per_group = w.shape[0] // groups
    for n, k, *at in itertools.product(range(x.shape[0]), range(w.shape[0]), *map(range, out)):
        total = 0
        for c, *tap in itertools.product(range(w.shape[1]), *map(range, w.shape[2:])):
            where = [at[a] * stride[a] + tap[a] * dilation[a] - padding[a] for a in range(space)]
            if all(0 <= where[a] < x.shape[2 + a] for a in range(space)):
                channel = k // per_group * w.shape[1] + c
                total += int(x[(n, channel, *where)]) * int(w[(k, c, *tap)])
        sums[(n, k, *at)] = total
    return sums


def convolve_transposed(x, w, stride, padding, groups):
    """One spatial axis, in plain Python integers; x [N, C, L], w [C, K/groups, taps]."""
    length = (x.shape[2] - 1) * stride - 2 * padding + w.shape[2]
    sums = torch.zeros(x.shape[0], w.shape[1] * groups, length, dtype=torch.int64)
    per_group = x.shape[1] // groups
    for n, c, i, k, tap in itertools.product(*map(range, (*x.shape, *w.shape[1:]))):
        at = i * stride + tap - padding
        if 0 <= at < length:
            sums[n, c // per_group * w.shape[1] + k, at] += int(x[n, c, i]) * int(w[c, k, tap])
    return sums


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 2), ((2, 1), (0, 2), (1, 2), 4), (3, 1, 1, 2)],
)
def test_conv2d_accumulators_equal_python_integers(stride, padding, dilation, groups) -> None:
    x, w = randint(2, 4, 6, 5), randint(4, 4 // groups, 3, 2)
    sums = accumulate(lambda a, b: F.conv2d(a, b, None, stride, padding, dilation, groups), x, w)
    assert sums.dtype == torch.int32
    assert torch.equal(sums, convolve(x, w, stride, padding, dilation, groups).int())


def test_conv1d_and_conv3d_accumulators_equal_python_integers() -> None:
    x, w = randint(2, 4, 9), randint(6, 2, 3)
    sums = accumulate(lambda a, b: F.conv1d(a, b, None, 2, 1, 1, 2), x, w)
    assert torch.equal(sums, convolve(x, w, 2, 1, 1, 2).int())
    x, w = randint(1, 2, 4, 3, 4), randint(2, 2, 2, 2, 2)
    sums = accumulate(lambda a, b: F.conv3d(a, b, None, 1, 1), x, w)
    assert torch.equal(sums, convolve(x, w, 1, 1, 1, 1).int())


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_accumulators_equal_python_integers(groups) -> None:
    x, w = randint(2, 4, 5), randint(4, 3, 3)
    sums = accumulate(lambda a, b: F.conv_transpose1d(a, b, None, 2, 1, 0, groups), x, w)
    assert torch.equal(sums, convolve_transposed(x, w, 2, 1, groups).int())


def test_linear_and_batched_matmul_accumulators_equal_python_integers() -> None:
    x, w = randint(3, 50), randint(4, 50)
    expected = [[sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) for column in w] for row in x]
    assert accumulate(aten.linear.default, x, w).tolist() == expected
    x, y = randint(2, 3, 4, 20), randint(3, 20, 5)
    sums = accumulate(aten.matmul.default, x, y)
    for b, h, i, j in itertools.product(*map(range, sums.shape)):
        assert sums[b, h, i, j] == sum(int(x[b, h, i, k]) * int(y[h, k, j]) for k in range(20))


def test_accumulators_reach_the_ends_of_int32_and_no_further() -> None:
    ones = torch.ones(1, 2, dtype=torch.int32)
    ends = torch.tensor([[2**31 - 2, 1], [-(2**31) + 1, -1]], dtype=torch.int32)
    assert accumulate(aten.linear.default, ends, ones).flatten().tolist() == [2**31 - 1, -(2**31)]
    for beyond in ([2**31 - 1, 1], [-(2**31), -1]):
        with pytest.raises(
            QuantizationError, match=r"accumulate in int32, but a sum reaches 214748364[89]; use fewer bits"
        ):
            accumulate(aten.linear.default, torch.tensor([beyond], dtype=torch.int32), ones)


def test_an_empty_batch_has_no_sums() -> None:
    assert accumulate(aten.linear.default, randint(0, 4), randint(3, 4)).shape == (0, 3)


def test_overflow_names_the_layer(calibrated) -> None:
    width = 2**31 // 127**2 + 1
    model = nn.Sequential(nn.Linear(width, 1, bias=False))
    nn.init.ones_(model[0].weight)
    net = calibrated(model, torch.ones(2, width))
    with pytest.raises(QuantizationError) as caught:
        compile_reference(net)(torch.ones(2, width))
    message = f"0: asked to accumulate in int32, but a sum reaches {width * 127**2}; use fewer bits"
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_quantize_centres_on_the_zero_point() -> None:
    params = params_from_range(-1.0, 1.55, AFFINE_UINT8)  # steps of 0.01; zero is 100
    found = integers(torch.tensor([-9.0, -1.0, 0.0, 0.01, 1.55, 9.0]), params)
    assert found.centred.tolist() == [-100, -100, 0, 1, 155, 155]
    assert found.centred.dtype == torch.int32


def test_one_layer_by_hand(calibrated) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.1, -2.0], [0.5, 0.26]]))
        model[0].bias.copy_(torch.tensor([10.0, 0.0]))
    net = calibrated(model, torch.randn(2, 2))
    zero = torch.zeros(2, dtype=torch.int32)
    values = {
        "0.input": QParams(scale=torch.tensor(0.5), zero_point=zero[0], scheme=Scheme()),
        "0.weight": QParams(scale=torch.tensor([0.25, 0.125]), zero_point=zero, scheme=Scheme(axis=0)),
    }
    engine = compile_reference(Quantized(plan=net.plan, method="hand", values=values))
    # 1.3 → 3, −0.74 → −1; weights 4, −8 and 4, 2: sums 3·4 + 1·8 = 20 and 3·4 − 1·2 = 10
    assert engine(torch.tensor([[1.3, -0.74]])).tolist() == [[20 * 0.5 * 0.25 + 10, 10 * 0.5 * 0.125]]


# ---- agreement with the simulation


def aligned(model_input: torch.Tensor, params: QParams) -> torch.Tensor:
    """Values at most 0.4 steps from an integer: `quantize` divides and ATen multiplies, so they may part at ties."""
    steps = torch.round(model_input / params.scale)
    return (steps + torch.empty_like(steps).uniform_(-0.4, 0.4)) * params.scale


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1, dilation=2), (4, 6, 6)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 6, 6)),
    "conv2d same": (nn.Conv2d(4, 6, 4, padding="same"), (4, 6, 6)),
    "conv2d without bias": (nn.Conv2d(4, 6, 3, bias=False), (4, 6, 6)),
    "conv3d": (nn.Conv3d(2, 3, 3, padding=1), (2, 4, 4, 4)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (4, 5)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 5, 5)),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3)),
    "linear": (nn.Linear(16, 5), (16,)),
    "linear of sequences": (nn.Linear(16, 5, bias=False), (3, 16)),
}
SCHEMES = {
    "paper": (),
    "affine": (Rule(role="input", scheme=AFFINE_UINT8),),
    "affine signed": (Rule(role="input", scheme=Scheme(symmetric=False)),),
    "4 bits": (Rule(bits=4),),
    "weights per tensor": (Rule(role="weight", scheme=Scheme()),),
    "affine weights": (
        Rule(role="weight", scheme=Scheme(axis=0, symmetric=False)),
        Rule(role="input", scheme=AFFINE_UINT8),
    ),
}


@pytest.fixture(scope="module")
def every_layer():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layer for layer, _ in LAYERS.values())

        def forward(self, inputs):
            return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]

    return capture(Layers(), (example_of_each(2),))


def example_of_each(n: int) -> list[torch.Tensor]:
    return [torch.randn(n, *shape) + 1.0 for _, shape in LAYERS.values()]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_layer_agrees_with_the_simulation(scheme, every_layer) -> None:
    """To the rounding of float32 sums: 16 units in the last place of the largest output."""
    net = recalibrated(every_layer, (example_of_each(4),), [*SCHEMES[scheme], Rule()])
    x = [aligned(2 * x, net.values[f"layers.{i}.input"]) for i, x in enumerate(example_of_each(3))]
    with torch.no_grad():
        wanted, found = simulate(net)(x), compile_reference(net)(x)
    for layer, want, have in zip(LAYERS, wanted, found, strict=True):
        assert have.dtype == torch.float32
        atol = 16 * 2**-23 * float(want.abs().max())
        torch.testing.assert_close(have, want, rtol=0, atol=atol, msg=lambda text, layer=layer: f"{layer}: {text}")


def recalibrated(graph, data, rules, target="paper"):
    plan = make_plan(graph, rules, target=target)
    return choose_params(plan, observe(plan, [data]), "max")


def test_padding_is_real_zero_wherever_zero_point_lies(calibrated) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False))
    nn.init.ones_(model[0].weight)
    net = calibrated(model, torch.full((2, 1, 2, 2), 5.0), [Rule(role="input", scheme=AFFINE_UINT8), Rule()])
    values = {**net.values, "0.input": params_from_range(-1.0, 1.55, AFFINE_UINT8)}
    engine = compile_reference(Quantized(plan=net.plan, method="hand", values=values))
    torch.testing.assert_close(engine(torch.full((1, 1, 2, 2), 0.5)), torch.full((1, 1, 2, 2), 2.0), rtol=1e-6, atol=0)


def test_linear_in_blocks() -> None:
    model = nn.Sequential(nn.Linear(16, 5))
    with torch.no_grad():
        model[0].weight[:, :4] *= 100
    graph = capture(model, torch.randn(4, 16))
    for block in (1, 4, 16):
        rules = [Rule(role="weight", scheme=Scheme(axis=1, block=block, bits=4)), Rule()]
        net = recalibrated(graph, torch.randn(4, 16), rules)
        assert net.values["0.weight"].scale.shape == (5, 16 // block)
        x = aligned(torch.randn(3, 16), net.values["0.input"])
        want = simulate(net)(x).detach()
        have = compile_reference(net)(x)
        torch.testing.assert_close(have, want, rtol=0, atol=16 * 2**-23 * float(want.abs().max()))


def test_blocks_that_an_integer_sum_cannot_factor_out_raise(calibrated) -> None:
    for model, example, axis, seen in (
        (nn.Conv2d(4, 4, 1), torch.randn(2, 4, 3, 3), 1, "execute a convolution whose weight is quantized in blocks"),
        (nn.Linear(4, 4), torch.randn(2, 4), 0, "execute a linear whose weight has blocks along axis 0"),
    ):
        rules = [Rule(role="weight", scheme=Scheme(axis=axis, block=2)), Rule()]
        net = calibrated(nn.Sequential(model), example, rules)
        with pytest.raises(QuantizationError, match=f"^0: asked to {seen}"):
            compile_reference(net)(example)


def test_products_agree_with_the_simulation(network, calibrated) -> None:
    def forward(s, x, y):
        return {"activations": x @ y.mT, "weight right": x @ s.w, "weight left": s.w @ x.mT, "vector": x @ s.v}

    # Weights whose scale is 1/64: far from ties, where the simulation and stored integers may differ (docs/engines.md).
    w, v = torch.randint(-127, 128, (6, 6)) / 64, torch.randint(-127, 128, (6,)) / 64
    w[:, 0] = w[0] = v[0] = 127 / 64
    model = network(forward, w=nn.Parameter(w), v=nn.Parameter(v))
    net = calibrated(model, (torch.randn(3, 2, 4, 6), torch.randn(3, 2, 5, 6)))
    x, y = (aligned(torch.randn(5, 2, n, 6), net.values[name]) for n, name in ((4, "matmul.lhs"), (5, "matmul.rhs")))
    with torch.no_grad():
        want, have = simulate(net)(x, y), compile_reference(net)(x, y)
    assert list(have) == list(want)
    for name, tensor in want.items():
        torch.testing.assert_close(have[name], tensor, rtol=0, atol=16 * 2**-23 * float(tensor.abs().max()))


def test_every_compute_heavy_operation_runs_on_integers(basic_block, calibrated, monkeypatch) -> None:
    """Integers reach a kernel for each of them: nothing quietly falls back to float."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), basic_block(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    net = calibrated(model, torch.randn(2, 4, 6, 6), target="openvino")
    kinds = []

    def counting(operation, lhs, rhs, *rest):
        kinds.append((lhs.dtype, rhs.dtype))
        return accumulate(operation, lhs, rhs, *rest)

    monkeypatch.setattr(reference, "accumulate", counting)
    compile_reference(net)(torch.randn(3, 4, 6, 6))
    assert kinds == [(torch.int32, torch.int32)] * net.plan.coverage.quantized
    assert len(kinds) == 4


def test_integers_move_through_reshape_pool_pad_and_concat(network, calibrated) -> None:
    def forward(s, x):
        y = x.relu()
        y = torch.cat([F.max_pool2d(y, 3, 1, 1), F.pad(y, (1, 1, 1, 1))[:, :, 1:-1, 1:-1].flip(1)], 1)
        return s.out(y.permute(0, 2, 3, 1).flatten(1))

    model = network(forward, out=nn.Linear(2 * 3 * 16, 4))
    net = calibrated(model, torch.randn(2, 3, 4, 4), target="openvino")
    assert net.values["out.input"].scheme == UINT8
    x = aligned(torch.randn(3, 3, 4, 4), net.values["out.input"])
    want = simulate(net)(x).detach()
    torch.testing.assert_close(compile_reference(net)(x), want, rtol=0, atol=2e-6 * float(want.abs().max()))


def test_deep_networks_agree_but_for_one_step_where_a_rescale_rounds_across_a_tie(calibrated) -> None:
    """Float32 rounding of the first rescale moves a value by at most 1e-5 steps of the next quantizer. So only values
    that near to a tie differ, each by one step, and the output by no more than those steps times the weights."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    net = calibrated(model, torch.randn(8, 3, 12, 12))
    tapped = nn.Sequential(*model[:2])
    engine, simulation = compile_reference(net), simulate(net)
    x = aligned(torch.randn(8, 3, 12, 12), net.values["0.input"])
    first, second = net.values["2.input"], net.values["2.weight"]
    inner = calibrated(tapped, x)
    inner = Quantized(plan=inner.plan, method="", values={name: net.values[name] for name in inner.values})
    hidden = [
        quantize(run(x), first).int() for run in (compile_reference(inner), lambda x: simulate(inner)(x).detach())
    ]
    moved = (hidden[0] - hidden[1]).abs()
    assert int(moved.max()) <= 1
    assert float(moved.float().mean()) < 1e-3
    difference = (engine(x) - simulation(x)).abs()
    reach = F.conv2d(moved.float(), model[2].weight.abs() + second.scale.reshape(-1, 1, 1, 1)) * first.scale
    assert torch.all(difference <= reach + 1e-5)


def test_recurrent_layers_and_embeddings_read_dequantized_integers(network, calibrated) -> None:
    model = network(
        lambda s, ids: s.head(s.gru(s.lstm(s.embed(ids))[0])[0]),
        embed=nn.Embedding(7, 4),
        lstm=nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True),
        gru=nn.GRU(10, 4, batch_first=True),
        head=nn.Linear(4, 2),
    )
    net = calibrated(model, torch.randint(0, 7, (2, 3)))
    graph = net.graph
    kept = {operation(node).name for node in graph.module.graph.nodes if operation(node)}
    assert kept == {"embedding", "lstm", "gru", "linear"}
    ids = torch.randint(0, 7, (5, 3))
    want = simulate(net)(ids).detach()
    step = float(net.values["head.input"].scale) * float(model.head.weight.detach().abs().sum(1).max())
    have = compile_reference(net)(ids)
    assert float((have - want).abs().max()) <= step
    assert float((have - want).abs().median()) <= 1e-6


def test_residual_networks_agree(basic_block, calibrated) -> None:
    model = nn.Sequential(
        basic_block(), basic_block(downsample=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    for target in ("paper", "openvino"):
        x = torch.randn(16, 4, 8, 8)  # calibrated on the same: four other images clip these by up to 0.16 of their norm
        net = calibrated(model, x, target=target)
        graph = net.graph
        want, have, real = simulate(net)(x), compile_reference(net)(x), graph(x)
        agreement, error = (have - want).norm() / want.norm(), (want - real).norm() / real.norm()
        assert agreement < 0.2 * error
        assert error < 0.05  # 0.0004 to 0.013 in 82 draws


def test_transformers_agree(calibrated) -> None:
    x = torch.randn(8, 5, 16)
    net = calibrated(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), x)
    graph = net.graph
    want, have, real = simulate(net)(x), compile_reference(net)(x), graph(x)
    assert (have - want).norm() < 0.2 * (want - real).norm()
    assert (want - real).norm() < 0.05 * real.norm()  # up to 0.013 in 40 draws


def test_called_like_the_users_model(calibrated) -> None:
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x, y=None):
            return {"out": (self.a(x) + y, [self.a(y)])}

    net = calibrated(Model(), {"x": torch.randn(1, 4), "y": torch.randn(1, 4)})
    engine = compile_reference(net).eval()
    result = engine(y=torch.randn(7, 4), x=torch.randn(7, 4))
    assert result["out"][0].shape == result["out"][1][0].shape == (7, 4)
    assert not result["out"][0].requires_grad


def test_unbatched_inputs(calibrated) -> None:
    net = calibrated(nn.Sequential(nn.Conv2d(4, 6, 3)), torch.randn(4, 5, 5), dynamic_axes=())
    x = aligned(torch.randn(4, 5, 5), net.values["0.input"])
    want = simulate(net)(x).detach()
    torch.testing.assert_close(compile_reference(net)(x), want, rtol=0, atol=2e-6 * float(want.abs().max()))


def test_dequantized_integers_are_the_quantized_values() -> None:
    """Integers that reach an operation without an integer kernel come back as scale·(q − zero_point)."""
    for scheme in (Scheme(), AFFINE_UINT8, Scheme(axis=1), Scheme(axis=-1, block=2), Scheme(axis=0, symmetric=False)):
        x = torch.randn(3, 4)
        params = params_from_tensor(x, scheme)
        found = integers(x, params)
        assert isinstance(found, Integers)
        difference = (reference._to_float(found) - x).abs()
        assert float(difference.max()) <= 0.5001 * float(params.scale.max())
        assert math.isfinite(float(difference.sum()))
