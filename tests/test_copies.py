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
from octavo.network.quantized import on_graph

X = torch.randn(2, 4, 8)
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU()).eval()
    graph = octavo.capture(model, X)
    plan = octavo.make_plan(graph)
    stats = octavo.observe(plan, [X])
    return graph, plan, stats, octavo.choose_params(plan, stats)


@pytest.fixture(params=COPIES.values(), ids=COPIES)
def copied(request):
    return request.param


def test_a_network_on_the_cpu_is_not_moved_there(made):
    """What is elsewhere is a copy: tests/test_cuda.py."""
    graph, _, _, net = made
    assert on_cpu(net) is net
    assert on_cpu(graph) is graph


@pytest.mark.parametrize("engine", available())
def test_a_network_without_values_is_refused(made, engine):
    graph, _, _, net = made
    empty = copy.deepcopy(graph)
    empty.module.to("meta")
    with pytest.raises(QuantizationError, match="it is on the meta device, which holds no values; load its weights"):
        octavo.compile(on_graph(net, empty), engine=engine)


def test_values(made, copied):
    _, plan, stats, net = made
    assert copied(plan) == plan
    again = octavo.choose_params(plan, copied(stats))
    for found in (again, copied(net)):
        assert torch.equal(octavo.simulate(found)(X), octavo.simulate(net)(X))
        assert found.samples
        assert found.notes == net.notes


def test_a_quantized_network_with_its_graph(made, copied):
    graph, _, _, params = made
    other = copied(params)
    assert torch.equal(other.graph(X), graph(X))
    with torch.no_grad():
        next(other.graph.module.parameters()).zero_()
    assert next(graph.module.parameters()).any()
    other = copied(params)
    for engine in available():
        mine, own = (octavo.compile(net, engine=engine) for net in (params, other))
        assert torch.equal(mine(X), own(X)), engine


@pytest.mark.parametrize("ranges", ["fixed", "learned"])
def test_simulations_with_the_state_that_they_have_now(made, copied, ranges):
    params = made[-1]
    for module in (octavo.simulate(params), octavo.trainable(params, ranges=ranges)):
        with torch.no_grad():
            next(module.parameters()).mul_(0.5)
        found = copied(copied(module))
        assert torch.equal(found(X), module(X))
        assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in module.parameters()]
        with pytest.raises(QuantizationError, match=r"x: asked to run on None|input: asked to run on None"):
            found(None)


@pytest.mark.parametrize("engine", available())
def test_compiled_networks_are_one_error(made, copied, engine):
    params = made[-1]
    network = octavo.compile(params, engine=engine)
    for held in (network, {"network": network}):
        with pytest.raises(QuantizationError, match=r"cannot leave its process; octavo.save\(.*octavo.load\(path\)"):
            copied(held)
