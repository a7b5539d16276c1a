"""The kernels of rows, `kernels/rows.cpp`: integers against float64, of every size, and rows without numbers."""

import math

import pytest
import torch
from torch import Tensor

from kernels import _every_isa, operators  # noqa: F401


def by_rows(x: Tensor, highest: int, *, signed: bool = True, axis: int = -1) -> tuple[Tensor, Tensor]:
    """(integers, float64; scales) of float32 x: nearest to x times the reciprocal of the scale, as ATen does."""
    most = x.abs().amax(axis, keepdim=True)
    scale = (most / highest).clamp(min=2.0**-63).masked_fill(most == 0, 1.0)
    return torch.round(x * (1 / scale)).clamp(-highest if signed else 0, highest).double(), scale.double()


def linear(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, highest: int, signed: bool) -> Tensor:
    q, scale = by_rows(x, highest, signed=signed)
    out = (q @ weight.double().t()) * scale * scales.double()
    return out if bias is None else out + bias.double()


def integers(*size: int) -> Tensor:
    return torch.randint(-127, 128, size, dtype=torch.int8)


def rows_of(x: Tensor, weight: Tensor, scales: Tensor, *, highest: int = 127, signed: bool = True) -> Tensor:
    out: Tensor = operators().int8_linear_rows(x, weight, scales, None, highest, signed)
    return out


def close(found: Tensor, wanted: Tensor, bias: Tensor | None = None) -> None:
    """To float32's last places, of the sum and of the bias that is added to it."""
    size = wanted.abs() + (0 if bias is None else 2 * bias.abs().double())
    assert float(((found.double() - wanted).abs() / size.clamp(min=1e-30)).max()) < 1e-6


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 24, 25, 49, 100])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 17), (64, 64), (65, 130), (130, 700), (9000, 100)])
def test_linear_of_every_size(rows: int, inputs: int, outputs: int) -> None:
    x = torch.randn(rows, inputs) * torch.logspace(-6, 6, rows)[:, None]
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scales = torch.rand(outputs) + 0.1
    found = rows_of(x, weight, scales)
    close(found, linear(x, weight, scales, None, 127, True))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("highest", "signed"), [(127, True), (7, True), (1, True), (255, False), (15, False)])
def test_every_number_of_bits_and_of_threads(highest: int, signed: bool, threads: int) -> None:
    x = torch.randn(2, 13, 40)
    x = x if signed else x.abs()
    weight, scales, bias = torch.randint(-128, 128, (600, 40), dtype=torch.int8), torch.rand(600), torch.randn(600)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = operators().int8_linear_rows(x, weight, scales, bias, highest, signed)
    finally:
        torch.set_num_threads(before)
    assert found.shape == (2, 13, 600)
    close(found, linear(x, weight, scales, bias, highest, signed), bias)


@pytest.mark.parametrize(("post", "function"), [("relu", torch.relu), ("gelu", torch.nn.functional.gelu)])
def test_activations(post: str, function) -> None:
    x, weight = torch.randn(30, 40), torch.randint(-127, 128, (50, 40), dtype=torch.int8)
    scales, bias = torch.logspace(-5, 1, 50), torch.randn(50)
    wanted = function(linear(x, weight, scales, bias, 127, True))
    found = operators().int8_linear_rows(x, weight, scales, bias, 127, True, post)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-6
    assert float((found - wanted).abs()[wanted.abs() < 6].max()) < 3e-6
    x[3] = math.nan
    assert torch.isnan(operators().int8_linear_rows(x, weight, scales, bias, 127, True, post)[3]).all()
    with pytest.raises(RuntimeError, match="it has no tanh"):
        operators().int8_linear_rows(x, weight, scales, bias, 127, True, "tanh")


@pytest.mark.parametrize("threads", [1, 4, 7])
def test_more_threads_than_rows_and_columns_are_worth(threads: int) -> None:
    x, weight = torch.randn(3, 20), integers(80, 20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = rows_of(x, weight, torch.ones(80))
    finally:
        torch.set_num_threads(before)
    close(found, linear(x, weight, torch.ones(80), None, 127, True))


def test_sums_as_deep_as_int32_allows() -> None:
    """127 · 127 · 133 000 is just below 2³¹; unsigned bytes 128 higher would pass it, and come back."""
    deep = 133_000
    x, weight = torch.ones(2, deep), torch.full((3, deep), 127, dtype=torch.int8)
    weight[1] = -127
    found = rows_of(x, weight, torch.ones(3))
    close(found, torch.tensor([[127.0 * deep, -127.0 * deep, 127.0 * deep]] * 2, dtype=torch.float64))


def test_rows_of_zeros_none_at_all_and_without_order_in_memory() -> None:
    weight, scales, bias = torch.randint(-127, 128, (20, 8), dtype=torch.int8), torch.rand(20), torch.randn(20)
    found = operators().int8_linear_rows(torch.zeros(3, 8), weight, scales, bias, 127, True)
    assert torch.equal(found, bias.expand(3, 20))
    assert operators().int8_linear_rows(torch.zeros(0, 8), weight, scales, bias, 127, True).shape == (0, 20)
    assert operators().int8_linear_rows(torch.randn(8), weight, scales, bias, 127, True).shape == (20,)
    x = torch.randn(8, 30).t()
    close(
        rows_of(x, weight, scales),
        linear(x, weight, scales, None, 127, True),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 7, 39])
