"""Whether an engine is right is measured on real inputs, against a bar that the network itself gives."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import octavo
from conftest import BasicBlock, edges
from octavo.engines import available, target_for
from octavo.engines.check import DRAWS, ENOUGH_DB, LEAST_DB, agreement, moved, nearness, ran, simulated
from octavo.engines.reference import compile_reference
from octavo.network.edit import attribute
from octavo.network.graph import clone
from octavo.network.quantized import on_graph, origin_of
from octavo.network.samples import SAMPLES, Samples
from octavo.saved.calls import packed, unpacked

# ---- the samples that calibration keeps


def kept(graph, *batches):
    samples = Samples(graph)
    for args in batches:
        samples.show(args, {})
    return [args for args, _ in samples.calls]


def test_a_few_samples_are_kept_over_the_batches(calibrated):
    net = calibrated(nn.Linear(4, 3), torch.randn(2, 4))
    graph = net.graph
    first, second = torch.randn(3, 4), torch.randn(9, 4)
    (one,), (other,) = kept(graph, (first,), (second,), (torch.randn(5, 4),))
    assert torch.equal(one, first)
    assert torch.equal(other, second[: SAMPLES - 3])
    ((args, kwargs),) = net.samples  # what the fixture calibrated with
    assert (args[0].shape, kwargs) == (torch.Size([2, 4]), {})


def test_samples_are_copies_of_the_inputs_alone(calibrated):
    graph = calibrated(nn.Linear(4, 3), x := torch.randn(2, 4)).graph
    plan = octavo.make_plan(graph)
    ((args, _),) = octavo.observe(plan, [(x, "a label")]).samples
    assert torch.equal(args[0], x)
    x.zero_()
    assert args[0].abs().sum() > 0


def test_what_cannot_be_cut_is_kept_whole_once(network, calibrated):
    model = network(lambda self, nodes, edges: self.a(nodes)[edges[0]], a=nn.Linear(4, 3))
    example = (torch.randn(6, 4), torch.randint(0, 6, (2, 9)))
    graph = calibrated(model, example, dynamic_axes=(0, 1)).graph
    batches = [(torch.randn(700, 4), torch.randint(0, 700, (2, 100_000))) for _ in range(3)]
    ((nodes, edges),) = kept(graph, *batches)
    assert torch.equal(nodes, batches[0][0])
    assert torch.equal(edges, batches[0][1])


def test_large_samples_are_fewer_and_empty_batches_none(calibrated):
    graph = calibrated(nn.Linear(300_000, 1), torch.randn(2, 300_000)).graph
    ((x,),) = kept(graph, (torch.randn(4, 300_000),), (torch.randn(1, 300_000),))
    assert len(x) == 1
    graph = calibrated(nn.Linear(4, 1), torch.randn(2, 4)).graph
    ((y,),) = kept(graph, (torch.randn(1, 4),))
    assert len(y) == 1


def test_samples_come_back_from_data():
    calls = (((torch.randn(2, 3), None, 2.5), {"mask": torch.ones(2, dtype=torch.bool), "mode": ["a", 1, True]}),)
    records, tensors = packed(calls)
    ((args, kwargs),) = unpacked([type(r).model_validate_json(r.model_dump_json()) for r in records], tensors)
    assert torch.equal(args[0], calls[0][0][0])
    assert args[1:] == (None, 2.5)
    assert torch.equal(kwargs["mask"], calls[0][1]["mask"])
    assert kwargs["mode"] == ["a", 1, True]


# ---- how near two executions are


def near(a, b):
    return nearness(([a],), ([b],))


def test_nearness_of_known_numbers():
    a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.1], [-1.0, 0.0]])
    assert near(a, b) == [pytest.approx(10 * math.log10(2 / 0.01))]
    assert near(a, a) == [math.inf]
    assert nearness(([a], [a]), ([b], [a])) == [pytest.approx(10 * math.log10(4 / 0.01))]


def test_what_an_output_always_says_is_no_signal():
    """A thousand on every sample: half of the network may be lost and 60 dB are left of the plain ratio."""
    says = torch.randn(16, 8)
    assert octavo.sqnr_db(1000 + says, torch.full((16, 8), 1000.0)) > 50
    assert near(1000 + says, torch.full((16, 8), 1000.0))[0] < 1


def test_rounding_in_float32_is_no_deviation_of_steady_outputs():
    steady = torch.full((4, 8), 1000.0) + 1e-5 * torch.randn(4, 8)
    assert near(steady, steady * (1 + 1e-7))[0] > ENOUGH_DB


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2, dtype=torch.float16)),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 1.0])),
        (torch.tensor([1.0, 1.0]), torch.tensor([1.0, math.inf])),
        (torch.tensor([1.0, -math.inf]), torch.tensor([1.0, math.inf])),
        (torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 1e-6])),
    ],
)
def test_another_kind_of_output_is_never_near(a, b):
    assert near(a, b) == [-math.inf]
    assert nearness(([a],), ([b, b],)) == [-math.inf]


def test_masks_zeros_and_empty_outputs_are_near_themselves():
    for leaf in (torch.tensor([1.0, -math.inf, math.nan]), torch.zeros(3), torch.zeros(0, 2), torch.tensor(2.0)):
        assert near(leaf, leaf.clone()) == [math.inf]


def test_of_integers_the_share_counts():
    a = torch.arange(100)
    b = a.clone()
    b[:5] += 10**9
    assert near(a, b) == [pytest.approx(10 * math.log10(20))]
    assert agreement(([a],), ([b],), lambda: []).holds  # 5 % may differ
    b[:20] += 1
    assert not agreement(([a],), ([b],), lambda: []).holds


def test_the_worst_output_decides_and_nothing_is_drawn_without_need():
    a, b = torch.randn(4, 5), torch.randn(4, 5)

    def never():
        raise AssertionError

    assert agreement(([a, b],), ([a, b],), never).holds
    found = agreement(([a, b],), ([a, 1.1 * b],), lambda: [([a, b],)] * DRAWS)
    assert not found.holds
    assert 15 < found.nearness_db < 25
    assert found.bar_db == ENOUGH_DB


def test_an_output_that_always_says_the_same_is_never_near_enough():
    """However much rounding shakes the network: half of what it says has to be there."""
    says = torch.randn(64, 8)
    silent, shaken = says.mean(0).expand(64, 8), torch.randn(64, 8)
    found = agreement(([says],), ([silent],), lambda: [([shaken],)] * DRAWS)
    assert not found.holds
    assert found.bar_db == LEAST_DB


# ---- the bar, from both sides


def deep(blocks: int) -> nn.Module:
    """As deep as trained networks are, and as steady: every block adds a little to what passes it by."""
    made = [BasicBlock(8) for _ in range(blocks)]
    for block in made:
        nn.init.constant_(block.norm2.weight, 0.3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *made, nn.Flatten(), nn.Linear(800, 10))


@pytest.mark.parametrize("engine", available())
@pytest.mark.parametrize("blocks", [1, 12])
def test_right_engines_pass_however_deep_the_network_is(blocks, engine, calibrated):
    net = calibrated(deep(blocks).eval(), torch.randn(8, 3, 12, 12), target=target_for(engine))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = octavo.compile(net, engine=engine)
    assert origin_of(network).net is net


def wrongly(params, layer, factor):
    """The network whose weight of `layer`, and the unit of its integers, are `factor` times what they should be."""
    quantizer = next(q for q in params.plan.quantizers if q.constant and q.sites[0].layer == layer)
    other = clone(params.graph)
    node = next(node for node in other.module.graph.nodes if node.name == edges(params.plan, quantizer.name)[0].source)
    attribute(other.module, node).data.mul_(factor)
    scale = params.values[quantizer.name].scale * (abs(factor) or 1)
    values = {**params.values, quantizer.name: replace(params.values[quantizer.name], scale=scale)}
    return on_graph(params, other, values)


@pytest.mark.parametrize("blocks", [1, 12])
@pytest.mark.parametrize("factor", [2.0, -1.0, 0.0])
def test_wrong_ones_do_not(factor, blocks, calibrated):
    net = calibrated(deep(blocks).eval(), torch.randn(8, 3, 12, 12), target="paper")
    calls = net.samples
    wanted = simulated(net, calls)
    for layer in ("0", f"{blocks + 2}", *["1.conv2"] * (blocks == 1)):
        wrong = ran(compile_reference(wrongly(net, layer, factor)), calls)
        found = agreement(wanted, wrong, lambda: moved(net, calls, 2**-10))
        assert not found.holds, (layer, found)
