"""Scattering: ONNX and both its readers compute what torch does, where several values meet and where none does."""

import pytest
import torch
from torch import nn

from octavo.engines import available, compile
from octavo.errors import QuantizationError
from octavo.measure import sqnr_db
from octavo.network.graph import capture
from octavo.network.simulate import simulate

REDUCTIONS = ("sum", "mean", "prod", "amax", "amin")
ENGINES = [engine for engine in ("openvino", "onnxruntime") if engine in available()]


def base(x):
    return torch.full((7, 6), 2.0)


def _reduced(reduce, include_self):
    return lambda x, i: base(x).scatter_reduce(0, i, x, reduce, include_self=include_self)


def _index_reduced(reduce, include_self):
    return lambda x, i: base(x).index_reduce(0, i[:, 0], x, reduce, include_self=include_self)


SCATTERS = {
    **{f"scatter_reduce {r} {s}": _reduced(r, s) for r in REDUCTIONS for s in (True, False)},
    **{f"index_reduce {r} {s}": _index_reduced(r, s) for r in REDUCTIONS[1:] for s in (True, False)},
    "of integers": lambda x, i: torch.full((7, 6), 2).scatter_reduce(0, i, (9 * x).round().long(), "mean"),
    "along axis 1": lambda x, i: torch.ones(9, 6).scatter_reduce(1, i, x, "mean", include_self=False),
    "part of src": lambda x, i: base(x).scatter_reduce(0, i[:4, :3], x, "mean"),
    "scatter_add": lambda x, i: base(x).scatter_add(0, i, x),
    "scatter_add of a part": lambda x, i: torch.ones(9, 8).scatter_add(1, i[:4], x),
    "scatter": lambda x, i: x.scatter(1, torch.arange(5).expand(9, 5), 2 * x),
    "scatter of a value": lambda x, i: x.scatter(0, i, 3.0),
    "scatter with add": lambda x, i: x.scatter(0, i, x, reduce="add"),
    "scatter with multiply": lambda x, i: x.scatter(0, i, 2.0, reduce="multiply"),
    "index_add": lambda x, i: base(x).index_add(0, i[:, 0], x, alpha=2),
    "index_add along axis 1": lambda x, i: torch.ones(9, 7).index_add(1, i[0], x),
    "index_put": lambda x, i: base(x).index_put((i[:, 0],), x, accumulate=True),
    "index_put of pairs": lambda x, i: base(x).index_put((i[:, 0], i[:, 1]), x[:, 0], accumulate=True),
}


@pytest.mark.filterwarnings("ignore:.*reduce:UserWarning")  # torch's own, on two of its operations
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SCATTERS)
def test_scattering_is_what_torch_does(network, name, engine) -> None:
    model = network(lambda self, x, i: SCATTERS[name](self.layer(x), i), layer=nn.Linear(6, 6)).eval()
    x, i = torch.randn(9, 6), torch.randint(0, 5, (9, 6))  # nine values on five of seven rows: some meet, two are empty
    graph = capture(model, (x, i), dynamic_axes=())
    torch.testing.assert_close(compile(graph, engine=engine)(x, i), model(x, i).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_mean_of_neighbours_on_integers(calibrated, network, engine) -> None:
    """A graph network whose numbers of nodes and of edges both vary."""

    def forward(self, x, edge):
        index = edge[1].unsqueeze(1).expand(-1, x.shape[1])
        y = x.new_zeros(x.shape).scatter_reduce(0, index, x[edge[0]], reduce="mean", include_self=False)
        return self.out((self.own(x) + self.others(y)).relu())

    def batch(n):
        return torch.randn(3 * n, 8), torch.randint(0, 3 * n, (2, 5 * n))

    model = network(forward, own=nn.Linear(8, 16), others=nn.Linear(8, 16), out=nn.Linear(16, 3))
    net = calibrated(model, batch(4), target=engine, dynamic_axes=(0, 1))
    inputs = batch(3)
    assert sqnr_db(simulate(net)(*inputs).detach(), compile(net, engine=engine)(*inputs)) >= 40


def test_what_onnx_cannot_scatter_is_named(network) -> None:
    model = network(lambda self, x, i: self.layer(x).put(i, x, accumulate=True), layer=nn.Linear(6, 6)).eval()
    x, i = torch.randn(9, 6), torch.randint(0, 5, (9, 6))
    with pytest.raises(QuantizationError, match="cannot translate one of its operations"):
        compile(capture(model, (x, i), dynamic_axes=()), engine=ENGINES[0])
