"""Our linear of bytes, whatever instructions it is made of: exact sums, rounding, every activation against float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from kernels import _every_isa, operators  # noqa: F401

# {oneDNN's name: (arguments, algorithm, in float64)}
ACTIVATIONS = {
    "none": ((), "", lambda x: x),
    "relu": ((), "", F.relu),
    "hardtanh": ((-0.5, 2.0), "", lambda x: F.hardtanh(x, -0.5, 2.0)),
    "swish": ((), "", F.silu),
    "hardswish": ((), "", F.hardswish),
    "tanh": ((), "", torch.tanh),
    "gelu": ((), "none", F.gelu),
    "gelu by tanh": ((), "tanh", lambda x: F.gelu(x, approximate="tanh")),
}


def operands(rows: int, inputs: int, outputs: int):
    x = torch.randint(0, 256, (*((2,) if rows % 2 == 0 else ()), max(rows // 2, 1), inputs), dtype=torch.uint8)
    weight = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8)
    return x, weight, (torch.rand(outputs) + 0.1) / inputs**0.5 / 100, torch.randn(outputs)


def wanted(x, x_scale, x_zero, weight, scales, bias, function=lambda x: x):
    sums = (x.double() - x_zero) @ weight.double().t()
    return function(sums * scales.double() * x_scale + (0 if bias is None else bias.double()))


def linear(x, x_scale, x_zero, weight, scales, bias, *, post="none", grid=None):
    arguments, algorithm, _ = ACTIVATIONS[post]
    step, zero = grid or (1.0, 0)
    name = post.split()[0]
    return operators().int8_linear_of_bytes(
        x, x_scale, x_zero, weight, scales, bias, step, zero, grid is not None, name, list(arguments), algorithm
    )


@pytest.mark.parametrize("rows", [1, 2, 7, 24, 25, 50, 101])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 17), (64, 64), (65, 130), (130, 700), (9000, 100)])
def test_of_every_size(rows, inputs, outputs) -> None:
    x, weight, _, _ = operands(rows, inputs, outputs)
    zero = int(torch.randint(0, 256, ()))
    exact = (x.long() - zero) @ weight.long().t()
    found = linear(x, 1.0, zero, weight, torch.ones(outputs), None)
    assert torch.equal(found, exact.float())


@pytest.mark.parametrize("post", ACTIVATIONS)
def test_activations(post) -> None:
    x, weight, scales, bias = operands(60, 40, 50)
    call = x, 0.7, 100, weight, scales, bias * 3
    exact = wanted(*call, ACTIVATIONS[post][2])
    assert (linear(*call, post=post) - exact).abs().max() < 1e-5 * max(1.0, float(exact.abs().max()))
    step, zero = 0.03, 60
    levels = (exact / step).round().add(zero).clamp(0, 255)
    off = (linear(*call, post=post, grid=(step, zero)).double() - levels).abs()
    near_a_tie = ((exact / step) % 1 - 0.5).abs() < 1e-3
    assert off.max() <= 1
    assert not bool(off[~near_a_tie].any())


@pytest.mark.parametrize("post", ACTIVATIONS)
def test_far_from_zero_activations_are_their_limits(post) -> None:
    far = torch.tensor([1e30, -1e30, 200.0, -200.0, 0.0])
    x, weight = torch.zeros(1, 4, dtype=torch.uint8), torch.zeros(5, 4, dtype=torch.int8)
    found = linear(x, 1.0, 0, weight, torch.ones(5), far, post=post)
    limits = ACTIVATIONS[post][2](far.double())[None]
    assert torch.allclose(found.double(), limits, rtol=1e-5, atol=1e-5)


def test_no_rows_one_row_and_any_order_in_memory() -> None:
    x, weight, scales, bias = operands(12, 20, 9)
    assert linear(x[:0], 1.0, 3, weight, scales, bias).shape == (0, 6, 9)
    assert linear(x[0, 0], 1.0, 3, weight, scales, bias).shape == (9,)
    turned = x.transpose(0, 1)
    assert torch.equal(
        linear(turned, 1.0, 3, weight, scales, bias), linear(turned.contiguous(), 1.0, 3, weight, scales, bias)
    )


def test_a_bias_that_is_no_number_stays_none() -> None:
    x, weight, scales, bias = operands(12, 20, 9)
    bias[4] = math.nan
    for post in ACTIVATIONS:
        assert torch.isnan(linear(x, 1.0, 3, weight, scales, bias, post=post)[..., 4]).all(), post


def test_what_does_not_fit_is_refused() -> None:
    x, weight, scales, bias = operands(12, 20, 9)
    for bad in ((x[..., :-1], weight, scales), (x.float(), weight, scales), (x, weight, scales[:-1])):
        with pytest.raises(RuntimeError, match="int8 linear: shapes or types do not fit"):
            linear(bad[0], 1.0, 3, bad[1], bad[2], bias)
    with pytest.raises(RuntimeError, match="it has no sine"):
        operators().int8_linear_of_bytes(x, 1.0, 3, weight, scales, bias, 1.0, 0, False, "sine", [], "")
