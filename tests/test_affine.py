"""Real values to integers and back, against exact fractions and plain Python integers."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from octavo.errors import QuantizationError
from octavo.numerics import (
    AFFINE_UINT8,
    INT8,
    INT8_PER_CHANNEL,
    UINT8,
    QParams,
    Scheme,
    dequantize,
    fake_quantize,
    params_from_range,
    params_from_tensor,
    quantize,
)
from octavo.numerics.scheme import SMALLEST_SCALE

FLOAT32_MAX = torch.finfo(torch.float32).max
KINDS = [
    Scheme(bits=bits, signed=signed, symmetric=symmetric)
    for bits in range(2, 9)
    for signed in (True, False)
    for symmetric in (True, False)
] + [Scheme(bits=bits, full_range=True) for bits in range(2, 9)]


def named(scheme: Scheme) -> str:
    words = ["signed" if scheme.signed else "unsigned", "symmetric" if scheme.symmetric else "affine"]
    return "-".join([f"{scheme.bits}bit", *words, *(["full"] if scheme.full_range else [])])


def low_for(scheme: Scheme, low: float) -> float:
    """`low`, or zero where the scheme has no negative values."""
    return 0.0 if scheme.symmetric and not scheme.signed else low


def exact_integer(x: float, params: QParams) -> int:
    """The definition on the float32 quotient, as ONNX has it; Python's round of a Fraction ties to even."""
    quotient = np.float32(x) / np.float32(params.scale.item())
    q = round(Fraction(float(quotient))) + int(params.zero_point.item())
    return min(max(q, params.scheme.qmin), params.scheme.qmax)


@pytest.mark.parametrize("scheme", KINDS, ids=named)
def test_every_integer_survives_the_round_trip(scheme: Scheme) -> None:
    params = params_from_range(low_for(scheme, -0.7), 1.9, scheme)
    integers = torch.arange(scheme.qmin, scheme.qmax + 1).to(scheme.dtype)
    real = dequantize(integers, params)
    assert torch.equal(quantize(real, params), integers)
    assert torch.equal(fake_quantize(real, params), real)
    scale, zero_point = Fraction(params.scale.item()), int(params.zero_point.item())
    assert real.tolist() == [float(np.float32(float(scale * (q - zero_point)))) for q in integers.tolist()]


@pytest.mark.parametrize("scheme", KINDS, ids=named)
def test_quantize_is_exact_arithmetic(scheme: Scheme) -> None:
    params = params_from_range(low_for(scheme, -0.7), 1.9, scheme)
    x = torch.linspace(-3, 3, 2001)
    q = quantize(x, params).tolist()
    assert q == [exact_integer(v, params) for v in x.tolist()]
    scale, zero_point = Fraction(params.scale.item()), int(params.zero_point.item())
    for value, integer in zip(x.tolist(), q, strict=True):
        steps = min(max(Fraction(value) / scale + zero_point, Fraction(scheme.qmin)), Fraction(scheme.qmax))
        assert abs(steps - integer) <= Fraction(1, 2) + Fraction(1, 2**16)


@pytest.mark.parametrize("scheme", KINDS, ids=named)
def test_ties_go_to_the_even_multiple_of_scale(scheme: Scheme) -> None:
    zero_point = 0 if scheme.symmetric else scheme.qmin + 1  # odd for unsigned: rounding comes before it is added
    params = QParams(scale=torch.tensor(0.25), zero_point=torch.tensor(zero_point, dtype=torch.int32), scheme=scheme)
    x = (torch.arange(scheme.qmin, scheme.qmax) - zero_point + 0.5) * 0.25
    expected = [exact_integer(v, params) for v in x.tolist()]
    assert quantize(x, params).tolist() == expected
    # The reciprocal of 0.25 is exact, so here ATen agrees at the ties too.
    assert torch.equal(fake_quantize(x, params), dequantize(quantize(x, params), params))


