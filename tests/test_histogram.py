"""Histogram: exact counts, in fixed memory, whatever the order and size of batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from octavo.errors import QuantizationError
from octavo.numerics import Histogram
from octavo.numerics.histogram import BUCKETS, _flat

TINY = torch.finfo(torch.float32).tiny
FLOAT32_MAX = torch.finfo(torch.float32).max


def histogram_of(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_magnitudes() -> Tensor:
    """Floats of every exponent, evenly in the logarithm, both signs, with zeros."""
    magnitudes = torch.logspace(-44, 38, 20_001, dtype=torch.float64).float()
    return torch.cat([magnitudes, -magnitudes, torch.zeros(3), torch.tensor([FLOAT32_MAX, -FLOAT32_MAX])])


def test_each_value_is_in_its_bucket() -> None:
    x = all_magnitudes()
    buckets = histogram_of(x).buckets()
    exact = np.sort(x.double().numpy())
    assert buckets.counts.sum() == len(exact)
    # Buckets ascend and do not overlap (−0 and 0 have one each), so the sorted values fill them one after the other.
    assert (np.diff(buckets.centres) >= 0).all()
    low, high = (np.repeat(edge, buckets.counts) for edge in (buckets.low, buckets.high))
    counted_as_zero = np.abs(exact) < 2.0**-135
    assert ((low <= exact) & (exact <= high))[~counted_as_zero].all()
    assert (low[counted_as_zero] == 0).all()


def test_centre_is_within_a_thousandth_of_each_value() -> None:
    x = all_magnitudes()
    buckets = histogram_of(x).buckets()
    exact = np.sort(x.double().numpy())
    centres = np.repeat(buckets.centres, buckets.counts)
    normal_floats = np.abs(exact) >= TINY
    relative = np.abs(centres - exact)[normal_floats] / np.abs(exact)[normal_floats]
    assert relative.max() <= 1 / 1024
    assert relative.max() > 0.9 / 1024  # the bound is reached: it is that of the bucket's width


def test_magnitudes_are_the_buckets_of_the_absolute_values() -> None:
    x = normal(10_000) - 0.5
    folded, direct = histogram_of(x).magnitudes(), histogram_of(x.abs()).buckets()
    assert np.array_equal(folded.counts, direct.counts)
    assert np.allclose(folded.centres, direct.centres, rtol=1 / 512)
    assert folded.high[-1] == x.abs().max().item()


def test_one_sided_magnitudes_are_cut_at_both_ends() -> None:
    for sign in (1, -1):
        magnitudes = histogram_of(torch.full((5,), 0.7 * sign)).magnitudes()
        assert (magnitudes.low[0], magnitudes.high[0]) == (np.float32(0.7), np.float32(0.7))


def test_minimum_and_maximum_are_exact() -> None:
    x = normal(1000)
    histogram = histogram_of(x[:400], x[400:])
    assert (histogram.minimum, histogram.maximum) == (x.min().item(), x.max().item())


# --- batches


batches = st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20), max_size=6)


@given(values=batches, order=st.randoms(use_true_random=False))
def test_merging_is_order_free_and_equals_one_pass(values: list[list[float]], order: object) -> None:
    tensors = [torch.tensor(v, dtype=torch.float32) for v in values]
    whole = histogram_of(torch.cat([torch.zeros(0), *tensors]))
    parts = [histogram_of(t) for t in tensors]
    order.shuffle(parts)  # type: ignore[attr-defined]
    merged = Histogram()
    for part in parts:
        merged = merged.merge(part)
    backwards = Histogram()
    for part in parts:
        backwards = part.merge(backwards)
    assert merged == backwards == whole == histogram_of(*tensors)


def test_merging_changes_neither() -> None:
    a, b = histogram_of(normal(100)), histogram_of(normal(50, seed=1) * 1e6)
    merged = a.merge(b)
    merged.update(torch.ones(5))
    assert a == histogram_of(normal(100))
    assert b == histogram_of(normal(50, seed=1) * 1e6)
    assert (a.count, b.count, merged.count) == (100, 50, 155)


def test_batch_size_does_not_matter() -> None:
    x = normal(96, 7)
    expected = histogram_of(x)
    for size in (1, 5, 32, 96):
        assert histogram_of(*x.split(size)) == expected


def test_samples_of_different_length() -> None:
    samples = [normal(length, 4, seed=length) for length in (1, 9, 3)]
    assert histogram_of(*samples) == histogram_of(torch.cat(samples))


def test_a_long_tensor() -> None:
    x = normal((1 << 20) + 17)
    assert histogram_of(x) == histogram_of(x[:1000], x[1000:])


def test_memory_does_not_grow_with_the_data() -> None:
    histogram = histogram_of(all_magnitudes())
    before = histogram._counts.nbytes
    for seed in range(20):
        histogram.update(normal(1000, seed=seed))
    assert histogram._counts.nbytes == before <= BUCKETS * 8 == 2 << 20
    assert histogram_of(normal(1000).relu().clamp(max=6))._counts.nbytes <= (1 << 20) + 8


def test_counts_beyond_2_to_the_24_are_exact() -> None:
    """`torch.histc` and float32 bins stop at 16 777 216, which the zeros behind a ReLU always reach."""
    histogram = histogram_of(torch.zeros(1 << 20), torch.tensor([1.5]))
    for _ in range(5):  # 2^20 zeros, doubled five times
        histogram = histogram.merge(histogram)
    for _ in range(3):
        histogram.update(torch.zeros(1))
    assert histogram.buckets().counts.tolist() == [2**25 + 3, 32]
    for _ in range(20):
        histogram = histogram.merge(histogram)
    assert histogram.count == (2**25 + 3 + 32) * 2**20


# --- memory formats and types


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(1, 3),
        lambda x: x[:, ::2, 1:, :],
        lambda x: x[:, :, :1].expand(-1, -1, 7, -1),
        lambda x: x[0, 0, 0, 0],
    ],
    ids=["channels_last", "transposed", "strided", "expanded", "scalar"],
)
def test_any_layout_counts_the_same(view: object) -> None:
    x = view(normal(3, 4, 5, 6))  # type: ignore[operator]
    assert histogram_of(x) == histogram_of(x.contiguous())


def test_dense_layouts_are_not_copied() -> None:
    x = normal(3, 4, 5, 6)
    for dense in (x, x.to(memory_format=torch.channels_last), x.transpose(1, 3), x.permute(3, 0, 2, 1)):
        assert _flat(dense).data_ptr() == dense.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_count_as_float32(dtype: torch.dtype) -> None:
    x = normal(1000).to(dtype)
    assert histogram_of(x) == histogram_of(x.float())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_what_is_not_floating_point_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(QuantizationError, match=f"ids: asked to observe a tensor of {dtype}, but only floating"):
        Histogram().update(torch.zeros(3).to(dtype), site="ids")


def test_gradients_and_inference_mode_do_not_matter() -> None:
    histogram = histogram_of(normal(10).requires_grad_())
    with torch.inference_mode():
        histogram.update(normal(10, seed=1))
    histogram.update(normal(10, seed=2))
    assert histogram.count == 30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_counts_the_same() -> None:
    x = torch.cat([normal((1 << 20) + 5), all_magnitudes()])
    assert histogram_of(x.cuda()) == histogram_of(x)


# --- degenerate cases


def test_empty() -> None:
    empty = Histogram()
    assert empty.count == 0
    assert len(empty.buckets().counts) == len(empty.magnitudes().counts) == 0
    assert repr(empty) == "Histogram(0 values)"
    for read in (lambda: empty.minimum, lambda: empty.maximum):
        with pytest.raises(QuantizationError, match="it has seen no values; update it with data first"):
            read()


def test_empty_batch_changes_nothing() -> None:
    histogram = histogram_of(normal(5))
    histogram.update(torch.zeros(0, 3))
    assert histogram == histogram_of(normal(5))
    assert histogram_of(torch.zeros(0)) == Histogram()


def test_all_zeros_of_either_sign() -> None:
    histogram = histogram_of(torch.tensor([0.0, -0.0, 0.0]))
    assert (histogram.minimum, histogram.maximum) == (0.0, 0.0)
    magnitudes = histogram.magnitudes()
    assert (magnitudes.centres.tolist(), magnitudes.counts.tolist()) == ([0.0], [3])


def test_negative_zeros_have_room_where_nothing_else_is_negative() -> None:
    x = torch.tensor([0.0, -0.0, 5.0]).repeat(1000)
    histogram = histogram_of(x)
    magnitudes = histogram.magnitudes()
    assert (magnitudes.centres.tolist(), magnitudes.counts.tolist()) == ([0.0, 5.0], [2000, 1000])
    assert histogram == histogram_of(x[1:2], x[0:1], x[2:]) == histogram_of(x.flip(0))
    assert histogram == Histogram.from_state(histogram.state())
    assert histogram_of(torch.full((7,), -0.0)).magnitudes().counts.tolist() == [7]


def test_one_element_is_exact() -> None:
    buckets = histogram_of(torch.tensor(-0.3)).buckets()
    assert buckets.centres.tolist() == [float(np.float32(-0.3))]
    assert repr(histogram_of(torch.tensor(-0.3))) == "Histogram(1 values in [-0.3, -0.3])"


@pytest.mark.parametrize(
    ("bad", "seen"),
    [
        ([math.nan, math.nan], "2 NaN and 0 infinite values were among its 102"),
        ([math.inf, 0.0], "0 NaN and 1 infinite values were among its 102"),
        ([-math.inf, math.nan], "1 NaN and 1 infinite values were among its 102"),
    ],
)
def test_nan_and_infinity_are_refused_and_nothing_is_counted(bad: list[float], seen: str) -> None:
    histogram = histogram_of(normal(10))
    with pytest.raises(QuantizationError, match=f"conv1.input: asked to observe a tensor, but {seen}"):
        histogram.update(torch.cat([normal(100), torch.tensor(bad)]), site="conv1.input")
    assert histogram == histogram_of(normal(10))


# --- storage


@pytest.mark.parametrize("x", [torch.zeros(0), torch.zeros(4), normal(1000), all_magnitudes()], ids=len)
def test_state_round_trip_is_exact(x: Tensor) -> None:
    histogram = histogram_of(x)
    state = histogram.state()
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "buckets": torch.int32,
        "counts": torch.int64,
        "bounds": torch.float64,
    }
    restored = Histogram.from_state(state)
    assert restored == histogram
    restored.update(torch.ones(1))
    assert histogram == histogram_of(x)


@pytest.mark.parametrize(
    "damage",
    [
        {"bounds": torch.zeros(0, dtype=torch.float64)},
        {"counts": torch.ones(2, dtype=torch.int64)},
        {"counts": -torch.ones(1, dtype=torch.int64)},
        {"counts": torch.ones(1)},
        {"buckets": torch.tensor([BUCKETS], dtype=torch.int32)},
        {"buckets": torch.tensor([-1], dtype=torch.int32)},
        {"buckets": torch.tensor([7, 7], dtype=torch.int32), "counts": torch.ones(2, dtype=torch.int64)},
        {"bounds": torch.tensor([1.0, 0.0], dtype=torch.float64)},
        {"bounds": torch.tensor([0.1, 0.2], dtype=torch.float64)},
        {"bounds": torch.tensor([0.0, math.nan], dtype=torch.float64)},
    ],
    ids=str,
)
def test_damaged_state_is_refused(damage: dict[str, Tensor]) -> None:
    with pytest.raises(QuantizationError, match=r"restore a histogram, but the stored tensors .* do not describe one"):
        Histogram.from_state({**histogram_of(torch.ones(3)).state(), **damage})
    with pytest.raises(QuantizationError, match="restore a histogram"):
        Histogram.from_state({})
