"""How much of a histogram lies between edges: the inner loop of a search by entropy, which is run for every channel.

The edges of one threshold ascend as the buckets do, so the bucket that an edge cuts is looked for from that of the edge
before, once for all sums. `numpy.searchsorted`, anew for each sum, was more than half of what a search took.
"""

import numpy as np

from octavo.numerics.histogram import Buckets, Counts, Floats


def between(edges: Floats, values: Buckets, *weights: Floats | Counts) -> Floats:
    """Σ weight of what lies between neighbouring edges, [weights, rows, edges − 1], each bucket's being even over it.

    edges    [rows, edges]  ascending in each row; may be infinite
    weights  [buckets] each
    """
    from octavo.numerics.loops import add_up_between, sums_outwards  # noqa: PLC0415 (numba is slow to import)

    stacked = np.stack(weights).astype(np.float64, copy=False)
    found = np.empty((len(weights), len(edges), edges.shape[1] - 1))
    zero = np.searchsorted(values.low, 0.0)  # no bucket straddles it
    add_up_between(edges, values.low, values.high, stacked, sums_outwards(stacked, zero), found)
    return found
