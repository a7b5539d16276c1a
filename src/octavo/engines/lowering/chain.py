"""Convolutions of images on Octavo's own kernel, `kernels/convolution.cpp`: several in a row, and the addition after.

    dense k×k or 1×1  ─▶  depthwise k×k  ─▶  dense 1×1 + skip  ─▶  rounding

A chain grows link by link: a convolution that alone reads what a chain writes replaces it by a longer one. In a chain
nothing but its input and its result is written to memory.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from octavo.engines.isa import isa
from octavo.engines.lowering.build import Grid, Integers, Lowering, grid_of, only_reader, quantize_to_uint8
from octavo.engines.lowering.convolution import Convolution, onednn_pads, read
from octavo.engines.lowering.epilogue import ACTIVATIONS, Epilogue, finish, redundant
from octavo.engines.lowering.packing import pack_dense, pack_depthwise
from octavo.engines.lowering.sizes import same_sizes
from octavo.network.edit import shape

aten = torch.ops.aten

Bounds = tuple[float, float]  # of an activation, in real numbers
UNBOUNDED: Bounds = (-torch.inf, torch.inf)
REAL = Grid(scale=1.0, zero=0, low=0, high=255)  # of results in float32, which are not rounded


@dataclass(frozen=True, kw_only=True)
class Link:
    """One convolution of a chain.

    node       of the planned graph
    weight     int8 [outputs, inputs or 1, kernel h, kernel w]
    channels   (starts, scales, offsets) of its sums, int32 and float32 [outputs]: what they begin with, are multiplied
               by, and what is added then
    depthwise  one filter a channel
    pointwise  1×1 with stride 1 and no padding: a row needs the same row of its input, and no other
    groups     of channels, of a dense one
    dilation   along the height and the width
    facts      of the kernel: depthwise, outputs, kernel h and w, stride h and w, dilation h and w, padding h and w
               before and behind, zero, low, high, groups
    """

    node: Node
    weight: Tensor
    channels: tuple[Tensor, Tensor, Tensor]
    depthwise: bool
    pointwise: bool
    groups: int
    dilation: tuple[int, int]
    facts: tuple[int, ...]

    def packed(self, *, to_float: bool) -> tuple[Tensor, ...]:
        """(weights, starts, scales, offsets) as the kernel reads them."""
        if self.depthwise:
            return pack_depthwise(self.weight, self.channels, isa(), dilated=self.dilation != (1, 1))
        tap_by_tap = self.groups > 1 or self.dilation[1] > 1
        return pack_dense(
            self.weight, self.channels, isa(), ordered=to_float, groups=self.groups, tap_by_tap=tap_by_tap
        )


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What one call of the kernel does: `links` of `x`, and `skip_scale` times `skip` added to the last."""

    x: Node
    links: tuple[Link, ...]
    skip: Node | None = None
    skip_scale: float = 0.0


@dataclass(frozen=True, kw_only=True)
class End:
    """What follows the sums of a convolution: an addition, an activation that bounds, and rounding."""

    epilogue: Epilogue
    skip: Integers | None
    bounds: Bounds

    @property
    def grid(self) -> Grid:
        return self.epilogue.grid or REAL

    @property
    def skip_scale(self) -> float:
        """Steps of the result in one step of `skip`."""
        return 0.0 if self.skip is None else self.skip.grid.scale / self.grid.scale


