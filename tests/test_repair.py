"""Repairs: the float function stays, the rounded one comes nearer to it, and what was given is not touched."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

import octavo
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.edit import attribute
from octavo.network.graph import capture, clone
from octavo.network.placement import make_plan
from octavo.network.quantized import on_graph
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.numerics import Scheme, dequantize, params_from_range, quantize
from octavo.recovery.adaround import adaround
from octavo.recovery.lockstep import held_out, walk
from octavo.recovery.repair import (
    REPAIRS,
    changed_layers,
    correct_bias,
    correct_bias_analytically,
    refine_ranges,
    repair,
)
from octavo.recovery.rescale import cross_layer_equalization, smoothquant
from octavo.saved.artifact import read

LOW = [Rule(role="weight", bits=3), Rule("*", bits=5)]


def parts(model, batches, rules=(EVERYTHING,), target="paper", by="max"):
    graph = capture(model.eval(), batches[0])
    plan = make_plan(graph, rules, target=target)
    return choose_params(plan, observe(plan, batches), by)


def convolutional(**activation):
    act = activation.get("act", nn.ReLU)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), act(), nn.Conv2d(8, 8, 3, padding=1, groups=8), act(), nn.Conv2d(8, 4, 1)
    )


def images(count=3):
    return [torch.randn(4, 3, 8, 8) for _ in range(count)]


class Encoder(nn.Module):
    """Two linears behind a layer-norm that has an outlying channel; the norm is read by the residual too if `post`."""

    def __init__(self, post: bool) -> None:
        super().__init__()
        self.post = post
        self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(8, 16)
        self.out = nn.Linear(16, 8)
        with torch.no_grad():
            self.norm.weight[2] = 40.0
            self.one.weight[:, 2] /= 40
            self.two.weight[:, 2] /= 40

    def forward(self, x):
        y = self.norm(x)
        z = self.out(F.relu(self.one(y)) * self.two(y).sigmoid())
        return y + z if self.post else x + z


def error(found, batches, reference):
    """Σ (float − rounded)² over the batches."""
    rounded = simulate(found)
    with torch.no_grad():
        return sum(float((rounded(x) - reference(x)).double().square().sum()) for x in batches)


@pytest.mark.parametrize("name", REPAIRS)
@pytest.mark.parametrize("kind", ["convolutional", "pre", "post"])
def test_nothing_that_is_given_changes(name, kind) -> None:
    model = convolutional() if kind == "convolutional" else Encoder(kind == "post")
    batches = images() if kind == "convolutional" else [torch.randn(4, 5, 8) for _ in range(3)]
    net = parts(model, batches, LOW)
    graph = net.graph
    before = {key: tensor.clone() for key, tensor in graph.module.state_dict().items()}
    scales = {key: value.scale.clone() for key, value in net.values.items()}
    code = str(graph.module.graph)
    found = REPAIRS[name](net, batches)
    assert str(graph.module.graph) == code
    assert all(torch.equal(tensor, before[key]) for key, tensor in graph.module.state_dict().items())
    assert all(torch.equal(net.values[key].scale, scale) for key, scale in scales.items())
    assert found.values.keys() >= net.values.keys()  # a norm and what is divided have a range each
    simulate(found)(batches[0])


def test_equalize_gives_both_sides_the_same_range() -> None:
    model = convolutional()
    with torch.no_grad():
        model[0].weight[1] *= 30
        model[0].weight[4] = 0  # a dead channel
    net = parts(model, images())
    graph = net.graph
    found = cross_layer_equalization(net, images()).graph
    one, two, three = (found.module.get_parameter(f"{i}.weight").flatten(1).abs() for i in (0, 2, 4))
    live = torch.arange(8) != 4
    torch.testing.assert_close(one.amax(1)[live], two.amax(1)[live], rtol=0.02, atol=0)
    torch.testing.assert_close(two.amax(1)[live], three.amax(0)[live], rtol=0.02, atol=0)
    for x in images(2):
        torch.testing.assert_close(found.module(x), graph.module(x), rtol=1e-3, atol=1e-4)


def test_equalize_stops_at_relu6_and_at_what_others_read(network) -> None:
    net = parts(convolutional(act=nn.ReLU6), images())
    assert cross_layer_equalization(net, images()) is net
    shared = network(
        lambda self, x: self.b(F.relu(self.a(x))) + self.c(self.a(x).relu()),
        a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), c=nn.Conv2d(3, 3, 1),
    )  # fmt: skip
    net = parts(shared, images())
    assert cross_layer_equalization(net, images()) is net


@pytest.mark.parametrize("post", [False, True])
def test_migration_keeps_the_function_and_helps_with_outliers(post) -> None:
    batches = [torch.randn(4, 5, 8) for _ in range(4)]
    net = parts(Encoder(post), batches, [Rule(role="input", bits=4), Rule("*")])
    graph = net.graph
    found = smoothquant(net, batches)
    multiplications = sum(node.target is torch.ops.aten.mul.Tensor for node in found.graph.module.graph.nodes)
    assert multiplications == (2 if post else 1)
    for x in batches:
        torch.testing.assert_close(found.graph.module(x), graph.module(x), rtol=1e-3, atol=1e-3)
    assert error(found, batches, graph) < error(net, batches, graph)


@pytest.mark.parametrize("correct", [correct_bias, correct_bias_analytically])
def test_bias_correction_takes_the_mean_error_out(correct) -> None:
    batches = [torch.randn(16, 6).abs() for _ in range(4)]
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    net = parts(model, batches, [Rule(role="weight", bits=3), Rule("*")])
    graph = net.graph

    seen = batches[: len(batches) - held_out(len(batches))]

    def mean_error(found):
        with torch.no_grad():
            return torch.cat([simulate(found)(x) - graph(x) for x in seen]).mean(0).abs().max()

    found = correct(net, batches)
    assert mean_error(net) > 1e-2
    assert mean_error(found) < (1e-5 if correct is correct_bias else 5e-3)


def test_measured_bias_correction_knows_of_earlier_layers() -> None:
    net = parts(convolutional(), batches := images(), LOW)
    graph = net.graph
    found = correct_bias(net, batches)
    with torch.no_grad():
        means = torch.cat([simulate(found)(x) - graph(x) for x in batches[:-1]]).mean((0, 2, 3))
    assert means.abs().max() < 1e-4


def test_learned_rounding_stays_on_the_grid_and_comes_nearer() -> None:
    mix = torch.randn(6, 32)  # 32 inputs that depend on each other: much to choose from (0.23 to 0.60 in 60 draws)
    batches = [torch.randn(64, 6) @ mix for _ in range(2)]
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))
    net = parts(model, batches, [Rule(role="weight", bits=3), Rule("*")])
    graph = net.graph
    found = adaround(net, batches)
    for name in ("0.weight", "2.weight"):
        scale = net.values[name].scale[:, None]
        old, new = (each.module.get_parameter(name).detach() / scale for each in (graph, found.graph))
        assert torch.equal(found.values[name].scale, net.values[name].scale)
        torch.testing.assert_close(new, new.round(), rtol=0, atol=1e-4)
        assert (new - old).abs().max() < 1 + 1e-4
        assert not torch.equal(new.round(), old.round())
    assert error(found, batches, graph) < 0.9 * error(net, batches, graph)


def test_refined_ranges_come_nearer() -> None:
    batches = [torch.randn(64, 8) for _ in range(2)]
    for batch in batches:
        batch[0, 0] = 60.0  # one value that takes most of a range of four bits
    net = parts(nn.Sequential(nn.Linear(8, 4)), batches, [Rule(role="input", bits=4), Rule("*")])
    graph = net.graph
    found = refine_ranges(net, batches)
    assert found.values["0.input"].scale <= net.values["0.input"].scale
    assert error(found, batches, graph) <= error(net, batches, graph)


def test_the_layers_that_a_repair_changed() -> None:
    """Those whose weights or biases are others; where it moved scales alone, those that read what has them."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 4, bias=False))
    batches = [torch.randn(64, 8) for _ in range(4)]
    net = parts(model, batches)
    assert changed_layers(net, net) == ()

    def only(names, change):
        """A repair of the layers `names` alone, with which the network's own judges agree."""
        own = clone(net.graph)
        for node in own.module.graph.nodes:
            if node.target in names:
                change(own, node)
        return on_graph(net, own)

    def halve(graph, node):
        with torch.no_grad():
            attribute(graph.module, node).mul_(0.5)

    assert changed_layers(net, only({"2.weight"}, halve)) == ("2",)
    assert changed_layers(net, only({"4.weight", "0.bias"}, halve)) == ("0", "4")
    assert changed_layers(net, only({"0.weight", "0.bias"}, halve)) == ("0",)

    net = parts(model, batches, LOW)
    for fit in (correct_bias, adaround):
        found = fit(net, batches)
        before, after = (dict(one.graph.module.named_parameters()) for one in (net, found))
        other = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
        assert set(changed_layers(net, found)) == {name.partition(".")[0] for name in other}
    scaled = {**net.values, "2.input": replace(net.values["2.input"], scale=net.values["2.input"].scale * 0.5)}
    assert changed_layers(net, replace(net, values=scaled)) == ("2",)
    both = on_graph(only({"4.weight"}, halve), only({"4.weight"}, halve).graph, scaled)
    assert changed_layers(net, both) == ("4",)  # ranges that followed are not counted


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_refined_ranges_of_a_recurrent_layer_which_returns_a_tuple(network, layer) -> None:
    model = network(lambda self, x: self.layer(x), layer=layer(6, 8, batch_first=True))
    x = torch.randn(64, 5, 6).clamp(-2, 2)
    x[0, 0, 0] = 8.0  # one value that makes the range too wide for four bits
    graph = capture(model.eval(), x)
    plan = make_plan(graph, [Rule("*", role="input", bits=4), EVERYTHING], target="paper")
    net = choose_params(plan, observe(plan, [x]), "max")
    refined = refine_ranges(net, [x])
    scales = [(net.values[q.name].scale, refined.values[q.name].scale) for q in plan.quantizers if not q.constant]
    assert any(after < before for before, after in scales)

    def error(values) -> float:
        pairs = zip(tree_leaves(model(x)), tree_leaves(simulate(values)(x)), strict=True)
        return sum(float((want - have).square().sum()) for want, have in pairs)

    with torch.no_grad():
        assert error(refined) < error(net)


