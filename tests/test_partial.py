"""Partial quantization: which layers leave, that the others keep their scales, and that names are whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.partial import keep_float, layers, quantize_only
from octavo.network.placement import make_plan
from octavo.network.quantized import Quantized
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.numerics import INT8


class Alike(nn.Module):
    """Layers whose names begin or end alike; conv1 is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv10, inner = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.layer1 = nn.ModuleDict({"conv1": inner})

    def forward(self, x):
        return self.conv10(self.conv1(self.layer1["conv1"](F.relu(self.conv1(x)))))


@pytest.fixture(scope="module")
def alike():
    example = torch.randn(3, 2, 5, 5)
    graph = capture(Alike(), example)
    plan = make_plan(graph, target="paper")
    return choose_params(plan, observe(plan, [example]), "max")


ALIKE = ("conv1", "layer1.conv1", "conv1@1", "conv10")


def test_layers_come_in_data_flow_order(alike, basic_block, calibrated) -> None:
    net = alike
    assert layers(net.plan) == ALIKE
    net = calibrated(basic_block(), torch.randn(2, 4, 6, 6))
    assert layers(net.plan) == ("conv1", "conv2", "add")


@pytest.mark.parametrize("name", ALIKE)
def test_names_are_whole(alike, name) -> None:
    net = alike
    rest = tuple(layer for layer in ALIKE if layer != name)
    assert layers(keep_float(net, [name]).plan) == rest
    assert layers(quantize_only(net, [name]).plan) == (name,)
    assert layers(keep_float(net, rest).plan) == (name,)


def test_the_others_keep_their_scales_and_the_method(alike) -> None:
    net = alike
    part = keep_float(net, ["conv1"])
    by_site = {site: q for q in net.plan.quantizers for site in q.sites}
    for quantizer in part.plan.quantizers:
        for site in quantizer.sites:
            assert part.values[quantizer.name] is net.values[by_site[site].name]
            assert quantizer.scheme == by_site[site].scheme
    assert part.method == net.method
    assert part.plan.target == net.plan.target


def test_nothing_kept_in_float_changes_nothing(alike) -> None:
    net = alike
    part = keep_float(net, [])
    assert part.plan == net.plan
    assert part.values == net.values


def test_keeping_twice_is_keeping_both(alike) -> None:
    net = alike
    twice = keep_float(keep_float(net, ["conv1"]), ["conv10"])
    once = keep_float(net, ["conv10", "conv1"])
    assert twice.plan.quantizers == once.plan.quantizers
    assert twice.values == once.values


def test_the_coverage_says_why(alike) -> None:
    net = alike
    assert [str(kept.reason) for kept in keep_float(net, ["conv1@1"]).plan.coverage.kept_float] == [
        "Rule('conv1@1', skip=True, exact=True) leaves its input in float"
    ]


def test_neither_graph_nor_parameters_change(alike) -> None:
    net = alike
    graph = net.graph
    code, names, plan = graph.module.code, set(net.values), net.plan
    keep_float(net, ["conv1"])
    quantize_only(net, ["conv1"])
    assert (graph.module.code, set(net.values), net.plan) == (code, names, plan)


def test_the_simulation_is_float_where_layers_are_kept(alike) -> None:
    net = alike
    graph = net.graph
    x = torch.randn(4, 2, 5, 5)
    rounded = simulate(quantize_only(net, ["layer1.conv1"]))(x)
    conv1, conv10 = graph.module.get_submodule("conv1"), graph.module.get_submodule("conv10")
    inner = graph.module.get_submodule("layer1.conv1")
    value = F.relu(F.conv2d(x, conv1.weight, conv1.bias, padding=1))
    scale = float(net.values["layer1.conv1.input"].scale)
    weight_scale = inner.weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    value = torch.fake_quantize_per_tensor_affine(value, scale, 0, -127, 127)
    value = F.conv2d(value, torch.round(inner.weight / weight_scale) * weight_scale, inner.bias, padding=1)
    value = F.conv2d(value, conv1.weight, conv1.bias, padding=1)
    torch.testing.assert_close(rounded, F.conv2d(value, conv10.weight, conv10.bias, padding=1))


def test_a_rule_that_has_nothing_left_to_decide_is_dropped(alike) -> None:
    net = alike
    graph = net.graph
    rules = [Rule("conv10", bits=4), Rule("conv1@1", role="input", skip=True), EVERYTHING]
    plan = make_plan(graph, rules, target="paper")
    net = Quantized(plan=plan, values={q.name: net.values[q.name] for q in plan.quantizers}, method="max")
    part = keep_float(net, ["conv10", "conv1@1"])
    assert part.plan.rules == (
        Rule("conv1@1", skip=True, exact=True),
        Rule("conv10", skip=True, exact=True),
        EVERYTHING,
    )
    assert quantize_only(net, ["conv10"]).plan.rules[-1] == rules[0]


def test_a_tensor_that_no_longer_shares_keeps_the_shared_range_and_scheme(network, calibrated) -> None:
    def forward(self, x):
        one, two = F.relu(self.one(x)), self.two(x)
        return self.both(torch.cat([one, two], dim=1)), self.single(one)

    convs = {name: nn.Conv2d(4 if name == "both" else 2, 2, 1) for name in ("one", "two", "both", "single")}
    for name in ("one", "two"):  # of one size: else each reader has a scale of its own
        nn.init.eye_(convs[name].weight.data[:, :, 0, 0])
        nn.init.zeros_(convs[name].bias)
    net = calibrated(network(forward, **convs), torch.randn(3, 2, 5, 5).clamp(-2, 2), target="openvino")
    (shared,) = [q for q in net.plan.quantizers if len(q.sites) == 2 and q.name == "both.input"]
    assert not shared.scheme.symmetric
    part = keep_float(net, ["both"])
    (alone,) = [q for q in part.plan.quantizers if q.name == "single.input"]
    assert alone.scheme == shared.scheme
    assert part.values["single.input"] is net.values["both.input"]


def test_an_unknown_layer_raises_with_those_close_to_it(alike) -> None:
    net = alike
    for choose in (keep_float, quantize_only):
        with pytest.raises(QuantizationError) as caught:
            choose(net, ["layer1.conv2"])
        assert str(caught.value) == (
            "asked to choose the layer 'layer1.conv2' for partial quantization, but the plan does not quantize it; "
            "close to it are layer1.conv1; use a name that octavo.network.partial.layers returns."
        )
    with pytest.raises(QuantizationError, match=r"it quantizes conv1, layer1.conv1, conv1@1, conv10; use"):
        keep_float(net, ["zzz"])


def test_a_prefix_of_layers_is_no_layer(alike) -> None:
    with pytest.raises(QuantizationError, match="choose the layer 'layer1'"):
        keep_float(alike, ["layer1"])


def test_keeping_everything_raises(alike) -> None:
    for choose, names in ((keep_float, ALIKE), (quantize_only, ())):
        with pytest.raises(QuantizationError, match="none of the 4 compute-heavy operations is left to quantize"):
            choose(alike, names)


def test_a_scheme_of_the_users_stays(alike) -> None:
    net = alike
    graph = net.graph
    plan = make_plan(graph, [Rule("conv10", scheme=INT8), EVERYTHING], target="paper")
    values = dict(net.values)
    net = Quantized(plan=plan, values=values, method="max")
    (weight,) = [q for q in quantize_only(net, ["conv10"]).plan.quantizers if q.constant]
    assert weight.scheme == INT8
