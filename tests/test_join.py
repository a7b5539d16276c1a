"""A tensor that is read alone and through a concat: one scale for both, unless that hurts the lone reader."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import octavo
from conftest import edges, runs_here
from octavo.engines import available, target_for
from octavo.network.partial import keep_float
from octavo.numerics import AFFINE_UINT8


def conv(inputs: int = 8) -> nn.Conv2d:
    return nn.Conv2d(inputs, 8, 1)


def larger(layer, factor):
    layer.weight.data *= factor
    layer.bias.data *= factor
    return layer


def alone_and_joined(self, x):
    a, b = self.a(x), self.b(x)
    return self.own(a), self.both(torch.cat([a, b], 1))


def inputs_of(params):
    """{site: the scale of its activation}"""
    return {
        site.name: float(params.values[q.name].scale)
        for q in params.plan.quantizers
        if not q.constant
        for site in q.sites
    }


def made(network, calibrated, forward, target="openvino", **layers):
    return calibrated(network(forward, **layers).eval(), torch.randn(16, 3, 6, 6), target=target)


@pytest.mark.parametrize("engine", available())
def test_a_lone_reader_of_a_small_branch_keeps_its_own_scale(engine, network, calibrated):
    layers = {"a": conv(3), "b": larger(conv(3), 1000), "own": conv(), "both": conv(16)}
    net = made(network, calibrated, alone_and_joined, runs_here(target_for(engine)), **layers)
    graph = net.graph
    scales = inputs_of(net)
    assert 100 * scales["own.input"] < scales["both.input"]
    x = torch.randn(16, 3, 6, 6)
    wanted, found = graph(x), octavo.compile(net, engine=engine)(x)
    assert octavo.sqnr_db(wanted[0], found[0]) > 25
    simulated = octavo.simulate(net)(x)
    assert octavo.sqnr_db(simulated[0], found[0]) > 40


def test_branches_of_one_size_share_one_rounding(network, calibrated):
    layers = {"a": conv(3), "b": conv(3), "own": conv(), "both": conv(16)}
    net = made(network, calibrated, alone_and_joined, **layers)
    (quantizer,) = (q for q in net.plan.quantizers if "own.input" in {site.name for site in q.sites})
    assert {site.name for site in quantizer.sites} == {"own.input", "both.input"}
    found = edges(net.plan, quantizer.name)
    assert (len({edge.source for edge in found}), len(found)) == (2, 3)


def test_a_branch_that_is_never_negative_shares_a_scale_that_knows_negative_values(network, calibrated):
    def forward(self, x):
        a, b = F.relu(self.a(x)), self.b(x)
        return self.own(a), self.both(torch.cat([a, b], 1))

    net = made(network, calibrated, forward, a=conv(3), b=conv(3), own=conv(), both=conv(16))
    assert len({*inputs_of(net).values()}) == 2  # the image, and one for the rest
    (quantizer,) = (q for q in net.plan.quantizers if "own.input" in {site.name for site in q.sites})
    assert quantizer.scheme == AFFINE_UINT8


def test_of_several_readers_only_those_that_it_hurts_leave(network, calibrated):
    """As in a dense block: each reads all that was made before, and the last of it is large."""

    def forward(self, x):
        a = self.a(x)
        b = self.b(torch.cat([x, a], 1))
        c = self.c(torch.cat([x, a, b], 1))
        return self.d(torch.cat([x, a, b, c], 1))

    layers = {"a": conv(3), "b": conv(11), "c": larger(conv(19), 300), "d": conv(27)}
    net = made(network, calibrated, forward, **layers)
    scales = inputs_of(net)
    assert scales["a.input"] == scales["b.input"] == scales["c.input"]
    assert 10 * scales["c.input"] < scales["d.input"]


def test_a_tensor_in_two_concats(network, calibrated):
    def forward(self, x):
        a, b, c = self.a(x), self.b(x), self.c(x)
        return self.d(torch.cat([a, b], 1)), self.e(torch.cat([b, c], 1))

    for factor, equal in ((1, True), (1000, False)):
        layers = {"a": conv(3), "b": conv(3), "c": larger(conv(3), factor), "d": conv(16), "e": conv(16)}
        net = made(network, calibrated, forward, **layers)
        scales = inputs_of(net)
        assert (scales["d.input"] == scales["e.input"]) == equal


def test_schemes_that_rules_ask_for_stay_apart(network, calibrated):
    rules = [octavo.Rule("own", role="input", bits=4), octavo.Rule("*")]
    model = network(alone_and_joined, a=conv(3), b=conv(3), own=conv(), both=conv(16)).eval()
    net = calibrated(model, torch.randn(16, 3, 6, 6), rules)
    bits = {site.name: q.scheme.bits for q in net.plan.quantizers for site in q.sites}
    assert (bits["own.input"], bits["both.input"]) == (4, 8)


def test_what_is_shared_stays_shared_where_others_are_left_in_float(network, calibrated):
    layers = {"a": conv(3), "b": conv(3), "own": conv(), "both": conv(16)}
    net = made(network, calibrated, alone_and_joined, **layers)
    before = inputs_of(net)
    rest = keep_float(net, ["b"])
    assert inputs_of(rest) == {name: scale for name, scale in before.items() if name != "b.input"}
    names = [{site.name for site in q.sites} for q in rest.plan.quantizers]
    assert {"own.input", "both.input"} in names


@pytest.mark.parametrize("method", ["max", "entropy", "99.99", "mse"])
def test_dead_branches_and_every_method(method, network, calibrated):
    def forward(self, x):
        a, b = 0 * self.a(x), self.b(x)
        return self.own(a), self.both(torch.cat([a, b], 1))

    model = network(forward, a=conv(3), b=conv(3), own=conv(), both=conv(16)).eval()
    graph = octavo.capture(model, x := torch.randn(8, 3, 6, 6))
    plan = octavo.make_plan(graph)
    net = octavo.choose_params(plan, octavo.observe(plan, [x]), method)
    assert octavo.sqnr_db(graph(x)[1], octavo.simulate(net)(x)[1]) > 20