@pytest.mark.parametrize("name", REPAIRS)
def test_layers_called_twice_tied_and_dead_ones(network, name) -> None:
    layer = nn.Linear(6, 6)
    dead = nn.Linear(6, 6)
    nn.init.zeros_(dead.weight)
    model = network(
        lambda self, x: F.linear(self.dead(self.layer(torch.relu(self.layer(x)))), self.layer.weight),
        layer=layer,
        dead=dead,
    )
    batches = [torch.randn(4, 6), torch.zeros(1, 6)]
    net = parts(model, batches, LOW)
    found = REPAIRS[name](net, batches)
    assert bool(torch.isfinite(simulate(found)(batches[0])).all())


def test_repair_runs_them_in_order_and_knows_their_names() -> None:
    net = parts(convolutional(), batches := images(), LOW)
    graph = net.graph
    found = repair(net, batches, ["cross_layer_equalization", "refine_ranges", "correct_bias"])
    assert error(found, batches, graph) < error(net, batches, graph)
    with pytest.raises(QuantizationError, match=r"'tape'.*cross_layer_equalization, smoothquant"):
        repair(net, batches, ["tape"])


@pytest.mark.parametrize("act", [F.gelu, F.silu, F.mish, F.hardswish])
@pytest.mark.parametrize("target", ["paper", "openvino", "onnxruntime"])
@pytest.mark.parametrize("method", ["max", "99.9"])
def test_range_of_a_gelu_ends_where_both_halves_together_lose_least(network, act, target, method) -> None:
    model = network(lambda self, x: self.two(act(self.one(x))), one=nn.Linear(4, 64), two=nn.Linear(64, 2))
    with torch.no_grad():
        model.one.weight[0] = 30.0
    batches = [torch.randn(512, 4)]
    net = parts(model, batches, target=target, by=method)
    values, scheme = act(model.one(batches[0])).detach().double(), net.values["two.input"].scheme

    def loss(threshold: float) -> float:
        """Of both halves, each beside its own energy, by rounding the values themselves."""
        low, high = max(-threshold, float(values.min())), min(threshold, float(values.max()))
        grid = params_from_range(low, high, scheme)
        error = (dequantize(quantize(values, grid), grid).double() - values).square()
        return sum(float(error[half].sum() / values[half].square().sum()) for half in (values < 0, values > 0))

    chosen = net.values["two.input"]
    end = float(chosen.scale * (scheme.qmax - chosen.zero_point))
    (note,) = net.notes
    told = re.fullmatch(r"two\.input: range ends at (\S+), not (\S+): the activation's part below zero .*", note)
    assert told is not None
    assert float(told[1]) == pytest.approx(end, rel=0.01)  # of a zero-point that is rounded, as the numbers are
    assert float(told[1]) < float(told[2])
    assert end < float(values.max())
    assert loss(end) <= 1.05 * min(loss(float(t)) for t in torch.linspace(0.5, float(values.max()), 200))


