"""Every compute-heavy layer followed by every activation on the inductor engine, rounded behind it or not.

oneDNN has each activation for some of its kernels, and says so when it runs: here every pair is run.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import octavo
from conftest import Network
from octavo.engines.inductor import lowered
from octavo.engines.lowering.epilogue import ACTIVATIONS
from octavo.engines.native import compiler, load_kernels
from octavo.network.graph import capture
from octavo.network.simulate import simulate
from test_openvino import prepared

pytestmark = pytest.mark.skipif(compiler() is None, reason="the inductor engine needs a C++ compiler")


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    load_kernels()


# {name: the activation}; of those in `ACTIVATIONS` there is one of each operator at least
FUNCTIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardtanh of bounds": lambda x: F.hardtanh(x, -0.3, 0.6),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
    "leaky relu": F.leaky_relu,
    "clamp": lambda x: x.clamp(-0.2, 0.5),
}
# {name: (two layers that fit together, an input of the first, whether they have integer kernels)}
LAYERS = {
    "linear": (lambda: nn.Linear(8, 8), (4, 8), True),
    "conv1d": (lambda: nn.Conv1d(8, 8, 3, padding=1), (2, 8, 9), True),
    "conv1d, strided": (lambda: nn.Conv1d(8, 8, 3, stride=2, groups=2), (2, 8, 19), True),
    "conv2d": (lambda: nn.Conv2d(8, 8, 3, padding=1), (2, 8, 6, 6), True),
    "conv2d, dilated": (lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2), (2, 8, 6, 6), True),
    "conv2d, depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), (2, 8, 6, 6), True),
    "conv3d": (lambda: nn.Conv3d(8, 8, 3, padding=1), (2, 8, 4, 4, 4), False),
}


class Branches(nn.Module):
    """For every activation a layer with it at the end, and one with a layer behind it, for which it is rounded."""

    def __init__(self, build) -> None:
        super().__init__()
        self.last, self.first, self.second = (nn.ModuleList(build() for _ in FUNCTIONS) for _ in range(3))

    def forward(self, x):
        functions = list(FUNCTIONS.values())
        real = [function(layer(x)) for function, layer in zip(functions, self.last, strict=True)]
        rounded = [two(function(one(x))) for function, one, two in zip(functions, self.first, self.second, strict=True)]
        return real, rounded


@pytest.mark.parametrize("target", ["onednn", "onnxruntime"])  # signed activations, and affine ones
@pytest.mark.parametrize("layer", LAYERS)
def test_every_activation_behind_every_layer(layer, target) -> None:
    build, shape, on_integers = LAYERS[layer]
    net = prepared(Branches(build).eval(), torch.randn(shape), target=target)
    module, executions = lowered(net)
    assert len(executions) == 3 * len(FUNCTIONS)
    assert {name for name, row in executions.items() if row.on_integers} == (set(executions) if on_integers else set())
    x = torch.randn(shape)
    found, wanted = module(x), simulate(net)(x)
    for have, want in zip(found, wanted, strict=True):
        distances = map(octavo.sqnr_db, want, have)
        assert not {name: db for name, db in zip(FUNCTIONS, distances, strict=True) if db < 40}


def test_the_table_of_activations_is_covered() -> None:
    found = set()
    for function in FUNCTIONS.values():
        graph = capture(Network(lambda _, x, function=function: function(x)).eval(), torch.randn(4, 8))
        found |= {node.target for node in graph.module.graph.nodes}
    assert set(ACTIVATIONS) <= found
