"""The part below zero of GELU, SiLU and their like, which a wide range would round away (paper §5.3, GELU10).

They reach down to −0.17 … −0.38 and up without end. Where the largest value is 50, one of 255 steps is 0.2, and what
the activation tells below zero is one integer. A shorter range keeps it, and clips what lies beyond. Which loss is
smaller the histogram says: of the values below zero and of those above, each half's error beside its own energy.
"""

import math
from collections.abc import Iterable

from torch.fx import Node

from octavo.network.operations import NEGATIVE_LOBE
from octavo.numerics.histogram import Histogram
from octavo.numerics.losses import error_of_halves
from octavo.numerics.ranges import Range, candidates
from octavo.numerics.scheme import Scheme

INTEGERS = 2  # that the part below zero must reach, or the range is looked at
WHY = f"the activation's part below zero would be less than {INTEGERS} integers"


def with_lobe(sources: Iterable[Node], histogram: Histogram, scheme: Scheme, found: Range) -> Range:
    """`found`, the range of `histogram`; or a shorter one of less error, if its lobe is rounded away.

    sources  what has this range
    scheme   per tensor: the histogram may be that of one channel
    """
    low, high = found
    if histogram.minimum >= 0:  # a channel that has no part below zero
        return found
    lobes = [NEGATIVE_LOBE.get(source.target, math.inf) for source in sources]
    step = max(abs(low), abs(high)) / scheme.qmax if scheme.symmetric else (high - low) / (scheme.qmax - scheme.qmin)
    if scheme.bits < 8 or max(lobes) >= INTEGERS * step:
        return found
    thresholds = candidates(max(lobes), high)
    threshold = float(thresholds[int(error_of_halves(histogram, scheme, thresholds).argmin())])
    return (max(low, -threshold), threshold) if threshold < high else found
