"""Convolutions of images on Octavo's own kernel, `kernels/convolution.cpp`: several in a row, and the addition after.

    dense k×k or 1×1  ─▶  depthwise k×k  ─▶  dense 1×1 + skip  ─▶  rounding

A chain grows link by link: a convolution that alone reads what a chain writes replaces it by a longer one. In a chain
nothing but its input and its result is written to memory.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from octavo.engines.lowering.build import Grid, Integers, Lowering, grid_of, only_reader, quantize_to_uint8
from octavo.engines.lowering.convolution import Convolution, read
from octavo.engines.lowering.epilogue import ACTIVATIONS, Epilogue, finish
from octavo.engines.lowering.packing import pack_dense, pack_depthwise
from octavo.machine import machine
from octavo.network.edit import shape

aten = torch.ops.aten

FULL = Grid(scale=1.0, zero=0, low=0, high=255)  # of a result in float32: it is not rounded


@dataclass(frozen=True, kw_only=True)
class Link:
    """One convolution of a chain.

    factors  (scales, offsets) of its sums, float64 [outputs]: what they are multiplied by, and what is added
    pointwise  1×1 with stride 1 and no padding: a row needs the same row of its input, and no other
    facts    of the kernel: depthwise, outputs, kernel h and w, stride h and w, padding h and w before and behind, zero,
             low, high
    """

    weight: Tensor
    factors: tuple[Tensor, Tensor]
    depthwise: bool
    pointwise: bool
    facts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What one call of the kernel does."""

    x: Node
    links: tuple[Link, ...]
    skip: Node | None = None
    skip_scale: float = 0.0


@dataclass(frozen=True, kw_only=True)
class End:
    """What follows the sums: an addition, bounds, and rounding.

    low, high  bounds of the activation, in real numbers
    """

    epilogue: Epilogue
    skip: Integers | None
    low: float
    high: float


def vectorized() -> bool:
    """Whether this CPU has the instructions that the kernel is written in."""
    return "avx512_vnni" in machine()["flags"]


def chain(lowering: Lowering, node: Node) -> bool:
    """x [N, C, H, W]; dense, or one filter a channel; followed by nothing, ReLU, ReLU6 or another clamp."""
    it = read(lowering, node) if vectorized() else None
    if it is None or it.weight.ndim != 4 or it.dilation != [1, 1]:
        return False
    source = node.args[0]
    assert isinstance(source, Node)
    it, source = _with_padding(it, source)
    depthwise = it.groups == it.weight.shape[0] > 1 and it.weight.shape[1] == 1
    end = _end(lowering, node, depthwise)
    if (it.groups > 1 and not depthwise) or end is None:
        return False
    link = _link(it, end, depthwise)
    if link is None:
        return False
    grown = _grown(lowering, it, link, alone=len(source.users) == 1)
    if end.skip is not None:
        grown = replace(grown, skip=end.skip.node, skip_scale=end.skip.grid.scale / _grid(end).scale)
    result = _emit(lowering, grown, to_float=end.epilogue.grid is None)
    lowering.chains[result] = grown
    finish(lowering, end.epilogue, result)
    lowering.ran(node, "convolution", "octavo_i8")
    return True


def _grid(end: End) -> Grid:
    return end.epilogue.grid or FULL


def _end(lowering: Lowering, node: Node, depthwise: bool) -> End | None:
    """What the kernel does after the sums of `node`; None if it cannot."""
    ends, skip, low, high = [node], None, -torch.inf, torch.inf
    reader = only_reader(node)
    if reader is not None and reader.target is aten.add.Tensor and not reader.kwargs and not depthwise:
        skip = _skip(lowering, node, reader)
        if skip is not None:
            ends.append(reader)
            reader = only_reader(reader)
    if reader is not None and reader.target in ACTIVATIONS:
        name, arguments, _ = ACTIVATIONS[reader.target](reader)
        low, high = {"relu": (0.0, torch.inf), "hardtanh": arguments}.get(name, (torch.nan, torch.nan))
        after = only_reader(reader)
        if low != low or lowering.site(after) is None:  # another activation, or a result in float: Inductor's to do
            low, high = -torch.inf, torch.inf
        else:
            ends.append(reader)
            reader = after
    site = lowering.site(reader)
    if site is None or reader is None:
        return None if depthwise else End(epilogue=Epilogue(ends=tuple(ends)), skip=skip, low=low, high=high)
    return End(epilogue=Epilogue(grid=grid_of(site.params), ends=(*ends, reader)), skip=skip, low=low, high=high)


