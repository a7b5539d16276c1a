"""The ranges of channels: one each, or one for all that a sum runs over."""

import math
from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch import Tensor
from torch.fx import Node

from octavo.network.operations import operands
from octavo.network.plan import Quantizer
from octavo.numerics.affine import around_one_zero_point
from octavo.numerics.channels import ChannelHistogram
from octavo.numerics.histogram import Histogram
from octavo.numerics.ranges import Range


def ranges_of_channels(
    quantizer: Quantizer,
    nodes: Mapping[str, Node],
    seen: ChannelHistogram,
    of_one: Callable[[Quantizer, Histogram], Range],
) -> tuple[Tensor, Tensor]:
    """The range of every channel, float64 [channels] each; of neighbours that one sum runs over, the same for all.

    A channel that was zero throughout has the range of all the others together: it may wake up. Zero is the same
    integer in all of them.

    of_one  (quantizer, histogram of one channel) → its range
    """
    neighbours = _neighbours(quantizer, nodes)
    found: list[Range] = []
    for first in range(0, seen.channels, neighbours):
        histogram = reduce(Histogram.merge, map(seen.channel, range(first, first + neighbours)))
        found += [of_one(quantizer, histogram)] * neighbours
    low, high = torch.tensor(found, dtype=torch.float64).T
    dead = (low == 0) & (high == 0)
    low, high = low.masked_fill(dead, float(low.min())), high.masked_fill(dead, float(high.max()))
    return (low, high) if quantizer.scheme.symmetric else around_one_zero_point(low, high, quantizer.scheme)


def _neighbours(quantizer: Quantizer, nodes: Mapping[str, Node]) -> int:
    """How many channels side by side must share a scale, for all readers of `quantizer`."""
    shared = [
        operand.free.get(quantizer.scheme.axis, 1)
        for site in quantizer.sites
        for operand in operands(nodes[site.node])
        if operand.role == site.role and quantizer.scheme.axis is not None
    ]
    return math.lcm(*shared)
