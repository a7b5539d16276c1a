"""What a network was not captured for is one error on every engine, in place of numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import octavo
from octavo.engines import available, check, target_for
from octavo.errors import QuantizationError
from octavo.recovery.stepwise import values_of

ENGINES = available()
VECTORIZED = [name for name in ENGINES if name != "reference"]


def compiled(calibrated, model, example, engine, **options):
    net = calibrated(model.eval(), example, target=target_for(engine), **options)
    return octavo.compile(net, engine=engine)


@pytest.fixture(params=VECTORIZED)
def engine(request):
    return request.param


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (
            (2, 3, 9, 8),
            r"inputs_0: asked to run on a tensor of shape \[2, 3, 9, 8\], but axis 2 is 8 in the network, and fixed",
        ),
        ((2, 4, 8, 8), "axis 1 is 3 in the network"),
        ((3, 8, 8), "the network was captured with 4 axes"),
    ],
)
def test_another_size_than_captured(shape, says, engine, network, calibrated):
    model = network(lambda self, x: self.b(self.a(x).flatten(1)), a=nn.Conv2d(3, 4, 3), b=nn.Linear(144, 5))
    run = compiled(calibrated, model, torch.randn(2, 3, 8, 8), engine)
    with pytest.raises(QuantizationError, match=says):
        run(torch.randn(shape))
    assert run(torch.randn(5, 3, 8, 8)).shape == (5, 5)
    assert run(torch.randn(1, 3, 8, 8)).shape == (1, 5)


def test_sizes_that_belong_together(engine, network, calibrated):
    model = network(lambda self, x, y: self.a(x) + self.b(y), a=nn.Linear(4, 6), b=nn.Linear(5, 6))
    run = compiled(calibrated, model, (torch.randn(2, 4), torch.randn(2, 5)), engine)
    with pytest.raises(QuantizationError, match="axis 0 has to be 3, as axis 0 of inputs_0 is"):
        run(torch.randn(3, 4), torch.randn(2, 5))
    assert run(torch.randn(7, 4), torch.randn(7, 5)).shape == (7, 6)


def test_a_sequence_longer_than_the_table_of_positions(engine, network, calibrated):
    positions = nn.Parameter(torch.randn(16, 8))
    model = network(lambda self, x: self.a(x + self.p[: x.shape[1]]), a=nn.Linear(8, 6), p=positions)
    run = compiled(calibrated, model, torch.randn(2, 5, 8), engine, dynamic_axes=(0, 1))
    assert run(torch.randn(3, 16, 8)).shape == (3, 16, 6)
    with pytest.raises(QuantizationError, match="the network has room for 16 along axis 1"):
        run(torch.randn(3, 17, 8))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, both):
        return self.a(both["a"]) + self.b(both["b"])


def test_keys_in_another_order_are_the_same_input() -> None:
    """Whoever runs a graph node by node reads them by name, as the user's model does."""
    model, small, large = Named().eval(), torch.randn(32, 4), 100 * torch.randn(32, 4)
    plan = octavo.make_plan(octavo.capture(model, ({"a": small, "b": large},)))
    stats = octavo.observe(plan, [({"b": large, "a": small},)])
    assert stats["a.input"].maximum == small.max()
    net = octavo.choose_params(plan, stats, "max")
    turned = {"b": large, "a": small}
    want = octavo.simulate(net)(turned)
    assert torch.equal(check.ran(octavo.simulate(net), [((turned,), {})])[0][0], want)
    assert torch.equal(check.simulated(net, [((turned,), {})])[0][0], want)
    torch.testing.assert_close(octavo.compile(net, engine="reference")(turned), want)
    assert list(values_of(net.graph, (turned,)).values())[-1][0].shape == want.shape
    torch.testing.assert_close(list(values_of(net.graph, (turned,)).values())[-1][0], model(turned))


@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_are_part_of_the_network(engine, network, calibrated):
    model = network(lambda self, x, power, scale=None: self.a(x) * power, a=nn.Linear(4, 6))
    net = calibrated(model.eval(), (x := torch.randn(2, 4), 3), target=target_for(engine))
    for run in (octavo.compile(net, engine=engine), octavo.simulate(net)):
        run(x, 3)
        for other in (4, 3.0, x):
            with pytest.raises(QuantizationError, match="captured with 3, which is part of it since then"):
                run(x, other)


@pytest.mark.parametrize("reordered", [False, True])
def test_a_row_that_the_embedding_does_not_have(reordered, engine, network, calibrated):
    def forward(self, x):
        return self.a(self.table(x.unsqueeze(1).squeeze(1).transpose(0, 1) if reordered else x))

    model = network(forward, table=nn.Embedding(10, 8), a=nn.Linear(8, 4))
    run = compiled(calibrated, model, torch.randint(0, 10, (3, 5)), engine)
    for wrong in (10, -1, 2**40):
        index = torch.randint(0, 10, (3, 5))
        index[1, 2] = wrong
        with pytest.raises(QuantizationError, match=f"look up the row {wrong} of an embedding, but it has 10 rows"):
            run(index)
    run(torch.zeros(4, 5, dtype=torch.long))


def test_what_autocast_does_stays_outside(engine, network, calibrated):
    """A graph captured, and calibrated, under autocast is the network's own, in float32."""
    model = network(lambda self, x: self.b(F.gelu(self.a(x))), a=nn.Linear(16, 32), b=nn.Linear(32, 4)).eval()
    x = torch.randn(4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net = calibrated(model, x, target=target_for(engine))
        graph = net.graph
    plain = calibrated(model, x, target=target_for(engine))
    plain_graph = plain.graph
    assert graph.module.code == plain_graph.module.code
    assert all(torch.equal(net.values[name].scale, plain.values[name].scale) for name in plain.values)
    assert octavo.compile(net, engine=engine)(x).dtype == torch.float32


def test_nan_is_lost_and_spoils_no_other_sample(engine, network, calibrated):
    """A documented limit: what rounds to an integer has no integer for NaN."""
    model = network(lambda self, x: self.a(x), a=nn.Linear(16, 4))
    run = compiled(calibrated, model, torch.randn(8, 16), engine)
    x = torch.randn(2, 16)
    clean = run(x)
    x[1, 3] = math.nan
    found = run(x)
    assert torch.equal(found[0], clean[0])
    assert not found[1].isnan().any()