def chain(lowering: Lowering, node: Node) -> bool:
    """x [N, C, H, W] or [N, C, W]; followed by nothing, ReLU, ReLU6 or another bound.

    What is rare (groups, dilation, one axis, filters of each channel that end in float32) is left to oneDNN, where it
    is exact and can.
    """
    it = read(lowering, node)
    if it is None:
        return False
    depthwise = it.groups == it.weight.shape[0] > 1 and it.weight.shape[1] == 1
    end = _end(lowering, node, adds=not depthwise)
    to_float = end.epilogue.grid is None
    rare = it.weight.ndim == 3 or it.dilation != [1, 1] or (to_float if depthwise else it.groups > 1)
    if rare and isa().onednn and onednn_pads(it):
        return False
    flat = it.weight.ndim == 3
    it, source = _with_padding(_upright(it), cast(Node, node.args[0]))
    link = _link(node, it, end, depthwise=depthwise)
    if link is None:
        return False
    grown = _grown(lowering, it.x.node, link, alone=len(source.users) == 1, flat=flat)
    if end.skip is not None:
        skip = _unsqueezed(lowering, end.skip.node) if flat else end.skip.node
        grown = replace(grown, skip=skip, skip_scale=end.skip_scale)
    result = _call(lowering, grown, to_float=to_float)
    lowering.ran(result, *(each.node for each in grown.links))
    result = lowering.emit(aten.squeeze.dim, result, 2) if flat else result
    lowering.chains[result] = grown
    finish(lowering, end.epilogue, result)
    return True


def _unsqueezed(lowering: Lowering, x: Node) -> Node:
    """[N, C, 1, W] of x [N, C, W]."""
    return lowering.emit(aten.unsqueeze.default, x, 2)


def _upright(it: Convolution) -> Convolution:
    """`it` over two axes; a convolution over one is that of images that are one pixel high."""
    if it.weight.ndim == 4:
        return it
    return replace(
        it, weight=it.weight.unsqueeze(2), stride=[1, *it.stride], padding=[0, *it.padding],
        behind=[0, *it.behind], dilation=[1, *it.dilation],
    )  # fmt: skip


def _with_padding(it: Convolution, source: Node) -> tuple[Convolution, Node]:
    """(`it` with the padding that its input had on the way, what is padded), `source` being its input."""
    pad = it.x.node
    if pad.target is not aten.constant_pad_nd.default or len(source.users) > 1:
        return it, source
    widths: list[Any] = list(cast(Any, pad.args[1]))  # in pairs, the last axis first
    if len(widths) not in (2, 4) or not all(isinstance(width, int) and width >= 0 for width in widths):
        return it, source
    left, right, top, bottom = (*widths, 0, 0)[:4]
    padded = replace(
        it,
        x=replace(it.x, node=cast(Node, pad.args[0])),
        padding=[it.padding[0] + top, it.padding[1] + left],
        behind=[it.behind[0] + bottom, it.behind[1] + right],
    )
    return padded, cast(Node, source.args[0])


def _end(lowering: Lowering, node: Node, *, adds: bool) -> End:
    """What the kernel does after the sums of `node`: as much as it can."""
    ends, skip, bounds = [node], None, UNBOUNDED
    reader = only_reader(node)
    if reader is not None and adds:
        skip = _skip(lowering, node, reader)
        if skip is not None:
            ends.append(reader)
            reader = only_reader(reader)
    found = None if reader is None else _bounds(reader)
    if reader is not None and found is not None and lowering.rounding(only_reader(reader)) is not None:
        bounds = found
        ends.append(reader)
        reader = only_reader(reader)
    site = lowering.rounding(reader)
    grid = None if site is None else grid_of(site)
    if grid is not None and grid.channels is not None and not (skip is None and _is_free(bounds, grid)):
        return End(epilogue=Epilogue(ends=(node,)), skip=None, bounds=UNBOUNDED)  # what follows has one step for all
    if grid is None or reader is None:
        return End(epilogue=Epilogue(ends=tuple(ends)), skip=skip, bounds=bounds)
    return End(epilogue=Epilogue(grid=grid, ends=(*ends, reader)), skip=skip, bounds=bounds)


def _is_free(bounds: Bounds, grid: Grid) -> bool:
    """Whether the integers of every channel lie within `bounds`, or may be made to by one number for all."""
    return redundant(bounds, grid) or bounds == (0.0, torch.inf)


def _bounds(node: Node) -> Bounds | None:
    """Those of the activation `node`, if to bound is all it does."""
    if node.target not in ACTIVATIONS:
        return None
    name, arguments, _ = ACTIVATIONS[node.target](node)
    return cast("Bounds | None", {"relu": (0.0, torch.inf), "hardtanh": arguments}.get(name))