@pytest.mark.parametrize("target", ["paper", "openvino"])
def test_a_range_in_which_the_lobe_survives_is_left_to_the_method(network, target) -> None:
    model = network(lambda self, x: self.two(F.gelu(self.one(x))), one=nn.Linear(4, 8), two=nn.Linear(8, 2))
    assert parts(model, [torch.randn(64, 4)], target=target).notes == ()
    with torch.no_grad():
        model.one.weight[0] = 50.0
    assert parts(model, [torch.randn(64, 4)], [Rule("*", bits=4)], target=target).notes == ()


def test_a_channel_too_may_keep_its_lobe(network) -> None:
    layers = {"one": nn.Conv2d(3, 8, 1), "two": nn.Conv2d(8, 8, 3, groups=8)}
    model = network(lambda self, x: self.two(F.silu(self.one(x))), **layers).eval()
    with torch.no_grad():
        model.one.weight[0] = 30.0
    net = parts(model, [torch.randn(16, 3, 9, 9)], target="openvino")
    (note,) = net.notes
    assert note.startswith("two.input: ")


# ---- what does not help is undone


@pytest.mark.parametrize(
    "name", [name for name in REPAIRS if name not in ("cross_layer_equalization", "smoothquant")]
)  # test_moves.py
@pytest.mark.parametrize("bits", [3, 8])
def test_no_repair_makes_the_output_worse_on_what_it_was_not_fitted_to(name, bits) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3, groups=8), nn.SiLU(), nn.Conv2d(8, 4, 1))
    batches = [torch.randn(4, 3, 9, 9) * 3 for _ in range(5)]
    net = parts(model, batches, [Rule("*", bits=bits)], target="openvino")
    graph = net.graph
    heard = batches[-held_out(len(batches)) :]
    found = REPAIRS[name](net, batches)
    assert error(found, heard, graph) <= error(net, heard, graph) * (1 + 1e-6)


