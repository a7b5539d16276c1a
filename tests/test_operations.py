"""The table of operations: no engine is silent about a row of it."""

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.engines import available, target_for
from octavo.network.edit import argument, set_argument
from octavo.network.operations import OPERATIONS
from octavo.network.placement import compute_heavy

aten = torch.ops.aten


class Everything(nn.Module):
    """Every operation of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.line = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.one, self.same1 = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding="same")
        self.two, self.same2 = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding="same")
        self.three, self.same3 = nn.Conv3d(2, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding="same")
        self.back1, self.back2 = nn.ConvTranspose1d(8, 8, 3, padding=1), nn.ConvTranspose2d(2, 2, 3, padding=1)
        self.back3 = nn.ConvTranspose3d(2, 2, 3, padding=1)
        self.lstm, self.gru = nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.line(self.table(tokens))  # [N, 8, 8]
        x = self.back1(self.same1(self.one(x)))
        image = self.back2(self.same2(self.two(x.reshape(-1, 2, 8, 4))))
        volume = self.back3(self.same3(self.three(image.reshape(-1, 2, 2, 4, 4))))
        x = volume.reshape(-1, 8, 8) + x
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        return x @ x.transpose(1, 2)


@pytest.fixture(scope="module")
def everything():
    example = torch.randint(10, (3, 8))
    return octavo.capture(Everything().eval(), example), example


def test_the_network_has_every_row(everything) -> None:
    """A new row needs a line in it."""
    graph, _ = everything
    assert {node.target for node in graph.module.graph.nodes} >= OPERATIONS.keys()


@pytest.mark.parametrize("engine", available())
def test_no_engine_is_silent_about_a_row(everything, engine) -> None:
    graph, example = everything
    plan = octavo.make_plan(graph, target=target_for(engine))
    net = octavo.choose_params(plan, octavo.observe(plan, [example]))
    network = octavo.compile(net, engine=engine, check=False)
    names = set(compute_heavy(graph, plan.target).values())
    assert network.executions().keys() >= names
    kept = {one.site for one in plan.coverage.kept_float}
    assert kept | set(plan.coverage.layers) == names
    assert all(one.reason for one in plan.coverage.kept_float)
    told = octavo.ran(network)
    assert set(told.on_integers) | set(told.in_float) == set(plan.coverage.layers)
    assert torch.isfinite(network(example)).all()


def test_arguments_are_read_by_their_names() -> None:
    for operator, row in OPERATIONS.items():
        declared = {one.name for one in operator._schema.arguments}
        assert row.inputs.keys() <= declared, operator


def test_an_argument_that_is_not_given_has_the_default_of_the_schema() -> None:
    graph = torch.fx.Graph()
    x, w, b = (graph.placeholder(name) for name in "xwb")
    node = graph.call_function(aten.conv2d.default, (x, w), {"groups": 2})
    assert (argument(node, "input"), argument(node, "bias"), argument(node, "groups")) == (x, None, 2)
    assert list(argument(node, "stride")) == [1, 1]
    set_argument(node, "bias", b)
    assert node.args == (x, w, b)
    set_argument(node, "groups", 1)
    assert node.kwargs == {"groups": 1}
    set_argument(node, "padding", [1, 1])
    assert node.args == (x, w, b, [1, 1], [1, 1])
    node.args, node.kwargs = (x, w), {"stride": [2, 2]}
    set_argument(node, "padding", [1, 1])
    assert (node.args, node.kwargs) == ((x, w, None, [2, 2], [1, 1]), {})
    with pytest.raises(AssertionError, match="has no argument 'wings'"):
        argument(node, "wings")