@pytest.mark.parametrize("scheme", KINDS, ids=named)
def test_parameters_follow_the_equations(scheme: Scheme) -> None:
    low, high = low_for(scheme, -0.7), 1.9
    params = params_from_range(low, high, scheme)
    if scheme.symmetric:
        assert params.scale.item() == np.float32(high / scheme.qmax)
        assert params.zero_point.item() == 0
    else:
        scale = (high - low) / (2**scheme.bits - 1)
        assert params.scale.item() == np.float32(scale)
        assert params.zero_point.item() == round(scheme.qmin - low / scale)
    assert (params.scale.dtype, params.zero_point.dtype) == (torch.float32, torch.int32)


finite = st.floats(-1e6, 1e6, width=32)


@given(bounds=st.tuples(finite, finite), share=st.floats(0, 1), kind=st.sampled_from(KINDS))
def test_inside_the_range_a_value_moves_by_at_most_half_a_scale(
    bounds: tuple[float, float], share: float, kind: Scheme
) -> None:
    low, high = min(*bounds, 0.0), max(*bounds, 0.0)
    low = low_for(kind, low)
    params = params_from_range(low, high, kind)
    x = torch.tensor(low + share * (high - low), dtype=torch.float32).clamp(low, high)
    moved = abs(dequantize(quantize(x, params), params).double() - x.double())
    # Besides half a scale: float32's rounding of the scale (2^-24 of up to 255 steps) and of the result.
    assert moved <= params.scale.double() * (0.5 + 256 * 2.0**-23)


@given(bounds=st.tuples(finite, finite), kind=st.sampled_from(KINDS))
def test_zero_is_exact(bounds: tuple[float, float], kind: Scheme) -> None:
    low, high = min(bounds), max(bounds)
    params = params_from_range(max(low, low_for(kind, low)), max(high, 0.0), kind)
    zero = torch.tensor(0.0)
    assert quantize(zero, params).item() == params.zero_point.item()
    assert dequantize(quantize(zero, params), params).item() == 0.0
    assert fake_quantize(zero, params).item() == 0.0


@given(values=st.lists(finite, min_size=1, max_size=50), kind=st.sampled_from(KINDS))
def test_quantizing_twice_is_quantizing_once(values: list[float], kind: Scheme) -> None:
    x = torch.tensor(values, dtype=torch.float32).clamp(min=low_for(kind, -math.inf))
    params = params_from_tensor(x, kind)
    once = quantize(x, params)
    assert torch.equal(quantize(dequantize(once, params), params), once)


def test_aten_differs_by_at_most_one_step_and_only_next_to_a_tie() -> None:
    generator = torch.Generator().manual_seed(0)
    differing = 0
    for scale in (torch.rand(200, generator=generator) + 1e-3).tolist():
        params = QParams(scale=torch.tensor(scale), zero_point=torch.tensor(0, dtype=torch.int32), scheme=INT8)
        near_ties = ((torch.arange(-126, 126) + 0.5) * scale).repeat(3)
        near_ties = near_ties * (1 + (torch.rand(near_ties.shape, generator=generator) - 0.5) * 1e-6)
        x = torch.cat([near_ties, torch.randn(500, generator=generator) * 50 * scale])
        steps = (fake_quantize(x, params) - dequantize(quantize(x, params), params)).abs() / scale
        assert steps.max() < 1 + 1e-4
        apart = steps > 0.5
        from_tie = ((x.double() / params.scale.double()).abs() % 1 - 0.5).abs()
        assert (from_tie[apart] < 5e-5).all()
        differing += int(apart.sum())
    assert differing > 0  # the bound was put to the test


# --- degenerate ranges


@pytest.mark.parametrize("scheme", KINDS, ids=named)
def test_all_zero_range_has_scale_one(scheme: Scheme) -> None:
    params = params_from_range(0.0, 0.0, scheme)
    assert params.scale.item() == 1.0
    assert dequantize(quantize(torch.zeros(3), params), params).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("scheme", KINDS, ids=named)
