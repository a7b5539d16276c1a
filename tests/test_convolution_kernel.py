"""Octavo's kernel for chains of convolutions, bit for bit against float64, whatever instructions it is made of."""

import random

import pytest
import torch
from torch.nn import functional as F

from kernels import _every_isa, instructions, operators  # noqa: F401
from octavo.engines.lowering.packing import pack_dense, pack_depthwise


class Stage:
    """One convolution with random integers and factors, packed for the kernel and computed in float64."""

    def __init__(self, inputs, outputs, kernel=(1, 1), stride=(1, 1), padding=(0, 0), behind=None, depthwise=False,
                 zero=0, low=0, high=255, dilation=(1, 1), groups=1) -> None:  # fmt: skip
        self.dilation, self.groups = dilation, groups
        self.depthwise, self.outputs, self.kernel, self.stride = depthwise, outputs, kernel, stride
        self.padding, self.behind = padding, padding if behind is None else behind
        self.zero, self.low, self.high = zero, low, high
        self.weight = torch.randint(
            -127, 128, (outputs, 1 if depthwise else inputs // groups, *kernel), dtype=torch.int8
        )
        self.scales = (torch.rand(outputs) + 0.5) * 0.01 / self.weight[0].numel() ** 0.5
        self.offsets = torch.randn(outputs) * 20 + 100

    def geometry(self) -> list[int]:
        sizes = (*self.kernel, *self.stride, *self.dilation, *self.padding, *self.behind)
        return [int(self.depthwise), self.outputs, *sizes, self.zero, self.low, self.high, self.groups]

    def packed(self, to_float):
        starts = (-self.zero * self.weight.flatten(1).sum(1)).int()
        of_channel = starts, self.scales, self.offsets
        if self.depthwise:
            return pack_depthwise(self.weight, of_channel, instructions(), dilated=self.dilation != (1, 1))
        tap_by_tap = self.groups > 1 or self.dilation[1] > 1
        return pack_dense(
            self.weight, of_channel, instructions(), ordered=to_float, groups=self.groups, tap_by_tap=tap_by_tap
        )

    def real(self, x):
        """Sums are exact; scaled and offset in one step, to float32."""
        (top, left), (bottom, right) = self.padding, self.behind
        x = F.pad(x.double() - self.zero, (left, right, top, bottom))
        groups = self.outputs if self.depthwise else self.groups
        sums = F.conv2d(x, self.weight.double(), stride=self.stride, dilation=self.dilation, groups=groups)
        scales, offsets = (factor.double()[:, None, None] for factor in (self.scales, self.offsets))
        return (sums * scales + offsets).float()

    def rounded(self, real):
        return real.round().clamp(self.low, self.high)


def run(x, stages, skip=None, skip_scale=0.0, to_float=False):
    packed = [stage.packed(to_float and stage is stages[-1]) for stage in stages]
    geometry = [fact for stage in stages for fact in stage.geometry()]
    return operators().int8_convolutions(x, skip, skip_scale, *map(list, zip(*packed, strict=True)), geometry, to_float)


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


@pytest.mark.parametrize("channels", [1, 24, 64, 65, 200])
@pytest.mark.parametrize(
    ("kernel", "dilation"), [((3, 3), (1, 1)), ((5, 5), (1, 1)), ((3, 3), (2, 3)), ((1, 5), (1, 2))]
)
def test_depthwise_dilated_and_to_float(channels, kernel, dilation) -> None:
    padding = tuple(d * (k // 2) for d, k in zip(dilation, kernel, strict=True))
    shape = {"kernel": kernel, "padding": padding, "dilation": dilation}
    stage = Stage(channels, channels, **shape, stride=(1, 2), depthwise=True, zero=random.choice([0, 128, 7]))
    x = integers(2, channels, 8, 9)
    assert_exact(x, [stage])
    assert_exact(x, [stage], to_float=True)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(4, 6, 1), (6, 4, 2), (64, 130, 2), (9, 18, 9), (36, 48, 3)])
@pytest.mark.parametrize(
    ("kernel", "dilation"), [((1, 1), (1, 1)), ((3, 3), (1, 1)), ((3, 3), (2, 1)), ((2, 3), (1, 3))]
)
def test_dense_grouped_and_dilated(inputs, outputs, groups, kernel, dilation) -> None:
    shape = {"kernel": kernel, "stride": (2, 1), "padding": (1, 2), "dilation": dilation}
    stage = Stage(inputs, outputs, **shape, groups=groups, zero=random.choice([0, 128, 7]), low=3, high=250)
    x = integers(2, inputs, 9, 11)
    assert_exact(x, [stage])
    assert_exact(x, [stage], to_float=True)
    assert_exact(x, [stage], skip=integers(*stage.real(x).shape))


def test_a_dilated_chain_in_strips() -> None:
    stages = [
        Stage(8, 96),
        Stage(96, 96, (3, 3), (1, 1), (4, 4), dilation=(4, 4), depthwise=True, zero=9),
        Stage(96, 8),
    ]
    assert_exact(integers(2, 8, 60, 70), stages)


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
