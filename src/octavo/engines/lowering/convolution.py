"""Convolutions: what they read, and oneDNN's int8 kernel for them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from octavo.engines.isa import isa
from octavo.engines.lowering.build import Integers, Lowering
from octavo.engines.lowering.epilogue import CONVOLUTION, clipped, epilogue, finish, operands, output, per_step
from octavo.network.edit import argument, shape

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution over 1 or 2 axes of space, on integers.

    weight   int8 [outputs, inputs / groups, ...]
    scales   float32 [outputs], of the weights; times those of the input's channels, where these have their own
    bias     float32 [outputs], or None
    padding  before the first value of each axis
    behind   behind the last
    """

    x: Integers
    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    behind: list[int]
    dilation: list[int]
    groups: int


def read(lowering: Lowering, node: Node) -> Convolution | None:
    """The convolution `node`; None if no kernel can have it: its operands are not integers of the usual form, it has no
    batch or is over volumes.
    """
    x = lowering.integers(argument(node, "input"), of_channels=True)
    weight, bias = lowering.weight(argument(node, "weight")), argument(node, "bias")
    scales = None if weight is None else weight.scales(0)
    if x is None or weight is None or scales is None:
        return None
    if weight.real.ndim not in (3, 4) or len(shape(node)) != weight.real.ndim:
        return None
    if bias is not None and lowering.tensor(bias) is None:
        return None
    stride, (padding, behind), dilation, groups = _geometry(node)
    if x.grid.channels is not None:
        own = x.grid.scales().reshape(groups, -1)
        if not bool((own == own[:, :1]).all()):  # within a sum they would be no factor
            return None
        scales = (scales.double() * own[:, 0].repeat_interleave(len(scales) // groups)).float()
    return Convolution(
        x=x, weight=weight.integers(), scales=scales, bias=lowering.tensor(bias),
        stride=stride, padding=padding, behind=behind, dilation=dilation, groups=groups,
    )  # fmt: skip


def onednn_pads(it: Convolution) -> bool:
    """Whether oneDNN can: it pads both sides alike."""
    return it.padding == it.behind


def convolution(lowering: Lowering, node: Node) -> bool:
    """oneDNN's kernel, where it is exact, with the activation and the rounding inside."""
    it = read(lowering, node) if isa().onednn else None
    if it is None or not onednn_pads(it):
        return False
    end = epilogue(lowering, node, CONVOLUTION[it.weight.ndim - 2], of_channels=True)
    result = lowering.emit(
        torch.ops.octavo.int8_convolution.default,
        *operands(lowering, it.x, it.weight, *per_step(end, it.scales, it.bias)),
        it.stride, it.padding, it.dilation, it.groups, *output(end), end.name, list(end.arguments),
    )  # fmt: skip
    lowering.ran(result, node)
    finish(lowering, end, clipped(lowering, result, end.grid))
    return True


def _geometry(node: Node) -> tuple[list[int], tuple[list[int], list[int]], list[int], int]:
    """(stride, (padding before, behind), dilation, groups); of an odd padding, the larger half is behind."""
    stride, padding, dilation = (argument(node, name) for name in ("stride", "padding", "dilation"))
    kernel = shape(argument(node, "weight"))[2:]
    axes = len(kernel)
    dilation = _each(dilation, axes)
    totals = (
        [2 * pad for pad in _each(padding, axes)]
        if not isinstance(padding, str)
        else [d * (int(k) - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    )
    before = [total // 2 for total in totals]
    behind = [total - half for total, half in zip(totals, before, strict=True)]
    return _each(stride, axes), (before, behind), dilation, int(argument(node, "groups"))


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values
