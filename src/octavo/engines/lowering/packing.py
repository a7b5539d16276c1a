"""The order in which `kernels/convolution.cpp` reads weights and what belongs to a channel.

One dot-product instruction multiplies a group of unsigned bytes by as many signed ones in each of sixteen lanes: four
with AVX-512 VNNI, two with AVX2 (`Isa`). Weights therefore lie [..., lane, group]: a lane is an output channel, and the
group are consecutive inputs of a dense convolution, or taps of a depthwise one. Channels come in blocks of vectors.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from octavo.engines.isa import Isa

LANES = 16
SLIDES = (3, 5)  # widths of square windows whose columns stay in registers


def _order(isa: Isa) -> Tensor:
    """Where the channels of a block lie, so that packing its vectors of int32 into one of bytes gives them in order: in
    each quarter of vector v are channels 4v to 4v + 3 of that quarter's share.
    """
    return torch.arange(isa.vectors * LANES).reshape(4, isa.vectors, 4).transpose(0, 1).flatten()


def pack_dense(
    weight: Tensor,
    of_channel: tuple[Tensor, ...],
    isa: Isa,
    *,
    ordered: bool,
    groups: int = 1,
    tap_by_tap: bool = False,
) -> tuple[Tensor, ...]:
    """(weights, *of_channel), packed: for each block [kernel h, kernel w · inputs / group, lanes, group].

    weight      int8 [outputs, inputs / groups, kernel h, kernel w]
    of_channel  (starts, scales, offsets), [outputs]
    ordered     float32 comes out, whose channels lie in order; of bytes, those of a whole block are as in `_order`
    groups      of channels; they follow each other
    tap_by_tap  rows of the kernel do not lie together in memory: [kernel h · kernel w, inputs / group, lanes, group]
    """
    if groups > 1:
        parts = zip(weight.chunk(groups), *(values.chunk(groups) for values in of_channel), strict=True)
        each = [pack_dense(own, tuple(of_own), isa, ordered=ordered, tap_by_tap=True) for own, *of_own in parts]
        return tuple(torch.cat(packed) for packed in zip(*each, strict=True))
    outputs, inputs, height, width = weight.shape
    if tap_by_tap:
        height, width = height * width, 1
    lanes = outputs + -outputs % LANES
    lines = weight.permute(2, 3, 1, 0).reshape(height, width * inputs, outputs)
    lines = pad(lines, (0, lanes - outputs, 0, -(width * inputs) % isa.group))
    tuples = lines.reshape(height, -1, isa.group, lanes).transpose(2, 3)
    columns, block = _columns(outputs, lanes, isa, ordered=ordered), isa.vectors * LANES
    blocks = [tuples[:, :, columns[first : first + block]].flatten() for first in range(0, lanes, block)]
    return torch.cat(blocks), *(pad(values, (0, lanes - outputs))[columns] for values in of_channel)


def _columns(outputs: int, lanes: int, isa: Isa, *, ordered: bool) -> Tensor:
    """Which channel stands in which place."""
    columns, block = torch.arange(lanes), isa.vectors * LANES
    whole = 0 if ordered else outputs // block * block
    columns[:whole] = columns[:whole].reshape(-1, block)[:, _order(isa)].flatten()
    return columns


def pack_depthwise(
    weight: Tensor, of_channel: tuple[Tensor, ...], isa: Isa, *, dilated: bool = False
) -> tuple[Tensor, ...]:
    """(weights, *of_channel), packed: for each block [groups of taps, lanes, group].

    weight      int8 [channels, 1, kernel h, kernel w]
    of_channel  (starts, scales, offsets), [channels]

    The last block are the last channels, so it may repeat some of the one before.
    """
    channels, _, height, width = weight.shape
    size = isa.vectors * LANES
    taps = pad(weight.reshape(channels, -1), (0, 1))  # the last one is none
    groups = taps[:, torch.tensor(_taps(height, width, isa.group, slides=not dilated))]  # [channels, groups, group]
    starts = [max(0, min(first, channels - size)) for first in range(0, channels, size)]
    block = torch.tensor(starts)[:, None] + _order(isa)  # [blocks, size]
    present, block = block < channels, block.clamp(max=channels - 1)
    weights = groups[block] * present[:, :, None, None]
    return weights.transpose(1, 2).flatten(), *((values[block] * present).flatten() for values in of_channel)


def _taps(height: int, width: int, group: int, *, slides: bool) -> list[list[int]]:
    """The taps in groups; −1 is none. In windows that slide, the first of each column, then the rest."""
    slides = slides and height == width and width in SLIDES
    tall = min(group, height) if slides else 0
    columns = [[y * width + x if y < tall else -1 for y in range(group)] for x in range(width)] if slides else []
    rest = list(range(tall * width, height * width))
    rest += [-1] * (-len(rest) % group)
    return columns + [rest[first : first + group] for first in range(0, len(rest), group)]
