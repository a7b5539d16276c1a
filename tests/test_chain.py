"""What the lowering makes of convolutional networks: chains of Octavo's own kernel."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from octavo.engines import compile
from octavo.engines.inductor import lowered
from octavo.engines.isa import isa
from octavo.engines.native import compiler, load_kernels
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.numerics import Scheme
from test_openvino import prepared

pytestmark = pytest.mark.skipif(compiler() is None, reason="the inductor engine needs a C++ compiler")


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    load_kernels()


def assert_agrees(network, simulation, example, decibels=45) -> None:
    """Values at a tie may go either way, and so move what comes after them by a step."""
    found, wanted = (torch.utils._pytree.tree_leaves(each(*example)) for each in (network, simulation))
    for one, other in zip(found, wanted, strict=True):
        noise = (one - other).double().square().sum() / other.double().square().sum()
        assert noise <= 10 ** (-decibels / 10)


class Inverted(nn.Module):
    """Expand, filter each channel, project, add; then the same with stride 2 and an odd padding, and a head."""

    def __init__(self, act=nn.ReLU6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), act())
        self.one = nn.Sequential(nn.Conv2d(16, 48, 1), act(), nn.Conv2d(48, 48, 3, 1, 1, groups=48), act())
        self.project = nn.Conv2d(48, 16, 1)
        self.two = nn.Sequential(nn.Conv2d(16, 48, 1), act(), nn.ZeroPad2d((1, 2, 1, 2)))
        self.down = nn.Sequential(nn.Conv2d(48, 48, 5, 2, groups=48), act(), nn.Conv2d(48, 24, 1))
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.one(x))
        return self.head(self.down(self.two(x)).mean((2, 3)))


def calls(module):
    found = [node for node in module.graph.nodes if node.target is torch.ops.octavo.int8_convolutions.default]
    return [len(node.args[3]) for node in found]


def test_an_inverted_residual_is_one_call() -> None:
    x = torch.randn(2, 3, 32, 32)
    net = prepared(Inverted().eval(), (x,), target="onednn")
    module, executions = lowered(net)
    assert calls(module) == [1, 3, 3]  # stem; both inverted residuals, one with its addition, one with its padding
    assert not any(node.target is torch.ops.aten.add.Tensor for node in module.graph.nodes)
    assert not any("pad" in str(node.target) for node in module.graph.nodes)
    convolutions = {row.implementation for row in executions.values() if row.kernel == "convolution"}
    assert convolutions == {"octavo_i8"}
    assert_agrees(module, simulate(net), (x,))
    network = compile(net, engine="inductor")
    assert_agrees(network, simulate(net), (x,))


@pytest.mark.parametrize("act", [nn.ReLU, nn.Identity, nn.Hardswish, lambda: nn.Hardtanh(-0.5, 0.7)])
@pytest.mark.parametrize("target", ["onednn", "openvino", "paper", "tensorrt", "onnxruntime"])
def test_chains_are_the_simulation(act, target) -> None:
    x = torch.randn(2, 3, 32, 32)
    net = prepared(Inverted(act).eval(), (x,), target=target)
    module, _ = lowered(net)
    assert_agrees(module, simulate(net), (x,))


@pytest.mark.parametrize("skipped", ["stem.0", "one.0", "one.2", "project", "down.0"])
def test_layers_in_float_cut_a_chain(skipped) -> None:
    x = torch.randn(2, 3, 32, 32)
    net = prepared(Inverted().eval(), (x,), (Rule(skipped, skip=True), EVERYTHING), "onednn")
    module, executions = lowered(net)
    assert [name for name, row in executions.items() if not row.on_integers] == [skipped]
    assert_agrees(module, simulate(net), (x,))


def test_what_others_read_is_written() -> None:
    """The expanded image is read twice, so that it cannot stay in the cache."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.filter = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
            self.other = nn.Conv2d(16, 8, 1)

        def forward(self, x):
            x = F.relu(self.expand(x))
            return self.filter(x), self.other(x)

    x = torch.randn(2, 8, 6, 6)
    net = prepared(Twice().eval(), (x,), target="onednn")
    module, _ = lowered(net)
    assert calls(module) == ([1, 1] if isa().onednn else [1, 1, 1])  # a depthwise result in float is oneDNN's to write
    assert_agrees(module, simulate(net), (x,))


def test_dilated_grouped_and_multiplied_convolutions_are_onednns_where_it_is_exact() -> None:
    x = torch.randn(2, 8, 9, 9)
    for layer in (nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 16, 3, groups=8)):
        net = prepared(
            nn.Sequential(layer, nn.ReLU(), nn.Conv2d(layer.out_channels, 4, 1)).eval(), (x,), target="onednn"
        )
        module, executions = lowered(net)
        first = "onednn_i8" if isa().onednn else "octavo_i8"
        assert [row.implementation for row in executions.values()] == [first, "octavo_i8"]
        assert_agrees(module, simulate(net), (x,))


def test_results_that_might_leave_int32_are_not_ours() -> None:
    x = torch.randn(2, 8, 9, 9)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    net = prepared(model, (x,), target="onednn")
    tiny = replace(net.values["2.input"], scale=torch.tensor(1e-12))  # results are 10¹² steps and more
    _, executions = lowered(replace(net, values={**net.values, "2.input": tiny}))
    first = "onednn_i8" if isa().onednn else "inductor_f32"
    assert [row.implementation for row in executions.values()] == [first, "octavo_i8"]


@pytest.mark.parametrize("dilation", [1, 3])
def test_an_even_kernel_padded_to_the_same_size_is_on_integers(dilation) -> None:
    """oneDNN, which has what is dilated where it is exact, pads both sides alike."""
    x = torch.randn(1, 2, 5, 5)
    layer = nn.Conv2d(2, 3, 2, padding="same", dilation=dilation)
    net = prepared(nn.Sequential(layer, nn.ReLU()).eval(), (x,), target="onednn")
    module, executions = lowered(net)
    assert [row.implementation for row in executions.values()] == ["octavo_i8"]
    assert_agrees(module, simulate(net), (x,))


@pytest.mark.slow  # as others of test_inductor_sizes.py, which are not
@pytest.mark.parametrize(("batch", "side"), [(1, 32), (5, 17), (2, 64)])
def test_the_compiled_chain_takes_any_batch_and_size(batch, side) -> None:
    example = torch.randn(2, 3, 32, 32)
    net = prepared(Inverted().eval(), (example,), target="onednn", dynamic_axes=(0, 2, 3))
    network, x = compile(net, engine="inductor"), torch.randn(batch, 3, side, side)
    assert_agrees(network, simulate(net), (x,))


def test_activations_with_zero_points_and_few_bits() -> None:
    x = torch.randn(2, 3, 32, 32)
    for scheme in (Scheme(signed=False, symmetric=False), Scheme(bits=4, full_range=True)):
        rules = [Rule("*", role="weight"), Rule("*", scheme=scheme)]
        net = prepared(Inverted().eval(), (x,), rules, "onednn")
        module, _ = lowered(net)
        assert_agrees(module, simulate(net), (x,), decibels=45 if scheme.bits == 8 else 25)