def _skip(lowering: Lowering, node: Node, addition: Node) -> Integers | None:
    """The other operand of `addition`, if it is there already, in integers and of the same shape."""
    if addition.target is not aten.add.Tensor or addition.kwargs:
        return None
    others = [argument for argument in addition.args if isinstance(argument, Node) and argument is not node]
    if len(others) != 1 or not same_sizes(shape(others[0]), shape(node)):
        return None
    return lowering.integers(others[0])


def _link(node: Node, it: Convolution, end: End, *, depthwise: bool) -> Link | None:
    """`it` as the kernel has it; None if a result might leave int32, which the kernel does not look out for."""
    grid, weight = end.grid, it.weight.double().flatten(1)
    starts = -it.x.grid.zero * weight.sum(1)
    scales = it.scales.double() * it.x.grid.scale / grid.scales()
    offsets = torch.full_like(scales, grid.zero)
    if it.bias is not None:
        offsets += it.bias.double() / grid.scales()
    if end.skip is not None:
        offsets -= end.skip_scale * end.skip.grid.zero
    most = 255 * weight.abs().sum(1) * scales.clamp(min=1) + offsets.abs() + 255 * end.skip_scale
    if not bool((most < 2**31).all()):
        return None
    low, high = _bounds_in_steps(end)
    kernel = list(it.weight.shape[2:])
    return Link(
        node=node,
        weight=it.weight,
        channels=(starts.int(), scales.float(), offsets.float()),
        depthwise=depthwise,
        pointwise=not depthwise and (kernel, it.stride, it.padding, it.behind) == ([1, 1], [1, 1], [0, 0], [0, 0]),
        groups=1 if depthwise else it.groups,
        dilation=(it.dilation[0], it.dilation[1]),
        facts=(
            int(depthwise), it.weight.shape[0], *kernel, *it.stride, *it.dilation, *it.padding, *it.behind,
            it.x.grid.zero, round(low), round(high), 1 if depthwise else it.groups,
        ),
    )  # fmt: skip


def _bounds_in_steps(end: End) -> tuple[float, float]:
    """The lowest and the highest integer of the result, of all channels alike."""
    grid = end.grid
    if grid.channels is not None:  # they begin at 0 or below, and end before the bounds
        return float(max(grid.low, grid.zero) if end.bounds[0] == 0 else grid.low), float(grid.high)
    low, high = (min(max(bound / grid.scale + grid.zero, grid.low), grid.high) for bound in end.bounds)
    return low, high


def _grown(lowering: Lowering, x: Node, link: Link, *, alone: bool, flat: bool) -> Chain:
    """The chain that wrote `x`, longer by `link`; or a new one. alone: nothing else reads `x`; flat: x is [N, C, W]."""
    before: Chain | None = lowering.chains.get(x)
    if before is not None and before.skip is None and alone:
        last = before.links[-1]
        if (link.depthwise and not last.depthwise) or (link.pointwise and last.depthwise):
            return replace(before, links=(*before.links, link))
    computed = x.target is quantize_to_uint8
    x = _unsqueezed(lowering, x) if flat else x
    if computed:  # by Inductor, which can as well write it in the kernel's order
        x = lowering.emit(aten.clone.default, x, memory_format=torch.channels_last)
    return Chain(x=x, links=(link,))


def _call(lowering: Lowering, chain: Chain, *, to_float: bool) -> Node:
    last = len(chain.links) - 1
    packed = [link.packed(to_float=to_float and index == last) for index, link in enumerate(chain.links)]
    constants = [[lowering.constant(tensor) for tensor in tensors] for tensors in zip(*packed, strict=True)]
    facts = [fact for link in chain.links for fact in link.facts]
    operator = torch.ops.octavo.int8_convolutions.default
    return lowering.emit(operator, chain.x, chain.skip, chain.skip_scale, *constants, facts, to_float)
