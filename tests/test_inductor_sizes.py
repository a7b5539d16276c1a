"""Networks with dynamic sizes, lowered and compiled once, against the simulation for sizes that the example had not."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import octavo
from conftest import Network
from octavo.engines import compile
from octavo.engines.inductor import _digest
from octavo.engines.native import compiler
from octavo.engines.retrace import exported_again
from octavo.network.edit import copy_module
from octavo.network.simulate import simulate
from test_chain import assert_agrees
from test_openvino import prepared

pytestmark = pytest.mark.skipif(compiler() is None, reason="the inductor engine needs a C++ compiler")


def products(self, x):
    """Heads that share their keys; a causal attention; a deep product; one of two activations with a matrix each."""
    q, k, v = self.q(x).unflatten(-1, (2, 8)).transpose(1, 2), self.k(x).unsqueeze(1), self.v(x).unsqueeze(1)
    shared = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
    hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    own = (self.own(x) @ self.other(x).transpose(1, 2) / 4).masked_fill(hidden, -math.inf).softmax(-1) @ self.third(x)
    covariance = self.own(x).transpose(1, 2) @ self.other(x)
    return shared.transpose(1, 2).flatten(2) + own, covariance


def sequence(self, x):
    """Convolutions over time with an activation that oneDNN lacks there, moved about, and a linear."""
    x = F.silu(self.two(F.silu(self.one(x.transpose(1, 2)))))
    return self.head(F.pad(x, (1, 1)).transpose(1, 2).flip(1))


def images(self, x):
    """Convolutions on both kernels, pooled, concatenated and enlarged, with residuals."""
    x = F.relu(self.stem(x))
    y = F.hardswish(self.dilated(F.max_pool2d(x, 2)))
    y = F.interpolate(self.grouped(y), scale_factor=2)
    x = torch.cat([x, y], 1)
    return self.head((x + self.same(x)).mean((2, 3)))


LINEARS = {"q": 16, "k": 8, "v": 8, "own": 16, "other": 16, "third": 16}
NETWORKS = {
    "products": (
        lambda: Network(products, **{name: nn.Linear(16, n) for name, n in LINEARS.items()}),
        (2, 6, 16),
        (0, 1),
    ),
    "sequence": (
        lambda: Network(
            sequence, one=nn.Conv1d(16, 8, 3, padding=1), two=nn.Conv1d(8, 8, 3, stride=2), head=nn.Linear(8, 4)
        ),
        (2, 12, 16),
        (0, 1),
    ),
    "images": (
        lambda: Network(
            images,
            stem=nn.Conv2d(3, 8, 3, padding=1),
            dilated=nn.Conv2d(8, 8, 3, padding=2, dilation=2),
            grouped=nn.Conv2d(8, 8, 3, padding=1, groups=2),
            same=nn.Conv2d(16, 16, 3, padding="same", groups=16),
            head=nn.Linear(16, 5),
        ),
        (2, 3, 16, 16),
        (0, 2, 3),
    ),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NETWORKS)
def test_any_size_that_was_said_to_vary(name) -> None:
    build, shape, axes = NETWORKS[name]
    net = prepared(build().eval(), torch.randn(shape), target="onednn", dynamic_axes=axes)
    network, simulation = compile(net, engine="inductor"), simulate(net)
    assert all(row.on_integers for row in network.executions().values())
    for batch, factor in ((2, 1), (1, 1), (5, 2), (3, 3), (1, 9)):
        x = torch.randn([size * factor if axis in axes[1:] else size for axis, size in enumerate((batch, *shape[1:]))])
        assert_agrees(network, simulation, (x,), decibels=40)


def test_packages_are_for_one_size_and_type(network, calibrated) -> None:
    """The operations are written alike, and so are the strides: [1, 8] and [2, 8] once shared a package."""

    def digest(example):
        graph = octavo.capture(network(lambda self, x: x * 2 + 1).eval(), example, dynamic_axes=())
        return _digest(exported_again(graph, copy_module(graph.module)))

    examples = [torch.ones(1, 8), torch.ones(2, 8), torch.ones(2, 8, dtype=torch.float64)]
    assert len({digest(example) for example in examples}) == 3
    assert digest(examples[0]) == digest(examples[0] + 1)
