"""Moves of scale that are judged: what is returned is never farther from float, on what judges, than what was given."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import octavo.recovery.moves
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.recovery.lockstep import held_out, relative_error
from octavo.recovery.moves import keep_what_helps
from octavo.recovery.rescale import _equalization, _pairs, cross_layer_equalization, smoothquant


def parts(model, batches, rules=(EVERYTHING,), target="paper", by="max"):
    graph = capture(model.eval(), batches[0])
    plan = make_plan(graph, rules, target=target)
    return choose_params(plan, observe(plan, batches), by)


def error(found, batches, reference) -> float:
    """Of the network's output, as it is judged."""
    rounded = simulate(found)
    with torch.no_grad():
        return sum(relative_error([reference(x)], [rounded(x)]) for x in batches)


def judging(batches):
    return batches[-held_out(len(batches)) :]


def spread_out(layer: nn.Module, by: float) -> nn.Module:
    """`layer` with output channels of very different size, which are shifted as well."""
    with torch.no_grad():
        layer.weight.mul_(torch.exp(by * torch.randn(len(layer.weight))).reshape(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.normal_(std=random.choice([0.1, 3.0]))
    return layer


def random_network() -> tuple[nn.Module, list[int]]:
    """Layers with ReLUs, leaky ones, pools and norms between them, and the shape of a sample."""
    by, steps = random.choice([0.0, 1.0, 3.0]), []
    kind = random.choice(["image", "features"])
    for _ in range(random.randint(2, 4)):
        layer = nn.Conv2d(6, 6, 3, padding=1, groups=random.choice([1, 6])) if kind == "image" else nn.Linear(6, 6)
        between = [nn.ReLU(), nn.LeakyReLU(0.2), nn.Identity()]
        between += [nn.ReLU6(), nn.AvgPool2d(2, 1)] if kind == "image" else [nn.LayerNorm(6), nn.GELU()]
        steps += [spread_out(layer, by), random.choice(between)]
    return nn.Sequential(*steps), [6, 7, 7] if kind == "image" else [6]


@pytest.mark.parametrize("repair", [cross_layer_equalization, smoothquant])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_move_makes_a_random_network_worse_on_what_judges(repair, count) -> None:
    for _ in range(3):
        model, shape = random_network()
        batches = [torch.randn(16, *shape) * random.choice([0.3, 3.0]) for _ in range(count)]
        rules = [Rule("*", bits=random.choice([3, 4, 8]))]
        target, by = random.choice(["paper", "openvino", "onnxruntime"]), random.choice(["max", "99.9", "entropy"])
        net = parts(model, batches, rules, target, by)
        graph = net.graph
        found, heard = repair(net, batches), judging(batches)
        assert error(found, heard, graph) <= error(net, heard, graph)
        for x in heard:  # and the float function is what it was
            with torch.no_grad():
                assert relative_error([graph.module(x)], [found.graph.module(x)]) < 1e-4


class Chain(nn.Module):
    """Two pairs of layers, with a GELU between them that no scale passes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.d(F.relu(self.c(F.gelu(self.b(F.relu(self.a(x)))))))


SMALL = torch.tensor([1.0] * 4 + [0.01] * 4)  # of what the first layer makes half the channels so


def chain():
    """(its graph, parameters and batches, and its pairs); equalizing the first undoes what four bits cannot bear."""
    model, batches = Chain(), [torch.randn(64, 6) for _ in range(4)]
    with torch.no_grad():
        model.a.weight.mul_(SMALL[:, None])
        model.a.bias.mul_(SMALL)
        model.b.weight.div_(SMALL)
    net = parts(model, batches, [Rule("*", role="input", bits=4), EVERYTHING])
    graph = net.graph
    return graph, net, batches, list(_pairs(graph))


@pytest.fixture
def trials(monkeypatch) -> list[int]:
    """One for each time that ranges were calibrated."""
    calls: list[int] = []

    def counted(*args):
        calls.append(1)
        return observe(*args)

    monkeypatch.setattr(octavo.recovery.moves, "observe", counted)
    return calls


def test_of_two_moves_that_which_helps_stays_and_the_other_is_undone(trials) -> None:
    graph, net, batches, pairs = chain()
    assert len(pairs) == 2
    good = _equalization(graph, *pairs[0], SMALL)
    bad = _equalization(graph, *pairs[1], SMALL.flip(0) ** 2)
    alone = keep_what_helps(net, batches, [good])
    assert len(trials) == 1
    found = keep_what_helps(net, batches, [good, bad])
    assert 2 <= len(trials) - 1 <= 4
    states = [one.module.state_dict() for one in (found.graph, alone.graph, graph)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["a.weight"], states[2]["a.weight"])
    assert all(torch.equal(one.scale, alone.values[name].scale) for name, one in found.values.items())
    assert error(found, judging(batches), graph) < error(net, judging(batches), graph)


@pytest.mark.parametrize("count", [1, 2])
def test_where_none_helps_all_is_as_it_was_given(trials, count) -> None:
    graph, net, batches, pairs = chain()
    bad = [_equalization(graph, *pair, by**-1) for pair, by in zip(pairs, (SMALL, SMALL**2), strict=True)][:count]
    assert keep_what_helps(net, batches, bad) is net
    assert len(trials) <= count + 2


def test_all_that_helps_costs_one_calibration_as_before(trials) -> None:
    graph, net, batches, pairs = chain()
    found = keep_what_helps(net, batches, [_equalization(graph, *pairs[0], SMALL)]).graph
    assert len(trials) == 1
    assert found is not graph


def test_a_layer_between_two_moves_is_compared_with_its_own_taken_back() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    batches = [torch.randn(32, 6)]
    net = parts(model, batches)
    graph = net.graph
    moves = [_equalization(graph, *pair, torch.rand(6) + 0.5) for pair in _pairs(graph)]
    judge = octavo.recovery.moves._Judge.of(net, batches, moves)
    moved = judge.trial(moves)
    assert moved.layers.keys() == {name for move in moves for name in move.readers}
    assert len(moves) == 2
    assert all(found < 0.01 for found in moved.layers.values())  # eight bits; not taken back it is a third and more
    assert moved.network < 0.01


def test_a_network_that_returns_integers_alone_is_judged_by_its_layers(network) -> None:
    model = network(lambda self, x: self.chain(x).argmax(-1), chain=Chain())
    with torch.no_grad():
        model.chain.a.weight.mul_(SMALL[:, None])
        model.chain.a.bias.mul_(SMALL)
        model.chain.b.weight.div_(SMALL)
    batches = [torch.randn(64, 6) for _ in range(4)]
    net = parts(model, batches, [Rule("*", role="input", bits=4), EVERYTHING])
    graph = net.graph
    first, second = _pairs(graph)
    moves = [_equalization(graph, *first, SMALL), _equalization(graph, *second, SMALL**2)]
    found = keep_what_helps(net, batches, moves).graph
    same = {
        key: torch.equal(tensor, graph.module.state_dict()[key]) for key, tensor in found.module.state_dict().items()
    }
    assert not same["chain.a.weight"]
    assert same["chain.c.weight"]
    assert same["chain.d.weight"]
