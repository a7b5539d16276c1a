"""Scales along the axes along which an integer sum does not run: counted, placed, chosen, executed, stored, trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import octavo
from conftest import edges, runs_here, separable
from octavo.engines import available, target_for
from octavo.errors import QuantizationError
from octavo.measure import sqnr_db
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.rule import Rule
from octavo.network.simulate import simulate
from octavo.network.target import TARGETS
from octavo.numerics import AFFINE_UINT8, METHODS, Histogram, Scheme, params_from_range
from octavo.numerics.affine import around_one_zero_point
from octavo.numerics.channels import OCTAVES, ChannelHistogram, restored
from octavo.recovery.trainable import trainable, trained
from octavo.saved.artifact import read
from octavo.workflow.kept import pack_stats, unpack_stats

CHANNELS = Scheme(axis=1, full_range=True)


def counted(axis: int, *batches: torch.Tensor) -> ChannelHistogram:
    histogram = ChannelHistogram(axis)
    for batch in batches:
        histogram.update(batch)
    return histogram


def unlike(*shape: int) -> torch.Tensor:
    """Channels along axis 1 from a thousandth to a thousand, one that is never negative and one that is dead."""
    x = torch.randn(shape)
    x *= torch.logspace(-3, 3, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    x[:, 1] = x[:, 1].abs()
    x[:, 2] = 0.0
    return x


# ---- counting


def test_each_channel_is_counted_as_a_histogram_would() -> None:
    x = unlike(4, 6, 7, 5)
    found = counted(1, x)
    assert (found.channels, found.count) == (6, x.numel())
    for channel in range(6):
        one, whole = found.channel(channel), Histogram()
        whole.update(x[:, channel])
        assert (one.count, one.minimum, one.maximum) == (whole.count, whole.minimum, whole.maximum)
        buckets = one.buckets()
        middles = np.sort(np.repeat(buckets.centres, buckets.counts))
        exact = np.sort(x[:, channel].double().flatten().numpy())
        exact[np.abs(exact) < np.abs(exact).max() * 2.0**-OCTAVES] = 0.0
        # Counts are spread over the finer buckets of the same width together: within 1/128 of the value.
        np.testing.assert_allclose(middles, exact, rtol=1 / 128, atol=np.abs(exact).max() * 2.0**-OCTAVES)


def test_the_channels_together_are_the_tensor() -> None:
    """The same values, each within the width of a bucket; minimum, maximum and count are exact."""
    x = unlike(6, 5, 40)
    channels, tensor = counted(1, x), Histogram()
    tensor.update(x)
    whole = channels.whole()
    assert (whole.count, whole.minimum, whole.maximum) == (tensor.count, tensor.minimum, tensor.maximum)
    mine, exact = (np.sort(np.repeat(seen.buckets().centres, seen.buckets().counts)) for seen in (whole, tensor))
    np.testing.assert_allclose(mine, exact, rtol=1 / 128, atol=tensor.maximum * 2.0**-OCTAVES)
    assert ChannelHistogram(1).whole() == Histogram()


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_neither_order_nor_batches_nor_merging_matter(axis) -> None:
    batches = [unlike(3, 4, 5) * factor for factor in (1e-6, 1.0, 1e4, 0.0, -3.0)]
    whole = counted(axis, *batches)
    assert counted(axis, *reversed(batches)) == whole
    parts = [counted(axis, *batches[:2]), counted(axis, *batches[2:])]
    assert parts[0].merge(parts[1]) == whole == parts[1].merge(parts[0])
    assert ChannelHistogram(axis).merge(whole) == whole == whole.merge(ChannelHistogram(axis))
    assert restored(whole.state()) == whole
    assert restored(ChannelHistogram(axis).state()) == ChannelHistogram(axis)
    if axis == 1:
        assert counted(axis, torch.cat(batches)) == whole
        assert (
            counted(axis, *(batch.contiguous().transpose(0, 2).contiguous().transpose(0, 2) for batch in batches))
            == whole
        )


def test_memory_is_fixed() -> None:
    histogram = counted(1, *[torch.randn(2, 3, 50) * 10.0**power for power in range(-20, 20, 4)])
    assert histogram._counts.nbytes <= 3 * 36 * 1024 * 1.03
    positive = counted(1, torch.rand(2, 3, 50))
    assert positive._counts.nbytes <= 3 * 18 * 1024 * 1.03


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named_and_not_counted(bad) -> None:
    histogram = counted(1, torch.ones(2, 3))
    with pytest.raises(QuantizationError, match=r"^block\.input: "):
        histogram.update(torch.tensor([[1.0, bad, 1.0]]), site="block.input")
    with pytest.raises(QuantizationError, match="a batch has 4"):
        histogram.update(torch.ones(2, 4))
    with pytest.raises(QuantizationError, match="int64"):
        histogram.update(torch.ones(2, 3, dtype=torch.int64))
    histogram.update(torch.ones(0, 3))
    assert histogram == counted(1, torch.ones(2, 3))


def test_bytes_that_are_no_histogram_raise() -> None:
    state = counted(1, torch.randn(4, 3)).state()
    wrong = [
        {**state, "buckets": state["buckets"].flip(0)},
        {**state, "buckets": state["buckets"] + 10**7},
        {**state, "counts": -state["counts"]},
        {**state, "bounds": state["bounds"].flip(0)},
        {**state, "bounds": state["bounds"] * torch.nan},
        {name: tensor for name, tensor in state.items() if name != "counts"},
        {**state, "axis": torch.tensor([1, 2])},
    ]
    for tensors in wrong:
        with pytest.raises(QuantizationError, match="do not describe them"):
            restored(tensors)


def test_statistics_of_channels_are_kept() -> None:
    stats = {"a": counted(1, unlike(2, 4, 3)), "b": Histogram()}
    stats["b"].update(torch.randn(5))
    assert dict(unpack_stats(pack_stats(stats))) == stats


@pytest.mark.parametrize("method", [name for name in METHODS if name != "entropy"])
def test_every_method_on_a_channel_is_near_that_on_all_its_values(method) -> None:
    x = torch.randn(64, 2, 40, 40)
    found, whole = counted(1, x).channel(1), Histogram()
    whole.update(x[:, 1])
    for scheme in (Scheme(), AFFINE_UINT8):
        np.testing.assert_allclose(METHODS[method](found, scheme), METHODS[method](whole, scheme), rtol=0.03)


# ---- placing


def scheme_at(plan, site) -> Scheme:
    return next(q.scheme for q in plan.quantizers if site in [one.name for one in q.sites])


IMAGE = torch.randn(4, 3, 9, 9)


@pytest.mark.parametrize("target", TARGETS)
def test_depthwise_inputs_have_a_scale_a_channel_where_the_engine_can(target) -> None:
    plan = make_plan(capture(separable(), IMAGE), target=target)
    assert scheme_at(plan, "0.input").axis is None
    assert scheme_at(plan, "4.input").axis is None
    can = TARGETS[target].channels
    assert scheme_at(plan, "2.input").axis == (1 if can else None)
    assert plan.coverage.per_tensor == (() if can else ("2",))
    assert ("one scale for all channels" in str(plan.coverage)) != can


@pytest.mark.parametrize("groups", [1, 2])
def test_other_convolutions_do_not_by_themselves(groups) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups))
    assert scheme_at(make_plan(capture(model, torch.randn(2, 4, 5, 5))), "0.input").axis is None


def test_one_channel_is_no_depthwise_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, groups=1))
    assert scheme_at(make_plan(capture(model, torch.randn(2, 1, 5, 5))), "0.input").axis is None


FREE = {
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5), {1}),
    "depthwise, two filters a channel": (nn.Conv1d(4, 8, 3, groups=4), (2, 4, 9), {1}),
    "depthwise without a batch": (nn.Conv1d(4, 4, 3, groups=4), (4, 9), {0}),
    "depthwise, transposed": (nn.ConvTranspose2d(4, 4, 2, groups=4), (2, 4, 5, 5), {1}),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), {1}),
    "dense": (nn.Conv2d(4, 6, 3), (2, 4, 5, 5), set()),
    "rows of a linear": (nn.Linear(6, 3), (2, 5, 6), {0, 1}),
}


@pytest.mark.parametrize("case", FREE)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_scheme_may_have_a_scale_along_exactly_the_axes_that_are_not_summed(case, symmetric, network) -> None:
    layer, shape, free = FREE[case]
    graph = capture(nn.Sequential(layer).eval(), torch.randn(shape), dynamic_axes=())
    x = torch.randn(shape) * 3
    for axis in range(len(shape)):
        scheme = Scheme(axis=axis, symmetric=symmetric, signed=symmetric)
        rules = [Rule(role="input", scheme=scheme), Rule("*")]
        if axis not in free:
            with pytest.raises(QuantizationError, match=r"^0\.input: .*the integer sum of this .* runs along it"):
                make_plan(graph, rules)
            continue
        plan = make_plan(graph, rules)
        assert scheme_at(plan, "0.input") == scheme
        net = choose_params(plan, observe(plan, [x]), "max")
        assert net.values["0.input"].scale.shape == (shape[axis],)
        exact, rounded = octavo.compile(net, engine="reference")(x), simulate(net)(x)
        assert sqnr_db(rounded, exact) > 90  # ties aside, the same integers
        assert sqnr_db(graph(x), exact) > 30


def test_axes_of_a_product_that_are_not_summed(network) -> None:
    model = network(lambda self, q, k: q @ k)
    q, k = torch.randn(2, 3, 5, 4) * torch.logspace(-2, 2, 3).reshape(3, 1, 1), torch.randn(2, 3, 4, 6)
    graph = capture(model, (q, k), dynamic_axes=())
    for role, axes in (("lhs", (0, 1, 2)), ("rhs", (0, 1, 3))):
        for axis in range(4):
            rules = [Rule(role=role, scheme=Scheme(axis=axis - 4)), Rule("*")]
            if axis not in axes:
                with pytest.raises(QuantizationError, match=f"matmul.{role}: .*scales may vary along axis 0 or 1 or"):
                    make_plan(graph, rules)
                continue
            plan = make_plan(graph, rules)
            net = choose_params(plan, observe(plan, [(q, k)]), "max")
            exact = octavo.compile(net, engine="reference")(q, k)
            assert sqnr_db(simulate(net)(q, k), exact) > 90
    with pytest.raises(QuantizationError, match="zero-points would meet sums that are only known when"):
        make_plan(graph, [Rule(role="lhs", scheme=replace(AFFINE_UINT8, axis=1)), Rule("*")])


def test_a_zero_point_beside_a_computed_weight_is_refused(network) -> None:
    model = network(lambda s, x, w: F.linear(x, w, s.bias), bias=nn.Parameter(torch.ones(3)))
    graph = capture(model, (torch.randn(2, 5, 4), torch.randn(3, 4)), dynamic_axes=())
    with pytest.raises(QuantizationError, match="zero-points would meet sums that are only known when"):
        make_plan(graph, [Rule(role="input", scheme=replace(AFFINE_UINT8, axis=1)), Rule("*")])


def test_an_axis_of_dynamic_size_is_refused() -> None:
    graph = capture(nn.Sequential(nn.Linear(6, 3)), torch.randn(2, 6))
    with pytest.raises(QuantizationError, match=r"^0\.input: .*its size is only known when the network runs"):
        make_plan(graph, [Rule(role="input", scheme=Scheme(axis=0)), Rule("*")])


def test_blocks_of_activations_are_refused() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), torch.randn(2, 4, 5, 5))
    with pytest.raises(QuantizationError, match="blocks of 2, which only weights have"):
        make_plan(graph, [Rule(role="input", scheme=Scheme(axis=1, block=2)), Rule("*")])


def test_channels_of_one_group_share_a_scale() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(6, 6, 1, groups=2)), torch.randn(2, 6, 5, 5))
    plan = make_plan(graph, [Rule(role="input", scheme=Scheme(axis=1)), Rule("*")])
    x = unlike(2, 6, 5, 5)
    scale = choose_params(plan, observe(plan, [x]), "max").values["0.input"].scale
    expected = x.abs().amax((0, 2, 3)).reshape(2, 3).amax(1).repeat_interleave(3) / 127
    torch.testing.assert_close(scale, expected, rtol=1e-6, atol=0)


MOVES = {
    "padding": (lambda x: F.pad(x, (1, 0, 1, 0)), True),
    "max-pooling": (lambda x: F.max_pool2d(x, 2), True),
    "upsampling": (lambda x: F.interpolate(x, scale_factor=2.0), True),
    "transposition": (lambda x: x.transpose(1, 2), False),
    "padding of channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), False),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_quantizer_of_channels_crosses_what_leaves_channels_alone(move, network) -> None:
    function, crosses = MOVES[move]
    x = torch.randn(2, 3, 6, 6)
    inner = nn.Conv2d(3, 6, 1)(x)
    channels = function(inner).shape[1]
    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(channels, channels, 3, groups=channels)}
    graph = capture(network(lambda self, x: self.b(function(self.a(x))), **layers).eval(), x)
    plan = make_plan(graph, target=runs_here("openvino"))
    (quantizer,) = (q for q in plan.quantizers if q.name == "b.input")
    assert quantizer.scheme.axis == 1
    (source,) = {edge.source for edge in edges(plan, "b.input")}
    assert source.startswith("conv") == crosses
    net = choose_params(plan, observe(plan, [x]), "max")
    wanted = simulate(net)(x)
    assert sqnr_db(wanted, octavo.compile(net, engine="reference")(x)) > 90
    assert sqnr_db(wanted, octavo.compile(net, engine="openvino")(x)) > 40


# ---- choosing


def test_a_dead_channel_has_the_range_of_all_others() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(6, 6, 3, groups=6)), torch.randn(2, 6, 5, 5))
    plan = make_plan(graph, [Rule(role="input", scheme=CHANNELS), Rule("*")])
    x = unlike(2, 6, 5, 5)
    scale = choose_params(plan, observe(plan, [x]), "max").values["0.input"].scale
    assert float(scale[2]) == float(scale.max())
    dead = choose_params(plan, observe(plan, [0 * x]), "max").values["0.input"].scale
    assert bool((dead == 1).all())


def test_ranges_around_one_zero_point_hold_the_ranges_and_cost_little() -> None:
    low, high = torch.tensor([-0.28, -0.28, 0.0, -1.0, 0.0]), torch.tensor([1.0, 8.0, 5.0, 0.0, 0.0])
    scheme = replace(AFFINE_UINT8, axis=0)
    wide = around_one_zero_point(low, high, scheme)
    assert bool((wide[0] <= low).all() & (wide[1] >= high).all())
    params = params_from_range(*wide, scheme)
    assert len(params.zero_point.unique()) == 1
    assert float(params.scale[-1]) == 1.0
    same = torch.full((4,), -0.25), torch.full((4,), 3.0)
    best, alone = params_from_range(*around_one_zero_point(*same, scheme), scheme), params_from_range(*same, scheme)
    assert float(best.scale[0]) <= 1.03 * float(alone.scale[0])


def test_a_dense_and_a_depthwise_reader_share_a_scale_unless_that_costs_a_bit(network) -> None:
    def forward(self, x):
        y = self.a(x)
        return self.dense(y), self.depthwise(y)

    for spread, quantizers in ((0.1, 1), (1.5, 2)):
        a = nn.Conv2d(3, 8, 1)
        with torch.no_grad():
            a.weight.mul_(torch.logspace(-spread, spread, 8).reshape(-1, 1, 1, 1))
            a.bias.zero_()
            a.weight.copy_(a.weight.abs().clamp(min=0.1 * float(a.weight.abs().mean())) if spread < 1 else a.weight)
        layers = {"a": a, "dense": nn.Conv2d(8, 4, 1), "depthwise": nn.Conv2d(8, 8, 3, groups=8)}
        graph = capture(network(forward, **layers).eval(), x := torch.randn(8, 3, 9, 9))
        plan = make_plan(graph, target="openvino")
        net = choose_params(plan, observe(plan, [x]), "max")
        sites = ("dense.input", "depthwise.input")
        assert len([q for q in net.plan.quantizers if {s.name for s in q.sites} & {*sites}]) == quantizers


def test_two_depthwise_readers_beside_a_dense_one_are_both_served(network) -> None:
    def forward(self, x):
        y = self.a(x).relu()
        return self.dense(y), self.one(y), self.two(F.max_pool2d(y, 2))

    depthwise = {name: nn.Conv2d(8, 8, 3, groups=8) for name in ("one", "two")}
    a = nn.Conv2d(1, 8, 1)
    nn.init.ones_(a.weight)
    nn.init.zeros_(a.bias)
    graph = capture(network(forward, a=a, dense=nn.Conv2d(8, 4, 1), **depthwise).eval(), x := torch.rand(4, 1, 9, 9))
    plan = make_plan(graph, target="openvino")
    net = choose_params(plan, observe(plan, [x]), "max")
    assert {site.name for q in net.plan.quantizers for site in q.sites} == {
        site.name for q in plan.quantizers for site in q.sites
    }
    assert all(one.scheme.axis is None for one in net.plan.quantizers if not one.constant)
    assert plan.coverage.per_tensor == ()
    assert net.plan.coverage.per_tensor == ("one", "two")
    compiled = octavo.compile(net, engine="reference")
    assert all(one.on_integers for one in compiled.executions().values())


# ---- executing


@pytest.mark.parametrize("engine", available())
@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"padding": 1, "stride": 2}])
def test_every_engine_computes_what_the_simulation_says(engine, options) -> None:
    x = torch.randn(16, 3, 12, 12)
    graph = capture(separable(70, **options), x)
    plan = make_plan(graph, target=runs_here(target_for(engine)))
    net = choose_params(plan, observe(plan, [x]), "max")
    compiled = octavo.compile(net, engine=engine)
    executions = compiled.executions()
    assert executions["0"].on_integers
    assert executions["2"].on_integers
    assert sqnr_db(simulate(net)(x), compiled(x)) > 38
    whole = make_plan(graph, target=replace(plan.target, channels=False))
    coarse = choose_params(whole, observe(whole, [x]), "max")
    gain = sqnr_db(graph(x), simulate(net)(x)) - sqnr_db(graph(x), simulate(coarse)(x))
    assert gain > 3 if plan.target.channels else gain == 0


ASKED = {
    "two filters a channel": (nn.Conv2d(8, 16, 3, groups=8), (4, 8, 7, 7), "input", 1),
    "groups": (nn.Conv2d(8, 12, 3, groups=2), (4, 8, 7, 7), "input", 1),
    "fewer outputs than inputs": (nn.Conv2d(8, 4, 3, groups=2), (4, 8, 7, 7), "input", 1),
    "transposed": (nn.ConvTranspose2d(8, 8, 3, groups=8), (4, 8, 7, 7), "input", 1),
    "along time": (nn.Conv1d(8, 8, 3, groups=8), (4, 8, 9), "input", 1),
    "rows of a linear": (nn.Linear(16, 5), (4, 6, 16), "input", 1),
}


@pytest.mark.parametrize("engine", available())
@pytest.mark.parametrize("case", ASKED)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_engine_computes_scales_that_a_rule_asks_for(engine, case, symmetric) -> None:
    """On integers or in float, as it can: but rightly, without the check's help."""
    layer, shape, role, axis = ASKED[case]
    graph = capture(nn.Sequential(layer, nn.ReLU()).eval(), torch.randn(shape))
    scheme = Scheme(axis=axis, symmetric=symmetric, signed=symmetric, full_range=symmetric)
    plan = make_plan(graph, [Rule(role=role, scheme=scheme), Rule("*")], target=runs_here(target_for(engine)))
    x = torch.randn(shape) * torch.logspace(-2, 2, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    net = choose_params(plan, observe(plan, [x]), "max")
    compiled = octavo.compile(net, engine=engine, check=False)
    assert sqnr_db(simulate(net)(x), compiled(x)) > 38


@pytest.mark.parametrize("engine", available())
def test_heads_with_a_scale_each(engine, network) -> None:
    q, k = torch.randn(4, 3, 5, 16) * torch.logspace(-1, 1, 3).reshape(3, 1, 1), torch.randn(4, 3, 16, 6)
    graph = capture(network(lambda self, q, k: q @ k), (q, k))
    rules = [Rule(role="lhs", scheme=Scheme(axis=1, full_range=True)), Rule("*")]
    plan = make_plan(graph, rules, target=runs_here(target_for(engine)))
    net = choose_params(plan, observe(plan, [(q, k)]), "max")
    compiled = octavo.compile(net, engine=engine, check=False)
    assert sqnr_db(simulate(net)(q, k), compiled(q, k)) > 38


@pytest.mark.parametrize("engine", available())
def test_what_is_also_returned_is_not_divided_by_the_steps(engine, network) -> None:
    def forward(self, x):
        y = self.a(x).relu()
        return y, self.b(y)

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 3, groups=8)}
    with torch.no_grad():
        layers["a"].weight.mul_(torch.logspace(-2, 2, 8).reshape(-1, 1, 1, 1))
    graph = capture(network(forward, **layers).eval(), x := torch.randn(4, 3, 9, 9))
    plan = make_plan(graph, target=runs_here(target_for(engine)))
    net = choose_params(plan, observe(plan, [x]), "max")
    wanted, found = simulate(net)(x), octavo.compile(net, engine=engine, check=False)(x)
    assert min(sqnr_db(a, b) for a, b in zip(wanted, found, strict=True)) > 38