@pytest.mark.parametrize("high", [1e-45, 1e-38, 1e-30])
def test_denormal_range_has_a_usable_scale(scheme: Scheme, high: float) -> None:
    scale = params_from_range(0.0, high, scheme).scale
    assert scale.item() == SMALLEST_SCALE
    assert (scale * scale).item() == torch.finfo(torch.float32).tiny
    assert (1 / scale).item() == 2.0**63


@pytest.mark.parametrize("scheme", KINDS, ids=named)
def test_range_of_all_of_float32_does_not_overflow(scheme: Scheme) -> None:
    params = params_from_range(low_for(scheme, -FLOAT32_MAX), FLOAT32_MAX, scheme)
    integers = torch.arange(scheme.qmin, scheme.qmax + 1).to(scheme.dtype)
    real = dequantize(integers, params)
    assert torch.isfinite(real).all()
    assert torch.equal(quantize(real, params), integers)
    assert real.max().double() >= FLOAT32_MAX - 1.01 * params.scale.double()  # zero_point may cost the end one step


def test_range_is_widened_to_hold_zero() -> None:
    above = params_from_range(2.0, 3.0, AFFINE_UINT8)
    assert (above.scale.item(), above.zero_point.item()) == (np.float32(3 / 255), 0)
    below = params_from_range(-3.0, -2.0, AFFINE_UINT8)
    assert (below.scale.item(), below.zero_point.item()) == (np.float32(3 / 255), 255)


@pytest.mark.parametrize(
    ("low", "high", "scheme", "seen"),
    [
        (math.nan, 1.0, INT8, "a bound is NaN or infinite"),
        (-1.0, math.inf, AFFINE_UINT8, "a bound is NaN or infinite"),
        (1.0, -1.0, INT8, "low is above high"),
        (-0.5, 1.0, UINT8, "the range begins at -0.5, and these integers have no negative values"),
        (-1.0, 1.0, INT8_PER_CHANNEL, r"the bounds are \[\], while the scheme asks for \[channels\]"),
        (torch.zeros(2), torch.ones(2), INT8, r"the bounds are \[2\], while the scheme asks for one value, \[\]"),
        (torch.zeros(2), torch.ones(3), INT8_PER_CHANNEL, r"low is \[2\] and high is \[3\]"),
    ],
)
def test_impossible_ranges_are_explained(low: float | Tensor, high: float | Tensor, scheme: Scheme, seen: str) -> None:
    with pytest.raises(QuantizationError, match=seen):
        params_from_range(low, high, scheme)


@pytest.mark.parametrize(
    ("scale", "zero_point", "scheme", "seen"),
    [
        (torch.tensor(1.0), torch.tensor(0), INT8, "not float32 and int32"),
        (torch.ones(2), torch.zeros(3).int(), INT8_PER_CHANNEL, r"scale is \[2\] and zero_point \[3\]"),
        (torch.ones(2), torch.zeros(2).int(), INT8, r"scale is \[2\], while the scheme asks for one value"),
        (torch.tensor(0.0), torch.tensor(0).int(), INT8, "a scale is zero, negative, infinite or NaN"),
        (torch.tensor(math.nan), torch.tensor(0).int(), INT8, "a scale is zero, negative, infinite or NaN"),
        (torch.tensor(1.0), torch.tensor(1).int(), INT8, r"a zero_point lies outside \[0, 0\]"),
        (torch.tensor(1.0), torch.tensor(256).int(), AFFINE_UINT8, r"a zero_point lies outside \[0, 255\]"),
    ],
)
def test_parameters_that_break_an_invariant_are_refused(
    scale: Tensor, zero_point: Tensor, scheme: Scheme, seen: str
) -> None:
    with pytest.raises(QuantizationError, match=seen):
        QParams(scale=scale, zero_point=zero_point, scheme=scheme)


