"""Entropy calibration, made fast, chooses the ranges that its plain definition chooses, bit for bit.

`former_…` is the definition as it was first written: every threshold computed to its end, every sum searched anew.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from octavo.numerics import Histogram, Scheme, entropy, max_range, mse, params_from_range
from octavo.numerics.between import between
from octavo.numerics.channels import ChannelHistogram
from octavo.numerics.histogram import Buckets
from octavo.numerics.losses import (
    ATOM_EXCESS,
    ATOM_NEIGHBOURS,
    ATOM_SHARE,
    ATOM_WINDOW,
    BINS_PER_OCTAVE,
    MOST_CLIPPED,
    Grid,
    bounds,
    divergence,
    expected_squared_error,
    folds,
    nonzero,
    without_atoms,
)
from octavo.numerics.ranges import _range, candidates

Floats = npt.NDArray[np.float64]
SCHEMES = [
    Scheme(bits=bits, signed=signed, symmetric=symmetric)
    for bits in (2, 4, 8)
    for signed, symmetric in [(True, True), (True, False), (False, False), (False, True)]
]


def former_up_to(x: Floats, values: Buckets, weights: Floats, power: int = 0) -> Floats:
    def mean_power(low: Floats, high: Floats, width: Floats) -> Floats:
        integral = (high ** (power + 1) - low ** (power + 1)) / (power + 1)
        return np.divide(integral, width, out=low**power, where=width > 0)

    whole = weights * mean_power(values.low, values.high, values.high - values.low)
    zero = np.searchsorted(values.low, 0.0)
    sums = np.concatenate([-np.cumsum(whole[:zero][::-1])[::-1], [0.0], np.cumsum(whole[zero:])])
    index = np.searchsorted(values.high, x)
    cut = np.minimum(index, len(weights) - 1)
    low, high = values.low[cut], values.high[cut]
    part = weights[cut] * mean_power(low, np.clip(x, low, high), high - low)
    return sums[index] + np.where((index < len(weights)) & (x > low), part, 0.0)


def former_grid(histogram: Histogram, scheme: Scheme, thresholds: Floats) -> tuple[Floats, Floats]:
    """(points, edges) of every threshold."""
    low, high = (torch.from_numpy(bound) for bound in bounds(histogram, scheme, thresholds))
    params = params_from_range(low, high, replace(scheme, axis=0))
    scale, zero_point = params.scale.double().numpy()[:, None], params.zero_point.numpy()[:, None]
    steps = np.arange(0 if folds(scheme) else scheme.qmin, scheme.qmax + 1) - zero_point
    return scale * steps, scale * np.concatenate([steps - 0.5, steps[:, -1:] + 0.5], axis=1)


def with_ends(edges: Floats) -> Floats:
    return np.pad(edges, ((0, 0), (1, 1)), constant_values=((0, 0), (-np.inf, np.inf)))


def former_divergence(values: Buckets, smooth: Buckets, points: Floats, edges: Floats) -> Floats:
    width = smooth.high - smooth.low
    information = smooth.counts * np.log(smooth.counts / width)
    mass, occupied, inside = (np.diff(former_up_to(edges, smooth, w)) for w in (smooth.counts, width, information))
    density = np.divide(mass, occupied, out=np.ones_like(mass), where=(mass > 0) & (occupied > 0))
    shape = (inside - mass * np.log(density)).sum(axis=1)
    spans = np.diff(former_up_to(with_ends(edges), values, values.counts))
    clipped = np.zeros_like(mass)
    clipped[:, 0] = spans[:, 0]
    clipped[:, -1] += spans[:, -1]
    bins = np.divide(occupied * BINS_PER_OCTAVE, np.abs(points), out=np.ones_like(mass), where=points != 0)
    shape += (clipped * np.log(np.maximum(bins, 1.0))).sum(axis=1)
    p = mass + clipped
    q = np.where(p > 0, np.maximum(mass, 1.0), 0.0)
    total = p.sum(axis=1)
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0) * (q.sum(axis=1) / total)[:, None]
    found = (shape + (p * np.log(ratio)).sum(axis=1)) / total
    return np.where(mass.sum(axis=1) >= (1 - MOST_CLIPPED) * smooth.counts.sum(), found, np.inf)


def former_without_atoms(values: Buckets) -> Buckets:
    counts = values.counts.astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    reach = np.abs(values.centres) * ATOM_WINDOW
    first = np.searchsorted(values.low, values.low - reach, side="left")
    last = np.searchsorted(values.low, values.low + reach, side="right")
    neighbours = (sums[last] - sums[first] - counts) / ATOM_NEIGHBOURS
    counts = np.where((counts > ATOM_SHARE * counts.sum()) & (counts > ATOM_EXCESS * neighbours), neighbours, counts)
    which = (values.high > values.low) & (counts > 0)
    return Buckets(low=values.low[which], high=values.high[which], counts=counts[which])


def former_buckets(histogram: Histogram, scheme: Scheme) -> Buckets:
    return nonzero(histogram.magnitudes() if folds(scheme) else histogram.buckets())


def former_thresholds(histogram: Histogram) -> Floats:
    largest, magnitudes = max(abs(histogram.minimum), abs(histogram.maximum)), nonzero(histogram.magnitudes())
    sums = np.cumsum(magnitudes.counts)
    rank = 0.5 * (float(sums[-1]) - 1)
    below, above = (magnitudes.centres[np.searchsorted(sums, r, side="right")] for r in (np.floor(rank), np.ceil(rank)))
    return candidates(min(below + (above - below) * (rank - np.floor(rank)), largest) / 2, largest)


def former_entropy(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    values = former_buckets(histogram, scheme)
    smooth = former_without_atoms(values)
    if not len(smooth.counts):
        return max_range(histogram, scheme)
    thresholds = former_thresholds(histogram)
    lost = former_divergence(values, smooth, *former_grid(histogram, scheme, thresholds))
    return _range(histogram, scheme, float(thresholds[len(thresholds) - 1 - int(np.argmin(lost[::-1]))]))


def former_error(values: Buckets, points: Floats, edges: Floats) -> Floats:
    edges = with_ends(edges[:, 1:-1])
    mass, first, second = (np.diff(former_up_to(edges, values, values.counts, power)) for power in range(3))
    return (second - 2 * points * first + np.square(points) * mass).sum(axis=1) / float(values.counts.sum())


KINDS = {
    "normal": lambda x: x,
    "relu": torch.relu,
    "relu6": lambda x: (3 * x).clamp(0, 6),
    "silu": lambda x: torch.nn.functional.silu(3 * x),
    "heavy tail": lambda x: torch.exp(2 * x),
    "negative": lambda x: -x.abs(),
    "far from zero": lambda x: x + 5,
    "few values": lambda x: (x * 3).round(),
    "an atom": lambda x: torch.cat([x, torch.full_like(x, 0.69)]),
    "an outlier": lambda x: torch.cat([x, torch.tensor([5000.0])]),
    "tiny": lambda x: x * 1e-30,
}


def histograms(kind: str) -> list[Histogram]:
    """Of a few values and of many, counted for a tensor and for a channel."""
    found = []
    for count in (1, 7, 300, 20_000):
        x = KINDS[kind](torch.randn(count) * torch.rand(1) * 4)
        whole, channels = Histogram(), ChannelHistogram(0)
        whole.update(x)
        channels.update(torch.stack([x.flip(0), x * 0.3]))
        found += [whole, channels.channel(1)]
    return [one for one in found if max(-one.minimum, one.maximum) > 0]


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_chooses_what_its_definition_does_bit_for_bit(kind: str) -> None:
    for histogram in histograms(kind):
        for scheme in SCHEMES:
            if histogram.minimum >= 0 or scheme.signed or not scheme.symmetric:
                assert entropy(histogram, scheme) == former_entropy(histogram, scheme)


@pytest.mark.parametrize("kind", KINDS)
def test_what_every_threshold_loses_is_the_same_bit_for_bit(kind: str) -> None:
    for histogram in histograms(kind)[-2:]:
        for scheme in SCHEMES:
            if histogram.minimum < 0 and not scheme.signed and scheme.symmetric:
                continue
            values, thresholds = former_buckets(histogram, scheme), former_thresholds(histogram)
            smooth, grid = former_without_atoms(values), Grid.of(histogram, scheme, thresholds)
            points, edges = former_grid(histogram, scheme, thresholds)
            assert np.array_equal(grid.points(), points)
            assert np.array_equal(grid.edges(), edges)
            assert np.array_equal(grid.ends(), edges[:, [0, -1]])
            assert np.array_equal(without_atoms(values).counts, smooth.counts)
            assert np.array_equal(expected_squared_error(values, grid), former_error(values, points, edges))
            if len(smooth.counts):
                lost = divergence(values, smooth, grid)
                assert np.array_equal(lost, former_divergence(values, smooth, points, edges))


def test_a_threshold_that_clips_too_much_is_not_computed() -> None:
    (histogram,) = histograms("normal")[-2:-1]
    values = nonzero(histogram.buckets())
    thresholds = np.geomspace(1e-3, 1.0, 5) * histogram.maximum
    lost = divergence(values, without_atoms(values), Grid.of(histogram, Scheme(symmetric=False), thresholds))
    assert np.isinf(lost[:2]).all()
    assert np.isfinite(lost[-1])
    none = divergence(values, without_atoms(values), Grid.of(histogram, Scheme(symmetric=False), thresholds[:2]))
    assert np.isinf(none).all()


def test_what_lies_between_edges_by_hand() -> None:
    values = Buckets(low=np.array([-2.0, 1.0, 4.0]), high=np.array([-1.0, 3.0, 4.0]), counts=np.array([8, 4, 2]))
    edges = np.array([[-np.inf, -1.25, 2.0, np.inf], [-1.5, 0.0, 4.0, 5.0]])
    found = between(edges, values, values.counts, np.array([1.0, 2.0, 3.0]))
    assert found[0].tolist() == [[6.0, 4.0, 4.0], [4.0, 4.0, 2.0]]
    assert found[1].tolist() == [[0.75, 1.25, 4.0], [0.5, 2.0, 3.0]]


def test_a_histogram_that_was_filled_is_updated_and_merged_like_any_other() -> None:
    x, channels = torch.randn(2, 4000), ChannelHistogram(0)
    channels.update(x)
    filled = channels.channel(0)
    copied = Histogram.from_state(filled.state())
    for histogram in (filled, copied):
        histogram.update(x[1] * 3)
    assert filled == copied == Histogram().merge(copied)
    for one, other in zip(
        (filled.buckets(), filled.magnitudes()), (copied.buckets(), copied.magnitudes()), strict=True
    ):
        assert np.array_equal(one.low, other.low)
        assert np.array_equal(one.counts, other.counts)
    assert mse(filled) == mse(copied)
