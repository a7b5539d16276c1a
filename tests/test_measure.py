"""Every reported number: exact values, and what happens at the edges."""

import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from octavo import measure
from octavo.errors import QuantizationError
from octavo.measure import (
    Latencies,
    Latency,
    agreement,
    latency_ms,
    paired_interval,
    size_mb,
    sqnr_db,
)


def test_interval_of_per_sample_scores_is_that_of_the_mean_difference() -> None:
    a = torch.randn(400, dtype=torch.float64)
    b = a - 0.5 + 0.2 * torch.randn(400, dtype=torch.float64)
    interval = paired_interval(a, b)
    middle, error = (a - b).mean().item(), (a - b).std().item() / 20
    assert interval.drop == pytest.approx(middle)
    assert interval.low == pytest.approx(middle - 1.96 * error, abs=0.25 * error)
    assert interval.high == pytest.approx(middle + 1.96 * error, abs=0.25 * error)
    assert (interval.confidence, interval.samples) == (0.95, 400)


def test_interval_is_paired() -> None:
    hardness = 100 * torch.randn(200)
    interval = paired_interval(hardness, hardness - 1)
    assert interval.low == pytest.approx(1, abs=1e-4)
    assert interval.high == pytest.approx(1, abs=1e-4)


def test_interval_covers_the_true_drop_as_often_as_promised() -> None:
    covered = 0
    for seed in range(200):
        a, b = torch.randn(60), torch.randn(60) - 0.3
        interval = paired_interval(a, b, confidence=0.8, resamples=200, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    # 160 expected; the deviation of a binomial is 5.7, and percentiles of 60 samples are a little too narrow.
    assert 130 <= covered <= 185


def test_interval_of_a_metric_function() -> None:
    labels = torch.tensor([0, 1, 1, 0] * 25)
    right = labels.clone()
    wrong = torch.where(torch.arange(100) < 10, 1 - labels, labels)

    def accuracy(predictions: Tensor, index: Tensor) -> float:
        return 100 * (predictions[index] == labels[index]).double().mean().item()

    interval = paired_interval(right, wrong, accuracy)
    assert interval.drop == pytest.approx(10)
    # The number of wrong ones in a resample is binomial(100, 0.1): its 2.5 % and 97.5 % points are 5 and 16.
    assert interval.low == pytest.approx(5, abs=1)
    assert interval.high == pytest.approx(16, abs=1)


def test_interval_repeats_with_its_seed() -> None:
    a, b = torch.randn(50), torch.randn(50)
    assert paired_interval(a, b, seed=3) == paired_interval(a, b, seed=3)


def test_interval_of_equal_predictions_is_zero() -> None:
    a = torch.randn(10)
    interval = paired_interval(a, a.clone())
    assert (interval.drop, interval.low, interval.high) == (0, 0, 0)


def test_interval_of_one_sample_is_unbounded() -> None:
    interval = paired_interval(torch.tensor([1.0]), torch.tensor([0.0]))
    assert (interval.drop, interval.low, interval.high) == (1, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("a", "b", "seen"),
    [
        (torch.zeros(0), torch.zeros(0), "0 samples of one and 0 samples of the other"),
        (torch.zeros(3), torch.zeros(4), "3 samples of one and 4 samples of the other"),
        (torch.tensor([1.0, math.nan]), torch.zeros(2), "the score of one of them is NaN"),
    ],
)
def test_interval_rejects(a: Tensor, b: Tensor, seen: str) -> None:
    with pytest.raises(QuantizationError, match=seen):
        paired_interval(a, b)


def test_sqnr_of_a_tenth_is_twenty_decibels() -> None:
    x = torch.tensor([3.0, -4.0])
    assert sqnr_db(x, x * 1.1) == pytest.approx(20, abs=1e-5)


def test_sqnr_adds_up_over_nested_outputs() -> None:
    reference = {"logits": torch.tensor([3.0]), "states": (torch.tensor([4.0]), torch.tensor([0.0]))}
    other = {"logits": torch.tensor([3.0]), "states": (torch.tensor([4.0]), torch.tensor([0.5]))}
    assert sqnr_db(reference, other) == pytest.approx(20)


def test_sqnr_at_the_edges() -> None:
    x, zero = torch.tensor([1.0]), torch.tensor([0.0])
    assert sqnr_db(x, x.clone()) == math.inf
    assert sqnr_db(zero, zero.clone()) == math.inf
    assert sqnr_db(zero, x) == -math.inf


@pytest.mark.parametrize(
    ("reference", "other", "seen"),
    [
        (torch.zeros(2, 0), torch.zeros(2, 0), r"shapes \[\[2, 0\]\] and \[\[2, 0\]\]"),
        (torch.zeros(2), torch.zeros(3), r"shapes \[\[2\]\] and \[\[3\]\]"),
        ((torch.zeros(2),), (torch.zeros(2), torch.zeros(2)), r"shapes \[\[2\]\] and \[\[2\], \[2\]\]"),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "of one structure"),
        (torch.ones(1), torch.tensor([math.nan]), "NaN or infinity"),
        (torch.tensor([math.inf]), torch.ones(1), "NaN or infinity"),
    ],
)
def test_sqnr_rejects(reference: object, other: object, seen: str) -> None:
    with pytest.raises(QuantizationError, match=seen):
        sqnr_db(reference, other)


