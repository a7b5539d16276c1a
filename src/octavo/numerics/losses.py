"""What a range would lose: of squares, of information, of either side of zero; for many thresholds at once.

Values are buckets of a histogram, spread evenly over their widths; a threshold is the grid of real values that the
integers of a scheme then stand for. Pure functions, which `ranges.py` minimizes.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from octavo.numerics.affine import params_from_range
from octavo.numerics.between import between
from octavo.numerics.histogram import MANTISSA_BITS, Buckets, Floats, Histogram
from octavo.numerics.scheme import Scheme

ATOM_SHARE, ATOM_EXCESS, ATOM_WINDOW = 0.002, 8.0, 1 / 8  # see _without_atoms
MOST_CLIPPED = 0.05  # of the values. With nearly all of them in the outermost integer there is no shape left to lose,
# and the divergence is 0: 512 averages between 0.1 and 0.4 got the range 0.1. Real networks clip 1.5 % at most.
BINS_PER_OCTAVE = 1 << MANTISSA_BITS
ROUNDING = 1e-9  # of sums in float64 that are compared before they are computed for good
ATOM_NEIGHBOURS = 2 * ATOM_WINDOW * BINS_PER_OCTAVE  # buckets in the window, at least


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The real values that integers stand for, for each of many thresholds.

    scale       [thresholds, 1]
    zero_point  [thresholds, 1]
    integers    [levels]         ascending; from zero if `folded` and only |x| matters
    """

    scale: Floats
    zero_point: npt.NDArray[np.int32]
    integers: npt.NDArray[np.int64]

    @staticmethod
    def of(histogram: Histogram, scheme: Scheme, thresholds: Floats, *, folded: bool = True) -> "Grid":
        low, high = (torch.from_numpy(bound) for bound in bounds(histogram, scheme, thresholds))
        params = params_from_range(low, high, _along_thresholds(scheme))
        lowest = 0 if folded and folds(scheme) else scheme.qmin
        return Grid(
            scale=params.scale.double().numpy()[:, None],
            zero_point=params.zero_point.numpy()[:, None],
            integers=np.arange(lowest, scheme.qmax + 1),
        )

    def points(self) -> Floats:
        """[thresholds, levels]: multiples of the scale, ascending."""
        points: Floats = self.scale * (self.integers - self.zero_point)
        return points

    def edges(self) -> Floats:
        """[thresholds, levels + 1]: half a step around the points; what lies outside the first and last is clipped."""
        edges: Floats = self.scale * (np.append(self.integers - 0.5, self.integers[-1] + 0.5) - self.zero_point)
        return edges

    def ends(self) -> Floats:
        """[thresholds, 2]: the first and the last edge."""
        ends: Floats = self.scale * (self.integers[[0, -1]] + np.array([-0.5, 0.5]) - self.zero_point)
        return ends

    def only(self, which: list[int]) -> "Grid":
        """Some integers of it, by their places."""
        return replace(self, integers=self.integers[which])

    def rows(self, which: npt.NDArray[np.bool_]) -> "Grid":
        """Those of some thresholds."""
        return replace(self, scale=self.scale[which], zero_point=self.zero_point[which])


@lru_cache
def _along_thresholds(scheme: Scheme) -> Scheme:
    return replace(scheme, axis=0, block=None)


def expected_squared_error(values: Buckets, grid: Grid) -> Floats:
    """Mean of (x − nearest point)², [thresholds], from the moments of x between edges; x is even over its bucket."""
    points, edges = grid.points(), _with_ends(grid.edges()[:, 1:-1])  # what is clipped has the outermost point
    mass, first, second = map(np.diff, _moments(edges, values))
    error: Floats = (second - 2 * points * first + np.square(points) * mass).sum(axis=1)
    return error / float(values.counts.sum())


def error_of_halves(histogram: Histogram, scheme: Scheme, thresholds: Floats) -> Floats:
    """[thresholds]: squared error of what is below zero beside its energy, plus the same of what is above.

    Both halves count alike, however few or small the values of one are. A half that is empty or all zero adds nothing.
    """
    values, grid = histogram.buckets(), Grid.of(histogram, replace(scheme, axis=None), thresholds, folded=False)
    total = np.zeros(len(thresholds))
    for half in (values.high <= 0, values.low >= 0):
        part = _keep(values, half & ((values.low != 0) | (values.high != 0)))
        energy = float((part.counts * np.square(part.centres)).sum())
        if energy > 0:
            total += expected_squared_error(part, grid) * float(part.counts.sum()) / energy
    return total


def divergence(values: Buckets, smooth: Buckets, grid: Grid) -> Floats:
    """KL(P‖Q) in nats, [thresholds]: the shape lost within integers, and the mass that clipping moves between them.

    Infinite where more than MOST_CLIPPED of `smooth` is clipped, which is most of the thresholds: for them nothing else
    is computed.

    values  what was seen, for the mass that is clipped; smooth  the same without atoms, for everything else
    """
    least = (1 - MOST_CLIPPED) * smooth.counts.sum()
    inside = between(grid.ends(), smooth, smooth.counts)[0, :, 0]
    found, near = np.full(len(inside), np.inf), inside >= least * (1 - ROUNDING)
    if near.any():
        found[near] = _divergence(values, smooth, grid.rows(near), least)
    return found