# --- special values


def test_infinity_saturates() -> None:
    params = params_from_range(-1.0, 2.0, AFFINE_UINT8)
    assert quantize(torch.tensor([-math.inf, -1e38, 1e38, math.inf]), params).tolist() == [0, 0, 255, 255]


def test_nan_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"quantize a tensor \[3\], but 2 of its 3 values are NaN"):
        quantize(torch.tensor([math.nan, 1.0, math.nan]), params_from_range(-1.0, 1.0, INT8))


def test_empty_tensors() -> None:
    params = params_from_range(-1.0, 1.0, INT8)
    assert quantize(torch.zeros(0, 3), params).shape == (0, 3)
    assert dequantize(torch.zeros(0, 3, dtype=torch.int8), params).shape == (0, 3)
    with pytest.raises(QuantizationError, match=r"take the range of a tensor \[0, 3\], but it has no entries"):
        params_from_tensor(torch.zeros(0, 3), INT8)


def test_integers_of_another_kind_are_refused() -> None:
    with pytest.raises(QuantizationError, match=r"dequantize a tensor of torch\.uint8, but its parameters describe"):
        dequantize(torch.zeros(3, dtype=torch.uint8), params_from_range(-1.0, 1.0, INT8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype: torch.dtype) -> None:
    x = torch.linspace(-1, 1, 33).to(dtype)
    params = params_from_tensor(x, INT8)
    assert torch.equal(quantize(x, params), quantize(x.float(), params))
    assert fake_quantize(x, params).dtype == dtype


# --- granularity: each group must come out as if it were a tensor of its own


def groups_of(x: Tensor, scheme: Scheme) -> list[Tensor]:
    """The parts of x that share a scale, in the order of scale.flatten(), by plain indexing."""
    assert scheme.axis is not None
    axis = scheme.axis % x.ndim
    if scheme.block is None:
        return [x.select(axis, i) for i in range(x.shape[axis])]
    parts = []
    for index in np.ndindex(*scheme.scale_shape(x.shape)):
        where: list[int | slice] = list(index)
        where[axis] = slice(index[axis] * scheme.block, (index[axis] + 1) * scheme.block)
        parts.append(x[tuple(where)])
    return parts


GRANULAR = [
    Scheme(bits=bits, symmetric=symmetric, axis=axis, block=block)
    for bits in (3, 8)
    for symmetric in (True, False)
    for axis, block in [(0, None), (1, None), (-1, None), (0, 2), (1, 3), (-1, 4), (-2, 6)]
]


@pytest.mark.parametrize("scheme", GRANULAR, ids=str)
def test_each_group_is_a_tensor_of_its_own(scheme: Scheme) -> None:
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 8)
    alone = Scheme(bits=scheme.bits, symmetric=scheme.symmetric)
    params = params_from_tensor(x, scheme)
    assert list(params.scale.shape) == scheme.scale_shape(x.shape)
    q = quantize(x, params)
    real, fake = dequantize(q, params), fake_quantize(x, params)
    assert torch.allclose(real, fake, rtol=0, atol=0)
    parts = zip(groups_of(x, scheme), groups_of(q, scheme), groups_of(real, scheme), strict=True)
    for index, (part, part_q, part_real) in enumerate(parts):
        own = params_from_tensor(part, alone)
        assert params.scale.flatten()[index] == own.scale
        assert params.zero_point.flatten()[index] == own.zero_point
        assert torch.equal(part_q, quantize(part, own))
        assert torch.equal(part_real, dequantize(part_q, own))


def test_dead_channel_among_live_ones() -> None:
    weight = torch.stack([torch.zeros(9), torch.linspace(-1, 1, 9), torch.full((9,), 1e-42)])
    params = params_from_tensor(weight, INT8_PER_CHANNEL)
    assert params.scale.tolist() == [1.0, float(np.float32(1 / 127)), SMALLEST_SCALE]
    assert torch.equal(fake_quantize(weight, params)[0], torch.zeros(9))


