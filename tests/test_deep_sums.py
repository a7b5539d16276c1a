"""Sums of tens of thousands of products in every integer kernel, against int64: zero-points leave no rounding behind.

What a zero-point takes from such a sum is far above 2²⁴, where float32 no longer holds every integer.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from octavo.engines.inductor import lowered
from octavo.engines.native import compiler, load_kernels
from octavo.machine import has_avx512_vnni
from octavo.network.simulate import simulate
from test_convolution_kernel import Stage, assert_agrees, run
from test_openvino import prepared

pytestmark = pytest.mark.skipif(compiler() is None, reason="the inductor engine needs a C++ compiler")


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    load_kernels()


@pytest.mark.parametrize("deep", [20_000, 33_024, 33_025, 100_001])
@pytest.mark.parametrize(("z_left", "z_right"), [(0, 0), (255, 255), (37, 201), (128, 0)])
def test_of_a_product(deep, z_left, z_right) -> None:
    """The sums of integers, rounded once to float32; where most products have one sign they are as large as can be."""
    ends = torch.randint(2, (2,)) * 200
    left = torch.randint(0, 56, (1, 1, 7, deep), dtype=torch.uint8) + ends[0].to(torch.uint8)
    right = torch.randint(0, 56, (1, 1, deep, 19), dtype=torch.uint8) + ends[1].to(torch.uint8)
    exact = (left[0, 0].long() - z_left) @ (right[0, 0].long() - z_right)
    found = torch.ops.octavo.int8_matmul(left, z_left, right, z_right, 1.0)[0, 0]
    assert torch.equal(found, exact.float())


@pytest.mark.parametrize("zeros", [(0, 0, 0), (255, 255, 255), (37, 201, 9)])
def test_of_an_attention(zeros) -> None:
    """Scores of 20,000 products, some units apart: they are small, and what the zero-points take from them is not."""
    deep, keys = 20_000, 6
    q = (zeros[0] + torch.randint(-1, 2, (1, 1, 1, deep))).clamp(0, 255).to(torch.uint8)
    q[..., 0] = zeros[0] ^ 1  # one away from the zero-point
    k = torch.randint(0, 256, (1, 1, 1, deep), dtype=torch.uint8).repeat(1, 1, keys, 1)
    k[0, 0, :, 0] = torch.randperm(256)[:keys].to(torch.uint8)
    v = torch.randint(0, 256, (1, 1, keys, 4), dtype=torch.uint8)
    scores = (q[0, 0].long() - zeros[0]) @ (k[0, 0].long() - zeros[1]).T
    weights = ((scores - scores.max()).double() * 0.01).softmax(-1)
    wanted = (weights * 255).round() @ (v[0, 0].double() - zeros[2])
    found = torch.ops.octavo.int8_attention(
        q, zeros[0], k, zeros[1], v, zeros[2], None, 0.01, 1 / 255, 255, 255.0, 0.0, 0, 0, 0
    )
    assert (found[0, 0] - wanted).abs().max() <= keys * 255  # a weight at a tie goes the other way, by one step


@pytest.mark.skipif(not has_avx512_vnni(), reason="the kernel needs a CPU with AVX-512 VNNI")
@pytest.mark.parametrize("zero", [0, 37, 255])
def test_of_a_chain(zero) -> None:
    """Sums of 20,000 products that are small beside what the zero-point takes from them, unscaled, in float32."""
    stage = Stage(5000, 40, kernel=(2, 2), padding=(1, 0), zero=zero)
    stage.weight.abs_()  # of one sign: Σ u·w is far from 0
    stage.scales, stage.offsets = torch.ones(40), torch.zeros(40)
    x = (zero + torch.randint(-1, 2, (1, 5000, 3, 4))).clamp(0, 255).to(torch.uint8)
    sums = F.conv2d(F.pad(x.double() - zero, (0, 0, 1, 1)), stage.weight.double())
    assert torch.equal(run(x, [stage], to_float=True), sums.float())


@pytest.mark.parametrize("zero", [0, 37, 255])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_of_onednn(rank, zero) -> None:
    """As above, of a linear and of convolutions.

    With AMX oneDNN takes the zero-point out of a convolution's sum in float32: the last of its 24 bits may be lost.
    """
    window, space = (2,) * rank, (4,) * rank
    inputs = 20_000 // 2**rank
    weight = torch.randint(-127, 128, (40, inputs, *window), dtype=torch.int8).abs()
    x = (zero + torch.randint(-1, 2, (3, inputs, *space))).clamp(0, 255).to(torch.uint8)
    convolve = (F.linear, F.conv1d, F.conv2d)[rank]
    sums = convolve(x.double() - zero, weight.double())
    call = (x, 1.0, zero, weight, torch.ones(40), None)
    if rank == 0:
        found = torch.ops.octavo.int8_linear(*call, 1.0, 0, False, "none", [], "")
    else:
        geometry = [1] * rank, [0] * rank, [1] * rank, 1
        found = torch.ops.octavo.int8_convolution(*call, *geometry, 1.0, 0, False, "none", [])
    lost = rank > 0 and 2.0**-23 * (zero + 1) * weight.double().flatten(1).sum(1).reshape(-1, *([1] * rank))
    assert bool(((found - sums).abs() <= lost).all())


def test_weights_whose_sums_might_leave_int32_run_in_float() -> None:
    """70,000 products of 255 and 127 are more than 2³¹."""
    net = nn.Linear(70_000, 2)
    nn.init.constant_(net.weight, 1.0)
    x = torch.randn(2, 70_000)
    params = prepared(nn.Sequential(net).eval(), (x,), target="onednn")
    module, executions = lowered(params)
    assert not executions["0"].on_integers
    assert_agrees(module, simulate(params), (x,))