def test_a_network_that_returns_integers_alone_is_repaired_layer_by_layer(network) -> None:
    model = network(lambda self, x: self.a(x).argmax(-1), a=nn.Linear(6, 8))
    batches = [torch.rand(64, 6) for _ in range(4)]
    net = parts(model, batches, [Rule(role="weight", bits=2), Rule("*")])
    graph = net.graph
    found = correct_bias(net, batches).graph
    (bias,) = [node.target for node in found.module.graph.nodes if node.op == "get_attr" and "bias" in str(node.target)]
    assert not torch.equal(found.module.get_parameter(bias), graph.module.get_parameter("a.bias"))


def test_a_channel_without_a_lobe_is_left_to_the_method(network) -> None:
    layers = {"one": nn.Conv2d(1, 4, 1), "two": nn.Conv2d(4, 4, 3, groups=4)}
    model = network(lambda self, x: self.two(F.silu(self.one(x))), **layers).eval()
    with torch.no_grad():
        model.one.weight.fill_(50.0)
        model.one.bias.fill_(1.0)
    x = torch.rand(16, 1, 9, 9)
    net = parts(model, [x], target="openvino")
    assert net.notes == ()
    (scale,) = net.values["two.input"].scale.unique()
    assert float(scale) == pytest.approx(float(F.silu(50 * x.max() + 1)) / 255, rel=1e-5)