def _skip(lowering: Lowering, node: Node, addition: Node) -> Integers | None:
    """The other operand of `addition`, if it is there already, in integers and of the same shape."""
    others = [argument for argument in addition.args[:2] if argument is not node]
    other = others[0] if len(others) == 1 and isinstance(others[0], Node) else None
    if other is None or [str(size) for size in shape(other)] != [str(size) for size in shape(node)]:
        return None
    return lowering.integers(other)


def _link(it: Convolution, end: End, depthwise: bool) -> Link | None:
    """`it` as the kernel has it; None if a result might leave int32."""
    grid, weight = _grid(end), it.weight
    scales = it.scales.double() * it.x.grid.scale / grid.scale
    bias = torch.zeros_like(scales) if it.bias is None else it.bias.double() / grid.scale
    offsets = bias + grid.zero - scales * it.x.grid.zero * weight.double().flatten(1).sum(1)
    skip_scale = 0.0 if end.skip is None else end.skip.grid.scale / grid.scale
    if end.skip is not None:
        offsets -= skip_scale * end.skip.grid.zero
    most = 255 * weight.double().abs().flatten(1).sum(1) * scales + offsets.abs() + 255 * skip_scale
    if not bool((most < 2**31).all()):
        return None
    low, high = (
        int(min(max(round(bound / grid.scale) + grid.zero if abs(bound) < torch.inf else bound, grid.low), grid.high))
        for bound in (end.low, end.high)
    )
    kernel = list(weight.shape[2:])
    return Link(
        weight=weight,
        factors=(scales, offsets),
        depthwise=depthwise,
        pointwise=not depthwise and (kernel, it.stride, it.padding, it.behind) == ([1, 1], [1, 1], [0, 0], [0, 0]),
        facts=(int(depthwise), weight.shape[0], *kernel, *it.stride, *it.padding, *it.behind, it.x.grid.zero, low, high),
    )


def _with_padding(it: Convolution, source: Node) -> tuple[Convolution, Node]:
    """(`it` with the padding that its input had on the way, what is padded), `source` being its input."""
    padding = it.x.node
    if padding.target is not aten.constant_pad_nd.default or len(source.users) > 1:
        return it, source
    inner, widths, *_ = padding.args
    if len(widths) not in (2, 4) or min(widths) < 0:  # in pairs, the last axis first
        return it, source
    left, right, top, bottom = (*widths, 0, 0)[:4]
    padded = replace(
        it,
        x=Integers(node=inner, grid=it.x.grid),
        padding=[it.padding[0] + top, it.padding[1] + left],
        behind=[it.behind[0] + bottom, it.behind[1] + right],
    )
    return padded, source.args[0]


def _grown(lowering: Lowering, it: Convolution, link: Link, *, alone: bool) -> Chain:
    """The chain that wrote what `it` reads, and `it` alone, longer by `link`; or a new one."""
    before = lowering.chains.get(it.x.node)
    if before is not None and before.skip is None and alone:
        last = before.links[-1]
        if (link.depthwise and not last.depthwise) or (link.pointwise and last.depthwise):
            return replace(before, links=(*before.links, link))
    return Chain(x=_channels_last(lowering, it.x.node), links=(link,))


def _channels_last(lowering: Lowering, x: Node) -> Node:
    """`x` as the kernel reads it: where Inductor computes it, it can as well write it in that order."""
    if x.target is not quantize_to_uint8:
        return x
    return lowering.emit(aten.clone.default, x, memory_format=torch.channels_last)


def _emit(lowering: Lowering, chain: Chain, *, to_float: bool) -> Node:
    weights, scales, offsets = [], [], []
    for index, link in enumerate(chain.links):
        factors = (link.factors[0].float(), link.factors[1].float())
        ordered = to_float and index == len(chain.links) - 1
        packed = (
            pack_depthwise(link.weight, factors) if link.depthwise else pack_dense(link.weight, factors, ordered=ordered)
        )
        for into, tensor in zip((weights, scales, offsets), packed, strict=True):
            into.append(lowering.constant(tensor))
    facts = [fact for link in chain.links for fact in link.facts]
    return lowering.emit(
        torch.ops.octavo.int8_convolutions.default,
        chain.x, chain.skip, chain.skip_scale, weights, scales, offsets, facts, to_float,
    )  # fmt: skip
