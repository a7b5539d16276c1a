"""Histogram → range: the calibration methods of Wu et al. 2020, §3.4, and mean squared error. Pure functions.

Each method chooses a threshold T on |x|; `_range` makes a range of it: [−T, T] for symmetric signed integers, otherwise
the observed range cut to [−T, T], so that the shorter side of skewed data is not given integers it does not use.
"""

from collections.abc import Callable

import numpy as np

from octavo.arguments import checked
from octavo.errors import QuantizationError
from octavo.numerics.histogram import Buckets, Floats, Histogram
from octavo.numerics.losses import Grid, bounds, divergence, expected_squared_error, folds, nonzero, without_atoms
from octavo.numerics.scheme import INT8, Scheme

Range = tuple[float, float]
RangeMethod = Callable[[Histogram, Scheme], Range]

THRESHOLDS = 96  # thresholds tried at once


@checked
def max_range(histogram: Histogram, scheme: Scheme = INT8) -> Range:
    """The exact range seen: nothing is clipped (Wu et al. 2020, §3.4). QuantizationError if no value was seen."""
    return _range(histogram, scheme, _largest(histogram))


@checked
def percentile(p: float) -> RangeMethod:
    """The method whose range holds p % of the values, clipping those largest in magnitude (Wu et al. 2020, §3.4).

    The p-th percentile of |x| as numpy's: linear between neighbours. If it is zero though not all values are, which is
    what sparse data give, the percentile of the values that are not zero is taken, so that something is represented.
    raises  QuantizationError if p is not in (0, 100]; the method raises it if no value was seen
    """
    if not 0 < p <= 100:
        raise QuantizationError(
            asked=f"clip at percentile {p}", seen="it is not above 0 and at most 100", remedy="use 99.9 or 99.99"
        )

    @checked
    def method(histogram: Histogram, scheme: Scheme = INT8) -> Range:
        largest = _largest(histogram)
        magnitudes = histogram.magnitudes()
        threshold = _quantile(magnitudes, p / 100) or _quantile(nonzero(magnitudes), p / 100)
        return _range(histogram, scheme, threshold or largest)

    method.__name__ = f"{p:g}"
    method.__doc__ = f"The range that holds {p:g} % of the values (Wu et al. 2020, §3.4)."
    return method


@checked
def mse(histogram: Histogram, scheme: Scheme = INT8) -> Range:
    """The range of least expected squared error, clipping and rounding together.

    Thresholds are searched in two passes, coarse and fine; values are taken as spread evenly over their bucket.
    Raises QuantizationError if no value was seen, or negative ones for unsigned symmetric integers.
    """
    values = _values(histogram, scheme)
    thresholds = _thresholds(histogram, values)
    for _ in range(2):
        best = int(np.argmin(expected_squared_error(values, Grid.of(histogram, scheme, thresholds))))
        chosen = float(thresholds[best])
        below, above = thresholds[max(best - 1, 0)], thresholds[min(best + 1, len(thresholds) - 1)]
        thresholds = np.linspace(below, above, THRESHOLDS // 2)
    return _range(histogram, scheme, chosen)


@checked
def entropy(histogram: Histogram, scheme: Scheme = INT8) -> Range:
    """The range that loses least information: minimal Kullback–Leibler divergence KL(P‖Q) (Wu et al. 2020, §3.4).

    P is the distribution of the values that are not zero, with what is clipped added to the outermost integers; Q is
    P without the clipped values, evened out over the occupied buckets that round to the same integer. The histogram's
    own buckets are the bins: fine near zero, so that a far outlier does not hide the loss of everything else.
    Constants are taken out first: see `without_atoms`. If nothing else is there, nothing is clipped.
    Raises QuantizationError if no value was seen, or negative ones for unsigned symmetric integers.
    """
    values = nonzero(_values(histogram, scheme))
    smooth = without_atoms(values)
    if not len(smooth.counts):
        return max_range(histogram, scheme)
    thresholds = _thresholds(histogram, values)
    lost = divergence(values, smooth, Grid.of(histogram, scheme, thresholds))
    best = len(thresholds) - 1 - int(np.argmin(lost[::-1]))  # of equals the widest: clip nothing without a gain
    return _range(histogram, scheme, float(thresholds[best]))


METHODS: dict[str, RangeMethod] = {
    "max": max_range,
    "entropy": entropy,
    "99.9": percentile(99.9),
    "99.99": percentile(99.99),
    "99.999": percentile(99.999),
    "99.9999": percentile(99.9999),
    "mse": mse,
}
max_range.__name__ = "max"  # the name of every method is its key here, also in reports


def method(name: str) -> RangeMethod:
    """The method of this name: a key of METHODS or any percentile, like "99.5". QuantizationError for another name."""
    if name in METHODS:
        return METHODS[name]
    try:
        return percentile(float(name))
    except ValueError:
        raise QuantizationError(
            asked=f"calibrate by {name!r}",
            seen="there is no such method",
            remedy=f"use one of {', '.join(METHODS)}, or another percentile as a number",
        ) from None


def _largest(histogram: Histogram) -> float:
    return max(abs(histogram.minimum), abs(histogram.maximum))


def _values(histogram: Histogram, scheme: Scheme) -> Buckets:
    return histogram.magnitudes() if folds(scheme) else histogram.buckets()


def _range(histogram: Histogram, scheme: Scheme, threshold: float) -> Range:
    low, high = bounds(histogram, scheme, np.array([threshold]))
    return float(low[0]), float(high[0])


def candidates(lowest: float, highest: float) -> Floats:
    """Thresholds from `lowest` to `highest`, ascending, each the same factor apart."""
    thresholds: Floats = np.geomspace(min(lowest, highest), highest, THRESHOLDS)
    thresholds[-1] = highest  # exactly: geomspace may round
    return thresholds


def _thresholds(histogram: Histogram, values: Buckets) -> Floats:
    """Candidates from half the median of the nonzero |x| up to the largest, ascending, each the same factor apart.

    values  its buckets, or those of |x|: the same if none is negative
    """
    largest = _largest(histogram)
    magnitudes = histogram.magnitudes() if values.low[0] < 0 else values
    median = _quantile(nonzero(magnitudes), 0.5)
    if median == 0:
        return np.array([largest])
    return candidates(min(median, largest) / 2, largest)


def _quantile(values: Buckets, share: float) -> float:
    """numpy's quantile, linear between the two values whose ranks enclose `share`; 0 if there are none."""
    if not len(values.counts):
        return 0.0
    sums = np.cumsum(values.counts)
    rank = share * (float(sums[-1]) - 1)
    ranks = np.searchsorted(sums, [np.floor(rank), np.ceil(rank)], side="right")
    below, above = (values.low[ranks] + values.high[ranks]) / 2
    return float(below + (above - below) * (rank - np.floor(rank)))