def test_what_helps_only_what_it_was_fitted_to_is_undone() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [torch.randn(16, 6) for _ in range(4)]
    net = parts(model, batches, [Rule("*", bits=4)])
    graph = net.graph
    calls: list[str] = []

    def harm(layer) -> None:
        calls.append(layer.node.name)
        layer.set_weight(attribute(layer.graph.module, layer.weight) * 1.5)
        layer.shift_bias(torch.ones(layer.wanted()[0].shape[-1], dtype=torch.float64))
        for name in layer.operation.quantizers.values():
            layer.scales[name] = replace(layer.scales[name], scale=3 * layer.scales[name].scale)

    scales = walk(net, batches, harm)
    found = scales.graph
    assert len(calls) == 2
    assert [node.name for node in found.module.graph.nodes] == [node.name for node in graph.module.graph.nodes]
    states = [one.module.state_dict() for one in (found, graph)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert all(torch.equal(scales.values[name].scale, one.scale) for name, one in net.values.items())
    x = torch.randn(5, 6)
    assert torch.equal(simulate(scales)(x), simulate(net)(x))


@pytest.mark.parametrize("name", REPAIRS)
def test_a_generator_is_as_good_as_a_list_and_none_at_all_is_an_error(name, calibrated) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    batches = [torch.randn(16, 6) for _ in range(3)]
    net = calibrated(model, batches[0], rules=[Rule("*", bits=4)])
    for again in (lambda work: REPAIRS[name](net, work), lambda work: repair(net, work, [name])):
        torch.manual_seed(0)
        wanted = again(batches)
        torch.manual_seed(0)
        found = again(batch for batch in batches)
        assert torch.equal(simulate(found)(batches[1]), simulate(wanted)(batches[1]))
        for nothing in ([], iter(()), DataLoader(TensorDataset(torch.zeros(0, 6)))):
            with pytest.raises(QuantizationError, match="there are no batches; give at least one"):
                again(nothing)


def test_one_generator_serves_several_repairs(calibrated) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    batches = [torch.randn(16, 6) for _ in range(3)]
    net = calibrated(model, batches[0], rules=[Rule("*", bits=4)])
    names = ["cross_layer_equalization", "refine_ranges", "correct_bias"]
    wanted, found = (repair(net, data, names) for data in (batches, iter(batches)))
    assert torch.equal(simulate(found)(batches[1]), simulate(wanted)(batches[1]))


@pytest.mark.parametrize("name", REPAIRS)
def test_notes_survive(name, calibrated) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    net = calibrated(model, torch.randn(16, 6))
    graph = net.graph
    net = replace(net, notes=("left in float: 2, because an engine computes it wrongly", "0.input: range ends"))
    repaired = repair(net, [torch.randn(16, 6)], [name])
    found = repaired.graph
    moved = name in ("cross_layer_equalization", "smoothquant") and found is not graph  # the ranges are others then
    assert repaired.notes == (net.notes[:1] if moved else net.notes)


def narrow(histogram: octavo.Histogram, scheme: Scheme) -> tuple[float, float]:
    """Half of what was seen."""
    return 0.5 * min(0.0, histogram.minimum), 0.5 * histogram.maximum


def test_scales_are_chosen_again_by_a_function_of_ones_own(tmp_path) -> None:
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(64, 8)
    graph = octavo.capture(model, x)
    plan = octavo.make_plan(graph)
    stats = octavo.observe(plan, [x])

    def largest(histogram: octavo.Histogram, scheme: Scheme) -> tuple[float, float]:
        return narrow(histogram, scheme)

    largest.__name__ = "max"  # is not the method of that name
    for own in (narrow, largest):
        net = octavo.choose_params(plan, stats, own)
        found = octavo.repair(net, [x], ["cross_layer_equalization"])
        wanted = octavo.choose_params(found.plan, octavo.observe(found.plan, [x]), own)
        for name, one in wanted.values.items():
            assert torch.equal(found.values[name].scale, one.scale)
    net = octavo.choose_params(plan, stats, narrow)
    octavo.save(net, tmp_path / "net.octavo", engine="reference")
    loaded = read(tmp_path / "net.octavo")
    with pytest.raises(QuantizationError, match="'narrow' is a function of your own, which was not saved"):
        octavo.repair(loaded.net, [x], ["cross_layer_equalization"])