def test_weights_of_any_scheme_beside_a_scale_a_channel_on_onnxruntime() -> None:
    x = torch.randn(8, 3, 9, 9)
    graph = capture(separable(), x)
    for weight in (Scheme(), Scheme(symmetric=False), Scheme(axis=0, symmetric=False)):
        plan = make_plan(graph, [Rule(role="weight", scheme=weight), Rule("*")], target=runs_here("onnxruntime"))
        assert scheme_at(plan, "2.input").axis == 1
        net = choose_params(plan, observe(plan, [x]), "max")
        compiled = octavo.compile(net, engine="onnxruntime", check=False)
        assert sqnr_db(simulate(net)(x), compiled(x)) > 38


def test_exact_sums_with_a_scale_a_channel() -> None:
    """By hand: Σ (q_x − z)·q_w in Python integers, times both scales of the channel."""
    x, model = torch.randn(1, 3, 4), nn.Sequential(nn.Conv1d(3, 6, 2, groups=3, bias=False))
    graph = capture(model, x, dynamic_axes=())
    plan = make_plan(graph, [Rule(role="input", scheme=replace(AFFINE_UINT8, axis=1)), Rule("*")])
    net = choose_params(plan, observe(plan, [x]), "max")
    into, weight = net.values["0.input"], net.values["0.weight"]
    found = octavo.compile(net, engine="reference")(x)
    for output in range(6):
        channel = output // 2
        s, z = float(into.scale[channel]), int(into.zero_point[channel])
        q = [min(max(round(float(np.float32(v) / np.float32(s))) + z, 0), 255) for v in x[0, channel]]
        w = [round(float(v) / float(weight.scale[output])) for v in model[0].weight.detach()[output, 0]]
        for at in range(3):
            total = sum((q[at + tap] - z) * w[tap] for tap in range(2))
            assert float(found[0, output, at]) == pytest.approx(total * s * float(weight.scale[output]), rel=1e-5)


@pytest.mark.parametrize("ranges", ["fixed", "learned"])
def test_scales_of_channels_are_trained_and_stored(ranges, tmp_path) -> None:
    graph = capture(separable(), IMAGE)
    plan = make_plan(graph, target=runs_here("openvino"))
    net = choose_params(plan, observe(plan, [IMAGE]), "max")
    module = trainable(net, ranges=ranges)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    module(IMAGE).square().mean().backward()
    optimizer.step()
    learned = trained(net, module)
    before, after = net.values["2.input"].scale, learned.values["2.input"].scale
    assert before.shape == after.shape == (8,)
    assert torch.equal(before, after) == (ranges == "fixed")
    octavo.save(learned, tmp_path / "net.octavo", engine="openvino")
    loaded = read(tmp_path / "net.octavo")
    assert torch.equal(loaded.net.values["2.input"].scale, after)
    x = torch.randn(4, 3, 9, 9)
    assert torch.equal(simulate(loaded.net)(x), simulate(learned)(x))
