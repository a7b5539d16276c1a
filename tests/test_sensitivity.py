"""Sensitivity: `exact` against separate simulations, `fast` against `exact`, and what both refuse."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import edges
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture, network_inputs
from octavo.network.partial import keep_float, layers, quantize_only
from octavo.network.placement import make_plan
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.numerics import Scheme
from octavo.recovery import stepwise
from octavo.recovery.sensitivity import Sensitivity, exact, fast, output_noise, rank_correlation


def images(size=3):
    return torch.randn(size, 4, 6, 6)


def residual(basic_block):
    return nn.Sequential(basic_block(), basic_block(downsample=True)), images


def attention(basic_block):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return layer, lambda size=3: torch.randn(size, 5, 8)


def called_twice(basic_block):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), conv), images


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids).tanh())


def tied(basic_block):
    return Tied(), lambda size=3: torch.randint(11, (size, 4))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True), nn.Linear(10, 3)

    def forward(self, x):
        y, (h, c) = self.lstm(x)
        return self.head(y), h, c


def lstm(basic_block):
    return Recurrent(), lambda size=3: torch.randn(size, 6, 4)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.sum = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x, *, scale):
        a, b = self.first(x), self.second(x * scale)
        return {"sum": self.sum(torch.cat([a, b], dim=1)), "parts": (a, b)}


def keywords(basic_block):
    return Keywords(), lambda size=3: {"scale": torch.rand(size, 1), "x": torch.randn(size, 4)}


NETWORKS = [residual, attention, called_twice, tied, lstm, keywords]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda make: make.__name__)
def captured(request, basic_block):
    model, sample = request.param(basic_block)
    example = sample()
    graph = capture(model, example)
    plan = make_plan(graph, target="paper")
    return graph, choose_params(plan, observe(plan, [example]), "max"), sample


@pytest.fixture
def case(captured):
    """(graph, params, two fresh batches of different size)"""
    graph, net, sample = captured
    return graph, net, [sample(2), sample(7)]


def separately(graph, params, batches, layer) -> float:
    """The mean noise of a simulation in which only `layer` is quantized, weighted by samples."""
    sim = simulate(quantize_only(params, [layer]))
    losses, samples = [], []
    for batch in batches:
        args, kwargs = network_inputs(graph, batch)
        with torch.no_grad():
            losses.append(output_noise(graph(*args, **kwargs), sim(*args, **kwargs), batch))
        samples.append(len(next(iter((*args, *kwargs.values())))))
    return sum(a * b for a, b in zip(losses, samples, strict=True)) / sum(samples)


def test_exact_is_what_separate_simulations_lose(case) -> None:
    graph, net, batches = case
    found = {row.layer: row.loss for row in exact(net, batches)}
    assert set(found) == set(layers(net.plan))
    for layer, loss in found.items():
        assert loss > 0
        assert loss == pytest.approx(separately(graph, net, batches, layer), rel=1e-3)


def test_keeping_all_but_one_in_float_is_quantizing_only_that(case) -> None:
    graph, net, batches = case
    order = layers(net.plan)
    for layer in order:
        only = quantize_only(net, [layer])
        rest = keep_float(net, [other for other in order if other != layer])
        args, kwargs = network_inputs(graph, batches[0])
        left, right = ([*torch.utils._pytree.tree_leaves(simulate(p)(*args, **kwargs))] for p in (only, rest))
        assert all(map(torch.equal, left, right))
        assert only.plan == rest.plan


def test_the_most_sensitive_comes_first(case) -> None:
    _, net, batches = case
    for rows in (exact(net, batches), fast(net, batches)):
        assert [row.loss for row in rows] == sorted((row.loss for row in rows), reverse=True)
        assert all(row.latency_ms > 0 for row in rows)


def test_the_users_graph_and_parameters_stay_as_they_are(case) -> None:
    graph, net, batches = case
    graph.module.requires_grad_(True)
    before, code = copy.deepcopy(graph.module.state_dict()), graph.module.code
    scales = {name: qparams.scale.clone() for name, qparams in net.values.items()}
    inputs = [leaf for leaf in torch.utils._pytree.tree_leaves(batches) if leaf.is_floating_point()]
    for leaf in inputs:
        leaf.requires_grad_()
    exact(net, batches)
    fast(net, batches, probes=2)
    assert graph.module.code == code
    for name, parameter in graph.module.named_parameters():
        assert parameter.grad is None, name
        assert parameter.requires_grad, name
        assert not parameter._backward_hooks, name
        assert torch.equal(parameter, before[name]), name
    assert all(leaf.grad is None and not leaf._backward_hooks for leaf in inputs)
    assert all(torch.equal(net.values[name].scale, scale) for name, scale in scales.items())


def test_ties_come_in_data_flow_order(case) -> None:
    _, net, batches = case
    rows = exact(net, batches, loss=lambda reference, output, batch: 1.0)
    assert tuple(row.layer for row in rows) == layers(net.plan)


def test_only_what_follows_a_layer_is_recomputed(calibrated, monkeypatch) -> None:
    net = calibrated(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), torch.randn(5, 4))
    counted, real = [], stepwise.call
    monkeypatch.setattr(stepwise, "call", lambda node, values: (counted.append(node), real(node, values))[1])
    exact(net, [torch.randn(5, 4)])
    own, followers, output = 4, 3 + 2 + 1, 4
    assert len(counted) == own + followers + output


def test_nothing_is_recomputed_behind_a_layer_that_rounding_does_not_change(calibrated, monkeypatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[127.0, 1.0], [-3.0, 127.0]]))
    x = torch.tensor([[127.0, 5.0], [-17.0, 0.0]])
    net = calibrated(model, x)
    counted, real = [], stepwise.call
    monkeypatch.setattr(stepwise, "call", lambda node, values: (counted.append(node), real(node, values))[1])
    found = {row.layer: row.loss for row in exact(net, [x])}
    assert found["0"] == 0
    assert len(counted) == 1 + 2  # layer 0; layer 1 and the output


def test_a_loss_may_use_labels(calibrated) -> None:
    net = calibrated(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(9, 4))
    batches = [(torch.randn(n, 4), torch.randint(3, (n,))) for n in (5, 2)]

    def cross_entropy(reference, output, batch):
        assert reference.shape == output.shape
        return F.cross_entropy(output, batch[1]).item()

    found = {row.layer: row.loss for row in exact(net, batches, loss=cross_entropy)}
    for layer, loss in found.items():
        sim = simulate(quantize_only(net, [layer]))
        outputs, labels = torch.cat([sim(x) for x, _ in batches]), torch.cat([y for _, y in batches])
        assert loss == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)
    assert {row.layer for row in fast(net, batches)} == set(found)


def test_batches_may_be_an_iterator(calibrated, capsys) -> None:
    net = calibrated(nn.Sequential(nn.Linear(4, 3)), torch.randn(9, 4))
    batches = [torch.randn(3, 4), torch.randn(2, 4)]
    (listed,), (iterated,) = exact(net, batches), exact(net, iter(batches), progress=True)
    assert listed.loss == iterated.loss
    assert "sensitivity" in capsys.readouterr().out


@pytest.mark.parametrize("dynamic_axes", [(0,), ()], ids=["samples", "one sample"])
def test_fast_converges_to_exact_where_the_network_is_linear(calibrated, dynamic_axes) -> None:
    rules = [Rule("0", bits=3), Rule("2", bits=5), EVERYTHING]
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    x = torch.randn(200, 6)
    net = calibrated(model, x, rules, dynamic_axes=dynamic_axes)
    probes = 100 if dynamic_axes else 2000
    wanted, found = exact(net, [x]), fast(net, [x], probes=probes)
    wanted, found = ({row.layer: row.loss for row in rows} for rows in (wanted, found))
    # standard errors: √(2 / (200 · 100)) = 1 % and √(2 / 2000) = 3.2 %, more where few samples make up the sum
    for layer, loss in wanted.items():
        assert found[layer] == pytest.approx(loss, rel=0.1 if dynamic_axes else 0.25)


def test_fast_takes_all_outputs_of_a_recurrent_layer(calibrated) -> None:
    batch = torch.randn(100, 6, 4)
    net = calibrated(Recurrent(), batch)
    last = layers(net.plan)[-2]  # behind the second layer everything is linear
    wanted, found = exact(net, [batch]), fast(net, [batch], probes=100)
    wanted, found = ({row.layer: row.loss for row in rows}[last] for rows in (wanted, found))
    assert found == pytest.approx(wanted, rel=0.15)


def test_fast_is_unbiased_over_seeds(calibrated) -> None:
    x = torch.randn(50, 6)
    net = calibrated(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), x)
    runs = [fast(net, [x[:20], x[20:]], seed=seed) for seed in range(100)]
    wanted = {row.layer: row.loss for row in exact(net, [x[:20], x[20:]])}
    for layer, loss in wanted.items():
        found = [row.loss for rows in runs for row in rows if row.layer == layer]
        assert len(set(found)) == len(runs)
        assert sum(found) / len(found) == pytest.approx(loss, rel=0.2)
    assert [row.loss for row in runs[0]] == [row.loss for row in fast(net, [x[:20], x[20:]])]


def deep(bits):
    """A network of convolutions with a rule of that many bits for each."""
    convs = [nn.Conv2d(6, 6, 3, padding=1) for _ in bits]
    model = nn.Sequential(*itertools.chain.from_iterable((conv, nn.ReLU()) for conv in convs))
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight)
    return model, [*(Rule(str(2 * i), bits=b) for i, b in enumerate(bits)), EVERYTHING]


@pytest.mark.parametrize("place", [0, 3, 5])
def test_fast_finds_the_layer_with_two_bits(calibrated, place) -> None:
    model, rules = deep([2 if i == place else 8 for i in range(6)])
    x = torch.randn(16, 6, 8, 8)
    net = calibrated(model, x, rules)
    assert fast(net, [x])[0].layer == exact(net, [x])[0].layer == str(2 * place)


def test_fast_ranks_layers_like_exact(calibrated) -> None:
    model, rules = deep([4, 8, 3, 6, 5, 7, 2, 8, 4, 6])
    x = torch.randn(16, 6, 8, 8)
    net = calibrated(model, x, rules)
    assert rank_correlation(fast(net, [x]), exact(net, [x])) > 0.85


def test_a_layer_without_gradient_has_no_loss_in_fast(network, calibrated) -> None:
    def forward(self, x):
        return self.head(x), self.cut(x).argmax(dim=1)

    x = torch.randn(9, 4)
    net = calibrated(network(forward, head=nn.Linear(4, 3), cut=nn.Linear(4, 3)), x)
    found = {row.layer: row.loss for row in fast(net, [x])}
    assert found["cut"] == 0
    assert found["head"] > 0


@pytest.mark.parametrize("measure", [exact, fast])
def test_one_layer(calibrated, measure) -> None:
    x = torch.randn(9, 4)
    net = calibrated(nn.Sequential(nn.Linear(4, 3)), x)
    (row,) = measure(net, [x])
    assert row.layer == "0"
    assert 0 < row.loss < 0.01


@pytest.mark.parametrize("measure", [exact, fast])
@pytest.mark.parametrize("bias", [True, False])
def test_zeros_lose_nothing(calibrated, measure, bias) -> None:
    model = nn.Sequential(nn.Conv2d(4, 3, 3, bias=bias))
    net = calibrated(model, images())
    assert [row.loss for row in measure(net, [torch.zeros(3, 4, 6, 6)])] == [0.0]


@pytest.mark.parametrize("measure", [exact, fast])
def test_an_error_where_the_signal_is_zero_is_infinite(network, calibrated, measure) -> None:
    model = network(lambda self, x: self.one(x) - self.two(x), one=nn.Linear(4, 3), two=nn.Linear(4, 3))
    model.two.load_state_dict(model.one.state_dict())
    net = calibrated(model, torch.randn(9, 4))
    assert [row.loss for row in measure(net, [torch.randn(9, 4)])] == [math.inf] * 2


@pytest.mark.parametrize("measure", [exact, fast])
def test_no_batches_raise(calibrated, measure) -> None:
    net = calibrated(nn.Sequential(nn.Linear(4, 3)), torch.randn(9, 4))
    with pytest.raises(QuantizationError, match="sensitivity of every layer, but there are no batches; give at least"):
        measure(net, [])


@pytest.mark.parametrize("measure", [exact, fast])
def test_nan_raises_and_names_the_layer(calibrated, measure) -> None:
    net = calibrated(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), torch.randn(9, 4))
    with pytest.raises(QuantizationError, match=r"^0: asked to measure .* NaN"):
        measure(net, [torch.full((2, 4), math.nan)])


def test_a_loss_that_is_nan_raises_and_names_the_layer(calibrated) -> None:
    net = calibrated(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), torch.randn(9, 4))
    losses = iter([1.0, math.nan])
    with pytest.raises(QuantizationError) as caught:
        exact(net, [torch.randn(2, 4)], loss=lambda *_: next(losses))
    assert str(caught.value) == (
        "1: asked to measure what quantizing this layer alone loses, but the loss is NaN; look for NaN in the inputs, "
        "and for a division by zero in the network or the loss."
    )


def test_rounding_behind_moved_values_is_rounding_before_them(network, calibrated) -> None:
    """One range serves a padded, pooled and concatenated tensor: the simulation rounds where it is produced."""

    def forward(self, x):
        a, b = self.one(x), self.two(x)
        both = F.max_pool2d(F.pad(torch.cat([a, b], dim=1), (1, 1, 1, 1)), 2)
        return self.head(both.transpose(2, 3))

    convs = {"one": nn.Conv2d(4, 2, 1), "two": nn.Conv2d(4, 2, 1), "head": nn.Conv2d(4, 2, 3)}
    affine = Scheme(signed=False, symmetric=False)
    net = calibrated(network(forward, **convs), images(), [Rule(role="input", scheme=affine), EVERYTHING])
    graph = net.graph
    (shared,) = [q for q in net.plan.quantizers if q.name == "head.input"]
    assert len(edges(net.plan, shared.name)) == 2
    batch = images(5)
    for row in exact(net, [batch]):
        assert row.loss == pytest.approx(separately(graph, net, [batch], row.layer), rel=1e-5)


def row(layer, loss) -> Sensitivity:
    return Sensitivity(layer=layer, loss=loss, latency_ms=1.0)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((1.0, 2.0, 3.0, 4.0), 1.0),
        ((10.0, 20.0, 30.0, math.inf), 1.0),
        ((4.0, 3.0, 2.0, 1.0), -1.0),
        ((1.0, 3.0, 2.0, 4.0), 0.8),
        ((1.0, 2.0, 2.0, 4.0), 4.5 / math.sqrt(5 * 4.5)),  # ranks 1, 2.5, 2.5, 4
        ((7.0, 7.0, 7.0, 7.0), 0.0),
    ],
)
def test_rank_correlation_by_hand(other, expected) -> None:
    a = [row(name, loss) for name, loss in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True)]
    b = [row(name, loss) for name, loss in zip("abcd", other, strict=True)]
    assert rank_correlation(a, b[::-1]) == pytest.approx(expected)


def test_rank_correlation_of_different_layers_raises() -> None:
    with pytest.raises(QuantizationError, match="one ranks 2 layers, the other 2, and 1 are in both"):
        rank_correlation([row("a", 1.0), row("b", 2.0)], [row("a", 1.0), row("c", 2.0)])
    with pytest.raises(QuantizationError, match="at least two layers"):
        rank_correlation([row("a", 1.0)], [row("a", 1.0)])
