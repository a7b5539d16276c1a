"""Octavo's kernel for chains of convolutions: bit for bit against float64, and what the lowering makes of networks."""

import random
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from octavo.engines import compile
from octavo.engines.inductor import lowered
from octavo.engines.lowering.packing import pack_dense, pack_depthwise
from octavo.engines.native import compiler, load_kernels
from octavo.machine import has_avx512_vnni
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.numerics import Scheme
from test_openvino import prepared

pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="the inductor engine needs a C++ compiler"),
    pytest.mark.skipif(not has_avx512_vnni(), reason="the kernel needs a CPU with AVX-512 VNNI"),
]


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    load_kernels()


class Stage:
    """One convolution with random integers and factors, packed for the kernel and computed in float64."""

    def __init__(self, inputs, outputs, kernel=(1, 1), stride=(1, 1), padding=(0, 0), behind=None, depthwise=False,
                 zero=0, low=0, high=255) -> None:  # fmt: skip
        self.depthwise, self.outputs, self.kernel, self.stride = depthwise, outputs, kernel, stride
        self.padding, self.behind = padding, padding if behind is None else behind
        self.zero, self.low, self.high = zero, low, high
        self.weight = torch.randint(-127, 128, (outputs, 1 if depthwise else inputs, *kernel), dtype=torch.int8)
        self.scales = (torch.rand(outputs) + 0.5) * 0.01 / self.weight[0].numel() ** 0.5
        self.offsets = torch.randn(outputs) * 20 + 100

    def geometry(self) -> list[int]:
        sizes = (*self.kernel, *self.stride, *self.padding, *self.behind)
        return [int(self.depthwise), self.outputs, *sizes, self.zero, self.low, self.high]

    def packed(self, to_float):
        starts = (-self.zero * self.weight.flatten(1).sum(1)).int()
        of_channel = starts, self.scales, self.offsets
        if self.depthwise:
            return pack_depthwise(self.weight, of_channel)
        return pack_dense(self.weight, of_channel, ordered=to_float)

    def real(self, x):
        """Sums are exact; scaled and offset in one step, to float32."""
        (top, left), (bottom, right) = self.padding, self.behind
        x = F.pad(x.double() - self.zero, (left, right, top, bottom))
        sums = F.conv2d(x, self.weight.double(), stride=self.stride, groups=self.outputs if self.depthwise else 1)
        scales, offsets = (factor.double()[:, None, None] for factor in (self.scales, self.offsets))
        return (sums * scales + offsets).float()

    def rounded(self, real):
        return real.round().clamp(self.low, self.high)


def run(x, stages, skip=None, skip_scale=0.0, to_float=False):
    packed = [stage.packed(to_float and stage is stages[-1]) for stage in stages]
    geometry = [fact for stage in stages for fact in stage.geometry()]
    return torch.ops.octavo.int8_convolutions(
        x, skip, skip_scale, *map(list, zip(*packed, strict=True)), geometry, to_float
    )


def assert_exact(x, stages, skip=None, to_float=False) -> None:
    skip_scale = 0.25  # exact in float32
    wanted = x
    for stage in stages:
        real = stage.real(wanted)
        if skip is not None and stage is stages[-1]:
            real = (real.double() + skip.double() * skip_scale).float()
        wanted = real if to_float and stage is stages[-1] else stage.rounded(real)
    found = run(x, stages, skip, skip_scale, to_float)
    assert found.dtype == (torch.float32 if to_float else torch.uint8)
    assert found.shape == wanted.shape
    assert torch.equal(found.float(), wanted.float())


def assert_agrees(network, simulation, example, decibels=45) -> None:
    """Values at a tie may go either way, and so move what comes after them by a step."""
    found, wanted = (torch.utils._pytree.tree_leaves(each(*example)) for each in (network, simulation))
    for one, other in zip(found, wanted, strict=True):
        noise = (one - other).double().square().sum() / other.double().square().sum()
        assert noise <= 10 ** (-decibels / 10)


def integers(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3, 16, 40, 64, 100])
@pytest.mark.parametrize("outputs", [1, 24, 48, 63, 64, 120, 130])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (2, 3, 1)])
def test_dense(channels, outputs, kernel, stride, padding) -> None:
    shape = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "padding": (padding,) * 2}
    stage = Stage(channels, outputs, **shape, zero=random.choice([0, 128, 7]), low=3, high=250)
    x = integers(2, channels, 9, 11)
    assert_exact(x, [stage])
    assert_exact(x, [stage], to_float=True)
    assert_exact(x, [stage], skip=integers(*stage.real(x).shape))
    assert_exact(x, [stage], skip=integers(*stage.real(x).shape), to_float=True)