def test_a_row_without_numbers_spoils_no_other(bad: float, at: int) -> None:
    x, weight = torch.randn(9, 40), torch.randint(-127, 128, (33, 40), dtype=torch.int8)
    wanted = rows_of(x, weight, torch.ones(33))
    x[4, at] = bad
    found = rows_of(x, weight, torch.ones(33))
    assert torch.isnan(found[4]).all()
    others = [row for row in range(9) if row != 4]
    assert torch.equal(found[others], wanted[others])


def test_two_weights_in_one_place_are_two() -> None:
    """Packed weights are remembered by their storage; another one at the same address is packed anew."""
    x, scales = torch.randn(4, 16), torch.ones(8)
    for _ in range(20):
        weight = torch.randint(-127, 128, (8, 16), dtype=torch.int8)
        close(
            rows_of(x, weight, scales),
            linear(x, weight, scales, None, 127, True),
        )
        positive = x.abs()  # the same weight, for rows without a sign
        wanted = linear(positive, weight, scales, None, 255, False)
        close(rows_of(positive, weight, scales, highest=255, signed=False), wanted)


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    (a, of_a), (b, of_b) = by_rows(q, 127), by_rows(k, 127)
    scores = (a @ b.transpose(-1, -2)) * of_a * of_b.transpose(-1, -2) * scale
    weights = (scores if bias is None else scores + bias.double()).softmax(-1)
    most = weights.amax(-1, keepdim=True)
    c, of_c = by_rows(v, 127, axis=-2)
    return (torch.round(weights / most * 255) @ c) * (most / 255) * of_c


@pytest.mark.parametrize("bias", [None, (1, 1, 1, 37), (2, 1, 1, 37), (1, 3, 50, 37), (2, 3, 50, 37)])
@pytest.mark.parametrize("sizes", [(16, 16), (15, 33), (3, 1)])
def test_attention(bias: tuple[int, ...] | None, sizes: tuple[int, int]) -> None:
    depth, width = sizes
    q, k, v = torch.randn(2, 50, 3, depth).transpose(1, 2), torch.randn(2, 3, 37, depth), torch.randn(2, 3, 37, width)
    q[:, :, 5] *= 1000
    k[:, :, 9] /= 1000
    v[..., 0] *= 1000
    added = None if bias is None else torch.randn(bias)
    found = operators().int8_attention_rows(q, k, v, added, 0.3, 127, 127, 255, 127)
    wanted = attended(q, k, v, added, 0.3)
    assert found.transpose(1, 2).is_contiguous()
    noise = (found.double() - wanted).square().sum((0, 1, 2)) / wanted.square().sum((0, 1, 2))
    assert float(noise.max()) < 1e-5  # a weight at a tie here and there: 50 dB in every column, the large one too


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_attention_to_what_is_no_number_is_none(bad: float) -> None:
    """As in float: of a query its row, of a key all rows of its head, of a value its column."""
    q, k, v = (torch.randn(1, 2, 30, 8) for _ in range(3))
    wanted = operators().int8_attention_rows(q, k, v, None, 0.3, 127, 127, 255, 127)
    for operand, spoiled in ((q, (0, 1, 7)), (k, (0, 1)), (v, (0, 1, slice(None), 3))):
        kept = operand.clone()
        operand[0, 1, 7, 3] = bad
        found = operators().int8_attention_rows(q, k, v, None, 0.3, 127, 127, 255, 127)
        operand.copy_(kept)
        assert torch.isnan(found[spoiled]).all()
        found[spoiled] = wanted[spoiled]
        assert torch.equal(found, wanted)


def test_attention_refuses_what_does_not_fit() -> None:
    q = torch.randn(1, 2, 5, 8)
    with pytest.raises(RuntimeError, match="shapes or types do not fit"):
        operators().int8_attention_rows(q, q[..., :4], q, None, 1.0, 127, 127, 255, 127)
    with pytest.raises(RuntimeError, match="bias does not fit"):
        operators().int8_attention_rows(q, q, q, torch.zeros(1, 1, 5, 4), 1.0, 127, 127, 255, 127)
    with pytest.raises(RuntimeError, match="shapes or types do not fit"):
        operators().int8_linear_rows(q, torch.zeros(3, 7, dtype=torch.int8), torch.ones(3), None, 127, True)