def test_agreement_counts_equal_winners() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [5.0, 1.0]])
    b = torch.tensor([[9.0, 8.0], [0.0, 1.0], [2.0, 1.0], [5.0, 1.0]])
    assert agreement(a, b) == 75
    assert agreement(a.reshape(2, 2, 2), b.reshape(2, 2, 2)) == 75
    assert agreement(a[:1], b[:1]) == 100


@pytest.mark.parametrize(
    ("a", "b", "seen"),
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), r"shapes \[0, 3\] and \[0, 3\]"),
        (torch.zeros(2, 3), torch.zeros(2, 4), r"shapes \[2, 3\] and \[2, 4\]"),
        (torch.zeros(1, 2), torch.tensor([[0.0, math.nan]]), "a prediction is NaN"),
    ],
)
def test_agreement_rejects(a: Tensor, b: Tensor, seen: str) -> None:
    with pytest.raises(QuantizationError, match=seen):
        agreement(a, b)


def test_latency_calls_everyone_once_a_round() -> None:
    calls: list[str] = []
    times = latency_ms({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=20, warmup=2)
    rounds = ["".join(calls[i : i + 4 : 2]) for i in range(0, 88, 4)]  # every turn is two calls
    assert calls[::2] == calls[1::2]
    assert len(calls) == 88
    assert set(rounds) == {"ab", "ba"}
    assert times["a"].rounds == 20


def test_latency_statistics_are_those_of_the_counted_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    # A call in round n (warm-up included) takes n milliseconds.
    ticks = iter([tick for n in range(14) for tick in (0.0, n / 1000)])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ticks))
    timed = latency_ms({"a": lambda: None}, rounds=11, warmup=3)["a"]
    assert (timed.p10_ms, timed.median_ms, timed.p90_ms) == pytest.approx((4, 8, 12))


def test_latency_is_in_milliseconds() -> None:
    assert 20 <= latency_ms({"a": lambda: time.sleep(0.02)}, rounds=3, warmup=0)["a"].median_ms < 200


def test_ratio_is_of_the_medians() -> None:
    slow = Latency(median_ms=6, p10_ms=1, p90_ms=9, rounds=3)
    fast = Latency(median_ms=2, p10_ms=1, p90_ms=9, rounds=3)
    assert Latencies(slow=slow, fast=fast).ratio("slow", "fast") == 3


def test_latency_needs_contestants_and_rounds() -> None:
    with pytest.raises(QuantizationError, match="0 of them and 30 rounds"):
        latency_ms({})
    with pytest.raises(QuantizationError, match="1 of them and 0 rounds"):
        latency_ms({"a": lambda: None}, rounds=0)


def test_size_counts_parameters_and_buffers_once(tmp_path: Path) -> None:
    linear = nn.Linear(1000, 100, bias=False)
    assert size_mb(nn.Sequential(linear, linear)) == 0.4
    assert size_mb(nn.BatchNorm1d(1000)) == pytest.approx(0.016008)  # four vectors and one int64 counter
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"x" * 3000)
    (tmp_path / "b").write_bytes(b"x" * 1000)
    assert size_mb(tmp_path / "b") == 0.001
    assert size_mb(tmp_path) == 0.004
