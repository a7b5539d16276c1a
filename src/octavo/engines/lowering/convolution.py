"""Convolutions on oneDNN's int8 kernel."""

from typing import Any

import torch
from torch.fx import Node

from octavo.engines.lowering.build import Lowering
from octavo.engines.lowering.epilogue import clipped, epilogue, finish, operands, output
from octavo.network.edit import shape

aten = torch.ops.aten


def convolution(lowering: Lowering, node: Node) -> bool:
    """x [N, C, ...] with weight [O, C / groups, ...]; 1 or 2 axes of space."""
    x, weight = lowering.integers(node.args[0]), lowering.weight(node.args[1])
    scales = None if weight is None else weight.scales(0)
    bias = node.args[2] if len(node.args) > 2 else None
    geometry = _geometry(node)
    if x is None or weight is None or scales is None or geometry is None:
        return False
    if weight.real.ndim not in (3, 4) or len(shape(node)) != weight.real.ndim:  # no kernel for volumes, or no batch
        return False
    if bias is not None and lowering.tensor(bias) is None:
        return False
    end = epilogue(lowering, node, convolution=True)
    result = lowering.emit(
        torch.ops.octavo.int8_convolution.default,
        *operands(lowering, x, weight.integers(), scales, lowering.tensor(bias)),
        *geometry, *output(end), end.name, list(end.arguments),
    )  # fmt: skip
    finish(lowering, end, clipped(lowering, result, end.grid))
    lowering.ran(node, "convolution", "onednn_i8")
    return True


def _geometry(node: Node) -> tuple[list[int], list[int], list[int], int] | None:
    """(stride, padding, dilation, groups); None for a padding that is not the same on both sides."""
    axes = len(shape(node.args[1])) - 2  # type: ignore[arg-type]
    defaults: list[Any] = [[1] * axes, [0] * axes, [1] * axes, 1]
    given = list(node.args[3:])
    stride, padding, dilation, groups = given + defaults[len(given) :]
    kernel = shape(node.args[1])[2:]  # type: ignore[arg-type]
    dilation = _each(dilation, axes)
    if isinstance(padding, str):
        totals = [d * (int(k) - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        if any(total % 2 for total in totals):
            return None
        padding = [total // 2 for total in totals]
    return _each(stride, axes), _each(padding, axes), dilation, int(groups)


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values
