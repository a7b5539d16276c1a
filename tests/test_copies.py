"""What can be copied and pickled gives the same results afterwards; a compiled network is one error that says how."""

import copy
import pickle

import pytest
import torch
from torch import nn

import octavo
from octavo.engines import available
from octavo.errors import QuantizationError
from octavo.network.device import on_cpu

X = torch.randn(2, 4, 8)
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU()).eval()
    graph = octavo.capture(model, X)
    plan = octavo.make_plan(graph)
    stats = octavo.observe(graph, plan, [X])
    return graph, plan, stats, octavo.choose_params(graph, plan, stats)


@pytest.fixture(params=COPIES.values(), ids=COPIES)
def copied(request):
    return request.param


def test_a_network_on_the_cpu_is_not_moved_there(made):
    """What is elsewhere is a copy: tests/test_cuda.py."""
    graph, _, _, params = made
    assert on_cpu(graph, params) == (graph, params)
    assert on_cpu(graph, None) == (graph, None)


@pytest.mark.parametrize("engine", available())
def test_a_network_without_values_is_refused(made, engine):
    graph, _, _, params = made
    empty = copy.deepcopy(graph)
    empty.module.to("meta")
    with pytest.raises(QuantizationError, match="it is on the meta device, which holds no values; load its weights"):
        octavo.compile(empty, params, engine=engine)


def test_values(made, copied):
    graph, plan, stats, params = made
    assert copied(plan) == plan
    again = octavo.choose_params(graph, plan, copied(stats))
    for found in (again, copied(params)):
        assert torch.equal(octavo.simulate(graph, found)(X), octavo.simulate(graph, params)(X))
        assert found.samples
        assert found.notes == params.notes


def test_a_graph_and_its_params_together(made, copied):
    graph, _, _, params = made
    own_graph, own_params = copied((graph, params))
    assert torch.equal(own_graph(X), graph(X))
    with torch.no_grad():
        next(own_graph.module.parameters()).zero_()
    assert next(graph.module.parameters()).any()
    own_graph, own_params = copied((graph, params))
    for engine in available():
        mine, own = (octavo.compile(*pair, engine=engine) for pair in ((graph, params), (own_graph, own_params)))
        assert torch.equal(mine(X), own(X)), engine


@pytest.mark.parametrize("ranges", ["fixed", "learned"])
def test_simulations_with_the_state_that_they_have_now(made, copied, ranges):
    graph, _, _, params = made
    for module in (octavo.simulate(graph, params), octavo.trainable(graph, params, ranges=ranges)):
        with torch.no_grad():
            next(module.parameters()).mul_(0.5)
        found = copied(copied(module))
        assert torch.equal(found(X), module(X))
        assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in module.parameters()]
        with pytest.raises(QuantizationError, match=r"x: asked to run on None|input: asked to run on None"):
            found(None)


@pytest.mark.parametrize("engine", available())
def test_compiled_networks_are_one_error(made, copied, engine):
    graph, _, _, params = made
    network = octavo.compile(graph, params, engine=engine)
    for held in (network, {"network": network}):
        with pytest.raises(QuantizationError, match=r"cannot leave its process; octavo.save\(.*octavo.load\(path\)"):
            copied(held)
