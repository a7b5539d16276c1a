"""Sums of tens of thousands of products in oneDNN's kernels, against int64: zero-points leave no rounding behind.

What a zero-point takes from such a sum is far above 2²⁴, where float32 no longer holds every integer.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from octavo.engines.inductor import lowered
from octavo.engines.native import compiler, load_kernels
from octavo.machine import adds_int8_pairs_in_16_bits
from octavo.network.simulate import simulate
from test_chain import assert_agrees
from test_openvino import prepared

pytestmark = pytest.mark.skipif(compiler() is None, reason="the inductor engine needs a C++ compiler")


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    load_kernels()


@pytest.mark.skipif(adds_int8_pairs_in_16_bits(), reason="oneDNN is not exact on this CPU, and ours are used")
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