def _divergence(values: Buckets, smooth: Buckets, grid: Grid, least: float) -> Floats:
    """`divergence`, infinite where less than `least` of `smooth` is not clipped."""
    edges, outermost = grid.edges(), [0, -1]
    mass, occupied, shape = _evened_out(smooth, edges)
    (spans,) = between(_with_ends(edges[:, outermost]), values, values.counts)
    clipped = np.zeros_like(mass)
    clipped[:, outermost] = spans[:, outermost]
    # What is clipped falls into one bin of P, however many the outermost integer covers: the paper's "last bin".
    width, size = occupied[:, outermost] * BINS_PER_OCTAVE, np.abs(grid.only(outermost).points())
    bins = np.divide(width, size, out=np.ones_like(size), where=size != 0)
    shape += (spans[:, outermost] * np.log(np.maximum(bins, 1.0))).sum(axis=1)
    p = mass + clipped
    # An outermost integer may hold clipped values alone: one value there keeps the divergence finite, but large.
    q = np.where(p > 0, np.maximum(mass, 1.0), 0.0)
    total = p.sum(axis=1)
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0) * (q.sum(axis=1) / total)[:, None]
    found: Floats = (shape + (p * np.log(ratio)).sum(axis=1)) / total
    return np.where(mass.sum(axis=1) >= least, found, np.inf)


def _evened_out(smooth: Buckets, edges: Floats) -> tuple[Floats, Floats, Floats]:
    """Mass and occupied width around each point, [thresholds, levels], and Σ count · ln(density / mean density)."""
    width = smooth.high - smooth.low
    information = smooth.counts * np.log(smooth.counts / width)
    mass, occupied, inside = between(edges, smooth, smooth.counts, width, information)
    usable = (mass > 0) & (occupied > 0)
    mean_density = np.divide(mass, occupied, out=np.ones_like(mass), where=usable)
    return mass, occupied, (inside - mass * np.log(mean_density)).sum(axis=1)


def _with_ends(edges: Floats) -> Floats:
    ends = np.full((len(edges), 1), np.inf)
    return np.concatenate([-ends, edges, ends], axis=1)


def _moments(x: Floats, values: Buckets) -> list[Floats]:
    """Sum of u^power over the values u from zero to x, for the powers 0, 1 and 2; each bucket is even over its width.

    Negative for negative x (and even power): sums grow outwards, so that one huge value does not swallow small ones.
    """
    zero = np.searchsorted(values.low, 0.0)  # no bucket straddles it
    index = np.searchsorted(values.high, x)  # the first bucket that does not end below x
    cut = np.minimum(index, len(values.counts) - 1)
    low, high, counts = values.low[cut], values.high[cut], values.counts[cut]
    partly, upto, found = (index < len(values.counts)) & (x > low), np.clip(x, low, high), []
    for power in range(3):
        whole = values.counts * _mean_power(values.low, values.high, values.high - values.low, power)
        sums = np.concatenate([-np.cumsum(whole[:zero][::-1])[::-1], [0.0], np.cumsum(whole[zero:])])
        part = counts * _mean_power(low, upto, high - low, power)
        found.append(sums[index] + np.where(partly, part, 0.0))
    return found


def _mean_power(low: Floats, high: Floats, width: Floats, power: int) -> Floats:
    """∫ u^power du from low to high, over width; low^power where there is no width."""
    integral = (high ** (power + 1) - low ** (power + 1)) / (power + 1)
    mean: Floats = np.divide(integral, width, out=low**power, where=width > 0)
    return mean


def without_atoms(values: Buckets) -> Buckets:
    """The values less those that are one constant repeated, such as the output of a dead channel.

    A constant is one integer's whole load: evening it out over that integer's bins is no loss. Left in, it makes the
    search shrink the range until the spike has an integer to itself: 0.69 was chosen where 6 was needed. A bucket is
    taken for one if it holds ATOM_SHARE of the values and ATOM_EXCESS times what those within ±ATOM_WINDOW of it
    (relative) hold on average; the excess is removed. So is a bucket without width, whose values are all the same.
    """
    counts = values.counts.astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    heavy = np.flatnonzero(counts > ATOM_SHARE * counts.sum())
    low = values.low[heavy]
    reach = np.abs(values.centres[heavy]) * ATOM_WINDOW  # by value, not rank: an empty bucket is a neighbour too
    first, last = (
        np.searchsorted(values.low, low - reach, side="left"),
        np.searchsorted(values.low, low + reach, "right"),
    )
    neighbours = (sums[last] - sums[first] - counts[heavy]) / ATOM_NEIGHBOURS
    atoms = counts[heavy] > ATOM_EXCESS * neighbours
    counts[heavy[atoms]] = neighbours[atoms]
    return _keep(replace(values, counts=counts), values.high > values.low)


def folds(scheme: Scheme) -> bool:
    """Whether the integers are the same either side of zero, so that |x| is all that matters."""
    return scheme.symmetric and scheme.signed


def nonzero(values: Buckets) -> Buckets:
    return _keep(values, (values.low != 0) | (values.high != 0))


def _keep(values: Buckets, which: npt.NDArray[np.bool_]) -> Buckets:
    which = which & (values.counts > 0)
    if which.all():  # as is usual: nothing is copied
        return values
    return Buckets(low=values.low[which], high=values.high[which], counts=values.counts[which])


def bounds(histogram: Histogram, scheme: Scheme, thresholds: Floats) -> tuple[Floats, Floats]:
    if folds(scheme):
        return -thresholds, thresholds
    low, high = (np.minimum(np.maximum(x, -thresholds), thresholds) for x in (histogram.minimum, histogram.maximum))
    return low, high