@pytest.mark.parametrize("channels", [1, 24, 63, 64, 65, 144, 200])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 5), (3, 5), (7, 7), (1, 4)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 3), (1, 2)])
def test_depthwise(channels, kernel, stride) -> None:
    shape = {"kernel": kernel, "stride": stride, "padding": (kernel[0] // 2, kernel[1] // 2)}
    stage = Stage(channels, channels, **shape, depthwise=True, zero=random.choice([0, 128, 7]), low=128, high=254)
    assert_exact(integers(2, channels, 8, 9), [stage])


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_inverted_residual_in_strips(kernel, stride, batch) -> None:
    """So large that what lies between its convolutions does not fit in the cache at once, padded on one side more."""
    x = integers(batch, 16, 45, 100)
    padding, behind = (kernel // 2 - stride + 1,) * 2, (kernel // 2,) * 2
    stages = [
        Stage(16, 192, zero=128),
        Stage(192, 192, (kernel,) * 2, (stride,) * 2, padding, behind, depthwise=True, zero=7),
        Stage(192, 24, zero=3),
    ]
    skip = integers(*stages[2].real(stages[1].real(stages[0].real(x))).shape)
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert_exact(x, stages, skip)
        finally:
            torch.set_num_threads(before)


def test_a_stem_before_a_depthwise_convolution() -> None:
    stages = [
        Stage(3, 32, (3, 3), (2, 2), (0, 0), (1, 1), zero=128),
        Stage(32, 32, (3, 3), (1, 1), (1, 1), depthwise=True),
        Stage(32, 16),
    ]
    assert_exact(integers(2, 3, 33, 32), stages)


@pytest.mark.parametrize("size", [(0, 5, 5), (1, 1, 1), (4, 1, 7)])
def test_few_pixels(size) -> None:
    batch, height, width = size
    stages = [Stage(8, 8), Stage(8, 8, (3, 3), (1, 1), (1, 1), depthwise=True), Stage(8, 8)]
    assert_exact(integers(batch, 8, height, width), stages)


def test_padding_beyond_the_image() -> None:
    stages = [
        Stage(4, 8, (1, 1), (1, 1), (2, 2), zero=9),
        Stage(8, 8, (3, 3), (1, 1), (4, 4), depthwise=True, zero=5),
        Stage(8, 4),
    ]
    assert_exact(integers(1, 4, 2, 2), stages)


def test_dead_channels_and_extremes() -> None:
    stage = Stage(64, 64)
    stage.weight[::2] = 0
    stage.offsets[::2] = torch.linspace(-1e6, 1e6, 32)  # rounds to 0 and to 255
    assert_exact(integers(1, 64, 3, 3), [stage])
    stage.weight[:] = 127
    stage.scales[:] = 1.0
    assert_exact(torch.full((1, 64, 3, 3), 255, dtype=torch.uint8), [stage])


def test_images_may_lie_anyhow_in_memory() -> None:
    stage = Stage(8, 8, (3, 3), (1, 1), (1, 1))
    x = integers(2, 9, 7, 16)[:, 1:].transpose(2, 3)[:, :, ::2]
    assert torch.equal(run(x, [stage]), run(x.contiguous(), [stage]))


def test_a_skip_of_another_shape_is_refused() -> None:
    with pytest.raises(RuntimeError, match="the skip is not like the result"):
        run(integers(1, 4, 5, 5), [Stage(4, 8)], integers(1, 8, 4, 5), 1.0)


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
    assert calls(module) == [1, 1]  # a depthwise result in float is oneDNN's to write
    assert_agrees(module, simulate(net), (x,))


def test_dilated_grouped_and_multiplied_convolutions_are_onednns() -> None:
    x = torch.randn(2, 8, 9, 9)
    for layer in (nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 16, 3, groups=8)):
        net = prepared(nn.Sequential(layer, nn.ReLU(), nn.Conv2d(layer.out_channels, 4, 1)).eval(), (x,))
        module, executions = lowered(net)
        assert [row.implementation for row in executions.values()] == ["onednn_i8", "octavo_i8"]
        assert_agrees(module, simulate(net), (x,))


def test_results_that_might_leave_int32_are_onednns() -> None:
    x = torch.randn(2, 8, 9, 9)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    net = prepared(model, (x,), target="onednn")
    tiny = replace(net.values["2.input"], scale=torch.tensor(1e-12))  # results are 10¹² steps and more
    _, executions = lowered(replace(net, values={**net.values, "2.input": tiny}))
    assert [row.implementation for row in executions.values()] == ["onednn_i8", "octavo_i8"]


def test_an_even_kernel_padded_to_the_same_size_is_on_integers() -> None:
    x = torch.randn(1, 2, 5, 5)
    net = prepared(nn.Sequential(nn.Conv2d(2, 3, 2, padding="same"), nn.ReLU()).eval(), (x,), target="onednn")
    module, executions = lowered(net)
    assert [row.implementation for row in executions.values()] == ["octavo_i8"]
    assert_agrees(module, simulate(net), (x,))


def test_a_cpu_without_the_instructions_has_onednn(monkeypatch) -> None:
    monkeypatch.setattr(import_module("octavo.engines.lowering.chain"), "has_avx512_vnni", lambda: False)
    x = torch.randn(2, 3, 32, 32)
    net = prepared(Inverted().eval(), (x,), target="openvino")
    module, executions = lowered(net)
    assert calls(module) == []
    assert "octavo_i8" not in {row.implementation for row in executions.values()}
    assert_agrees(module, simulate(net), (x,))


@pytest.mark.parametrize(
    ("batch", "side"),
    [pytest.param(1, 32, marks=pytest.mark.slow), (5, 17), pytest.param(2, 64, marks=pytest.mark.slow)],
)
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
