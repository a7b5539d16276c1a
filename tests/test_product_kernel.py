"""Products of two activations, and attention: exact sums of any depth, whatever instructions the kernel is made of."""

import math

import pytest
import torch
from torch.nn import functional as F

from kernels import _every_isa, operators  # noqa: F401
from test_convolution_kernel import Stage, run


def integers(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1, 1), (6, 4, 64), (25, 33, 17), (7, 128, 80), (3, 5, 300)])
@pytest.mark.parametrize(("z_left", "z_right"), [(128, 128), (0, 128), (117, 3), (255, 255)])
def test_matmul_is_exact(rows, depth, columns, z_left, z_right) -> None:
    left, right = integers(2, 3, rows, depth), integers(2, 3, depth, columns)
    exact = (left.double() - z_left) @ (right.double() - z_right)
    assert torch.equal(operators().int8_matmul(left, z_left, right, z_right, 0.5).double(), exact * 0.5)


def test_matmul_reads_any_strides() -> None:
    left, right = integers(2, 10, 3, 8).transpose(1, 2), integers(2, 3, 9, 8).transpose(2, 3)
    exact = (left.double() - 128) @ (right.double() - 100)
    assert torch.equal(operators().int8_matmul(left, 128, right, 100, 1.0).double(), exact)


def attention(q, k, v, zeros, bias, score, step, value, out=None):
    """In float64, with both roundings."""
    scores = (q.double() - zeros[0]) @ (k.double() - zeros[1]).transpose(-1, -2) * score
    weights = torch.softmax(scores if bias is None else scores + bias, -1)
    sums = (weights / step).round().clamp(0, 255) @ (v.double() - zeros[2]) * (step * value)
    return sums if out is None else (sums / out).round().add(128).clamp(0, 255)


@pytest.mark.parametrize(("queries", "keys", "width", "values"), [(1, 1, 1, 1), (24, 16, 32, 32), (31, 50, 20, 13)])
@pytest.mark.parametrize("zeros", [(128, 128, 128), (120, 131, 77)])
@pytest.mark.parametrize("masked", [None, "keys", "scores"])
def test_attention_differs_by_ties_alone(queries, keys, width, values, zeros, masked) -> None:
    q, k, v = integers(2, 3, queries, width), integers(2, 3, keys, width), integers(2, 3, keys, values)
    shape = {"keys": (2, 1, 1, keys), "scores": (2, 1, queries, keys)}
    bias = None if masked is None else torch.where(torch.rand(shape[masked]) < 0.2, -1e38, torch.randn(shape[masked]))
    score, step, value, out = 0.02 / width, 1 / 255, 0.02, 0.03
    call = (q, zeros[0], k, zeros[1], v, zeros[2], bias, score, step, 255, value)
    found = operators().int8_attention(*call, 0.0, 0, 0, 0)
    wanted = attention(q, k, v, zeros, bias, score, step, value)
    assert (found - wanted).abs().max() <= 256 * step * value  # a weight half-way between two integers
    assert (found - wanted).abs().mean() <= 1e-4
    rounded = operators().int8_attention(*call, out, 128, 0, 255)
    assert (rounded.double() - attention(q, k, v, zeros, bias, score, step, value, out)).abs().max() <= 1


@pytest.mark.parametrize("masked", [torch.finfo(torch.float32).min, -math.inf])
@pytest.mark.parametrize("rows", [1, 2])  # one mask for all queries, or one for each
def test_attention_of_a_query_that_sees_nothing_is_the_mean(masked, rows) -> None:
    q, k, v = integers(1, 1, 2, 8), integers(1, 1, 5, 8), integers(1, 1, 5, 4)
    bias = torch.full((1, 1, rows, 5), masked)
    found = operators().int8_attention(q, 128, k, 128, v, 128, bias, 1e-3, 1 / 255, 255, 1.0, 0.0, 0, 0, 0)
    assert torch.allclose(found, (v.float() - 128).mean(2, keepdim=True).expand_as(found), atol=1e-3)


def test_kernels_refuse_shapes_that_do_not_fit() -> None:
    u = torch.zeros(2, 3, 4, 8, dtype=torch.uint8)
    for other in (u[:1], u[:, :1], u[..., :4]):
        with pytest.raises(RuntimeError, match="int8 matmul: shapes do not fit"):
            operators().int8_matmul(u, 128, other.transpose(2, 3), 128, 1.0)
        for q, k, v in ((u, other, u), (other, u, u), (u, u, other if other.shape[3] == 8 else u[:, :, :2])):
            with pytest.raises(RuntimeError, match="int8 attention: shapes do not fit"):
                operators().int8_attention(q, 0, k, 0, v, 0, None, 1.0, 1 / 255, 255, 1.0, 0.0, 0, 0, 0)
    for bias in (torch.zeros(3, 1, 1, 4), torch.zeros(1, 2, 1, 4), torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 1, 3)):
        with pytest.raises(RuntimeError, match="bias does not fit the scores"):
            operators().int8_attention(u, 0, u, 0, u, 0, bias, 1.0, 1 / 255, 255, 1.0, 0.0, 0, 0, 0)


@pytest.mark.parametrize("deep", [20_000, 33_024, 33_025, 100_001])
@pytest.mark.parametrize(("z_left", "z_right"), [(0, 0), (255, 255), (37, 201), (128, 0)])
def test_of_a_product(deep, z_left, z_right) -> None:
    """The sums of integers, rounded once to float32; where most products have one sign they are as large as can be."""
    ends = torch.randint(2, (2,)) * 200
    left = torch.randint(0, 56, (1, 1, 7, deep), dtype=torch.uint8) + ends[0].to(torch.uint8)
    right = torch.randint(0, 56, (1, 1, deep, 19), dtype=torch.uint8) + ends[1].to(torch.uint8)
    exact = (left[0, 0].long() - z_left) @ (right[0, 0].long() - z_right)
    found = operators().int8_matmul(left, z_left, right, z_right, 1.0)[0, 0]
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
    found = operators().int8_attention(
        q, zeros[0], k, zeros[1], v, zeros[2], None, 0.01, 1 / 255, 255, 255.0, 0.0, 0, 0, 0
    )
    assert (found[0, 0] - wanted).abs().max() <= keys * 255  # a weight at a tie goes the other way, by one step


@pytest.mark.parametrize("zero", [0, 37, 255])
def test_of_a_chain(zero) -> None:
    """Sums of 20,000 products that are small beside what the zero-point takes from them, unscaled, in float32."""
    stage = Stage(5000, 40, kernel=(2, 2), padding=(1, 0), zero=zero)
    stage.weight.abs_()  # of one sign: Σ u·w is far from 0
    stage.scales, stage.offsets = torch.ones(40), torch.zeros(40)
    x = (zero + torch.randint(-1, 2, (1, 5000, 3, 4))).clamp(0, 255).to(torch.uint8)
    sums = F.conv2d(F.pad(x.double() - zero, (0, 0, 1, 1)), stage.weight.double())
    assert torch.equal(run(x, [stage], to_float=True), sums.float())