def test_constant_channel_is_exact() -> None:
    weight = torch.tensor([[0.5, 0.5], [-3.0, -3.0]])
    params = params_from_tensor(weight, INT8_PER_CHANNEL)
    assert quantize(weight, params).tolist() == [[127, 127], [-127, -127]]


def test_one_element() -> None:
    params = params_from_tensor(torch.tensor(-2.54), INT8)
    assert params.scale.item() == pytest.approx(0.02, rel=1e-6)
    assert quantize(torch.tensor(-2.54), params).item() == -127


def test_nan_and_infinite_weights_are_refused() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(QuantizationError, match="a bound is NaN or infinite"):
            params_from_tensor(torch.tensor([[1.0, bad], [1.0, 2.0]]), INT8_PER_CHANNEL)


def test_scale_along_the_wrong_axis_is_explained() -> None:
    params = QParams(scale=torch.ones(128), zero_point=torch.zeros(128).int(), scheme=INT8_PER_CHANNEL)
    for function in (quantize, fake_quantize):
        with pytest.raises(QuantizationError) as error:
            function(torch.zeros(64, 128, 3, 3), params)
        assert str(error.value) == (
            "asked to quantize a tensor [64, 128, 3, 3] along axis 0, which needs a scale of shape [64], "
            "but scale has shape [128], the size of axis 1; make the parameters from this tensor, or correct the "
            "scheme's axis; Conv2d and Linear weights are quantized along axis 0."
        )


# --- the straight-through estimator


@pytest.mark.parametrize("scheme", KINDS, ids=named)
def test_gradient_is_one_inside_and_zero_outside(scheme: Scheme) -> None:
    params = params_from_range(low_for(scheme, -1.0), 1.0, scheme)
    ends = dequantize(torch.tensor([scheme.qmin, scheme.qmax]).to(scheme.dtype), params)
    step = params.scale.item()
    low, high = ends[0].item() - step / 2, ends[1].item() + step / 2
    x = torch.tensor([low - step, low + step / 8, 0.0, high - step / 8, high + step], requires_grad=True)
    fake_quantize(x, params).backward(torch.full((5,), 3.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 3.0, 3.0, 3.0, 0.0]


@pytest.mark.parametrize("scheme", [Scheme(axis=1), Scheme(axis=1, block=2), Scheme(axis=-1, block=3)], ids=str)
def test_gradient_through_channels_is_one_inside_and_zero_outside(scheme: Scheme) -> None:
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    params = params_from_tensor(x / 2, scheme)
    x.requires_grad_()
    fake_quantize(x, params).sum().backward()
    q = quantize(x.detach(), params)
    inside = (dequantize(q, params) - x.detach()).abs() <= 0.5 * dequantize(torch.ones_like(q), params) * 1.0001
    assert x.grad is not None
    assert torch.equal(x.grad, inside.float())


@pytest.mark.parametrize("scheme", [INT8, UINT8, Scheme(bits=4), Scheme(full_range=True)], ids=str)
def test_fake_quantize_gives_the_same_bits_with_and_without_gradients(scheme: Scheme) -> None:
    params = params_from_range(0.0 if not scheme.signed else -3.0, 3.7, scheme)
    ties = params.scale * (torch.arange(-300, 300) + 0.5)
    edges = torch.tensor([0.0, -0.0, 1e-42, 1e30, -1e30, torch.inf, -torch.inf])
    x = torch.cat([4 * torch.randn(100_000), ties, edges])
    want = fake_quantize(x.clone().requires_grad_(), params).detach()
    found = fake_quantize(x, params)
    finite = x.abs() < 2**63 * float(params.scale)
    assert torch.equal(found[finite], want[finite])
    assert found[~finite].tolist() == [
        float(params.scale * (scheme.qmax if v > 0 else scheme.qmin)) for v in x[~finite]
    ]
