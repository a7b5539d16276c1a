"""Linears on an int8 kernel, oneDNN's or, by rows, our own: those that read the same and end alike become one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from octavo.engines.isa import isa
from octavo.engines.lowering.build import Grid, Integers, Lowering, Rows, Weight, only_reader, readers
from octavo.engines.lowering.epilogue import ACTIVATIONS, LINEAR, Epilogue, clipped, epilogue, finish, operands, output
from octavo.engines.lowering.product import product
from octavo.network.edit import argument, shape

aten = torch.ops.aten
BY_ROWS = {("relu", ""), ("gelu", "none")}  # what our own kernel does at its end


@dataclass(frozen=True, kw_only=True)
class _Linear:
    """One linear to lower: its node, int8 weight [out, in], a scale for each output, bias and epilogue."""

    node: Node
    integers: Tensor
    scales: Tensor
    bias: Tensor | None
    end: Epilogue

    @property
    def kind(self) -> tuple[Any, ...]:
        """Linears of one kind can be one."""
        fits = self.end.grid is None or (self.end.grid.low, self.end.grid.high) == (0, 255)
        own = None if fits else self.node
        return self.end.name, self.end.arguments, self.end.algorithm, self.end.grid is None, own


def linear(lowering: Lowering, node: Node) -> bool:
    """x [..., in] · weight [out, in]ᵀ + bias, with those that read the same x and end alike."""
    x = _read(lowering, node)
    first = _linear(lowering, node, x)
    if x is None or first is None:
        return False
    source = argument(node, "input")
    same = [other for other in readers(source) if other.target is node.target]
    siblings = [other for other in same if argument(other, "input") is source]
    found = [_linear(lowering, other, x) for other in siblings if other not in lowering.values]
    joined = [row for row in found if row is not None and row.kind == first.kind]
    _write_linear(lowering, x, joined if first.end.name == "none" else [first])
    return True


def _read(lowering: Lowering, node: Node) -> Integers | Rows | None:
    """What `node` reads beside its weight."""
    source = node.args[0]  # a matmul calls it otherwise
    return lowering.integers(source) or lowering.rows(source)


def _linear(lowering: Lowering, node: Node, x: Integers | Rows | None) -> _Linear | None:
    weight, bias = _weight(lowering, node), argument(node, "bias")
    scales = None if weight is None else weight.scales(0)
    if weight is None or scales is None or len(shape(node)) < 2:
        return None
    if bias is not None and lowering.tensor(bias) is None:
        return None
    return _Linear(
        node=node,
        integers=weight.integers(),
        scales=scales,
        bias=lowering.tensor(bias),
        end=_end(lowering, node, x),
    )


def _end(lowering: Lowering, node: Node, x: Integers | Rows | None) -> Epilogue:
    """By rows, the kernel ends in float32: the next rows have to be there before they can be rounded."""
    if not isinstance(x, Rows):
        return epilogue(lowering, node, LINEAR)
    reader = only_reader(node)
    if reader is not None and reader.target in ACTIVATIONS:
        name, _, algorithm = ACTIVATIONS[reader.target](reader)
        if (name, algorithm) in BY_ROWS:
            return Epilogue(name=name, ends=(node, reader))
    return Epilogue(ends=(node,))


def _weight(lowering: Lowering, node: Node) -> Weight | None:
    read = argument(node, "weight")
    weight, site = lowering.weight(read), lowering.rounding(read)
    if weight is None and site is not None:  # not reached yet: it belongs to a later sibling
        weight = lowering.rounded(read) if lowering.tensor(read.args[0]) is not None else None
    return weight


def _write_linear(lowering: Lowering, x: Integers | Rows, rows: list[_Linear]) -> None:
    """One kernel for all `rows`; each of them is a slice of its result.

    oneDNN gives all outputs one scale and zero-point, those of the first row. The others' go into their weight scales
    and bias: u = sum·scale·(s₀/s) / s₀ + [bias·(s₀/s) + (z − z₀)·s₀] / s₀ + z₀.
    """
    grid = rows[0].end.grid
    scales, biases = zip(*(_towards(row, grid) for row in rows), strict=True)
    bias = (
        None
        if all(b is None for b in biases)
        else torch.cat([torch.zeros(len(s)) if b is None else b for b, s in zip(biases, scales, strict=True)])
    )
    nodes, weight = [row.node for row in rows], torch.cat([row.integers for row in rows])
    result = _qlinear(lowering, nodes, x, weight, torch.cat(scales), bias, rows[0].end)
    start = 0
    for row in rows:
        size = len(row.scales)
        part = result if len(rows) == 1 else lowering.emit(aten.slice.Tensor, result, -1, start, start + size)
        finish(lowering, row.end, part)
        start += size


def _towards(row: _Linear, grid: Grid | None) -> tuple[Tensor, Tensor | None]:
    """(scales, bias) of `row` for outputs on `grid` in place of its own."""
    own = row.end.grid
    if grid is None or own is None or own == grid:
        return row.scales, row.bias
    factor, shift = grid.scale / own.scale, (own.zero - grid.zero) * grid.scale
    bias = torch.zeros(len(row.scales)) if row.bias is None else row.bias
    return row.scales * factor, bias * factor + shift


def _qlinear(
    lowering: Lowering,
    nodes: list[Node],
    x: Integers | Rows,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    end: Epilogue,
) -> Node:
    """One kernel for all `nodes`: x [..., in] · weight [out, in]ᵀ, int8."""
    if isinstance(x, Rows):
        constants = [None if one is None else lowering.constant(one) for one in (weight.contiguous(), scales, bias)]
        operator = torch.ops.octavo.int8_linear_rows.default
        result = lowering.emit(operator, x.node, *constants, x.highest, x.lowest < 0, end.name)
        lowering.ran(result, *nodes)
        return result
    ours = torch.ops.octavo.int8_linear_of_bytes.default
    result = lowering.emit(
        torch.ops.octavo.int8_linear.default if isa().onednn else ours,
        *operands(lowering, x, weight, scales, bias),
        *output(end), end.name, list(end.arguments), end.algorithm,
    )  # fmt: skip
    lowering.ran(result, *nodes)
    return clipped(lowering, result, end.grid)


def matmul(lowering: Lowering, node: Node) -> bool:
    """With a constant matrix on the right, a linear without bias; else a product of two activations."""
    x, weight = _read(lowering, node), lowering.weight(node.args[1])
    if weight is None:
        return product(lowering, node)
    scales = weight.scales(-1)
    if x is None or scales is None or weight.real.ndim != 2 or len(shape(node)) < 2:
        return False
    end = _end(lowering, node, x)
    finish(lowering, end, _qlinear(lowering, [node], x, weight.integers().t().contiguous(), scales, None, end))
    return True
