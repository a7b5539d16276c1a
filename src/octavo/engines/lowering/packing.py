"""The order in which `kernels/convolution.cpp` reads weights and what belongs to a channel.

One dot-product instruction multiplies four unsigned bytes by four signed ones in each of sixteen lanes. Weights
therefore lie [..., lane, 4]: a lane is an output channel, and the four are consecutive inputs of a dense convolution,
or taps of a depthwise one. Channels come in blocks of 64, four vectors of sixteen.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

LANES, BLOCK, FOUR = 16, 64, 4
SLIDES = (3, 5)  # widths of square windows whose columns stay in registers

# Where the channels of a block lie, so that packing four vectors of int32 into one of bytes gives them in order: in
# each quarter of vector v are channels 4v to 4v + 3 of that quarter's sixteen.
ORDER = torch.arange(BLOCK).reshape(FOUR, FOUR, FOUR).transpose(0, 1).reshape(BLOCK)


def pack_dense(weight: Tensor, of_channel: tuple[Tensor, ...], *, ordered: bool) -> tuple[Tensor, ...]:
    """(weights, *of_channel), packed: for each block [kernel h, kernel w · inputs / 4, lanes, 4].

    weight      int8 [outputs, inputs, kernel h, kernel w]
    of_channel  (starts, scales, offsets), [outputs]
    ordered     float32 comes out, whose channels lie in order; of bytes, those of a whole block are as in `ORDER`
    """
    outputs, inputs, height, width = weight.shape
    lanes = outputs + -outputs % LANES
    lines = weight.permute(2, 3, 1, 0).reshape(height, width * inputs, outputs)
    lines = pad(lines, (0, lanes - outputs, 0, -(width * inputs) % FOUR))
    fours = lines.reshape(height, -1, FOUR, lanes).transpose(2, 3)
    columns = _columns(outputs, lanes, ordered)
    blocks = [fours[:, :, columns[first : first + BLOCK]].flatten() for first in range(0, lanes, BLOCK)]
    return torch.cat(blocks), *(pad(values, (0, lanes - outputs))[columns] for values in of_channel)


def _columns(outputs: int, lanes: int, ordered: bool) -> Tensor:
    """Which channel stands in which place."""
    columns = torch.arange(lanes)
    whole = 0 if ordered else outputs // BLOCK * BLOCK
    columns[:whole] = columns[:whole].reshape(-1, BLOCK)[:, ORDER].flatten()
    return columns


def pack_depthwise(weight: Tensor, of_channel: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(weights, *of_channel), packed: for each block [fours of taps, lanes, 4].

    weight      int8 [channels, 1, kernel h, kernel w]
    of_channel  (starts, scales, offsets), [channels]

    The last block is the last 64 channels, so it may repeat some of the one before.
    """
    channels, _, height, width = weight.shape
    taps = pad(weight.reshape(channels, -1), (0, 1))  # the last one is none
    fours = taps[:, torch.tensor(_fours(height, width))]  # [channels, fours, 4]
    starts = [max(0, min(first, channels - BLOCK)) for first in range(0, channels, BLOCK)]
    block = torch.tensor(starts)[:, None] + ORDER  # [blocks, 64]
    present, block = block < channels, block.clamp(max=channels - 1)
    weights = fours[block] * present[:, :, None, None]
    return weights.transpose(1, 2).flatten(), *((values[block] * present).flatten() for values in of_channel)


def _fours(height: int, width: int) -> list[list[int]]:
    """The taps, four by four; −1 is none. In windows that slide, the first four of each column, then the rest."""
    slides = height == width and width in SLIDES
    tall = min(FOUR, height) if slides else 0
    columns = [[y * width + x if y < tall else -1 for y in range(FOUR)] for x in range(width)] if slides else []
    rest = list(range(tall * width, height * width))
    rest += [-1] * (-len(rest) % FOUR)
    return columns + [rest[first : first + FOUR] for first in range(0, len(rest), FOUR)]
