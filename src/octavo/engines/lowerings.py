"""The integer kernels: for each operation of a planned graph, what stands for it in the lowered one.

    linear            oneDNN's, with packed int8 weights; bias, activation and the next rounding inside. Linears that
                      read the same integers (query, key and value) become one
    convolution       oneDNN's, likewise
    attention, matmul Octavo's own, `kernels/int8.cpp`
    embedding         rows of the int8 table, then scaled
    what moves values the same, on uint8

Nothing is searched for after the fact: the plan says where the integers are. A row returns whether it could write its
kernel; if not, the operation runs in float on rounded values, and `executions` says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from octavo.engines.lowered import Grid, Integers, Lowering, Weight, grid_of, only_reader, readers
from octavo.engines.lowered_products import embedding, product
from octavo.network.edit import shape
from octavo.network.operations import FLOAT_ONLY, operation, preserves_values
from octavo.network.passes import CONVOLUTIONS

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """What a kernel does to its sums beside scaling them.

    name, arguments, algorithm  oneDNN's post operation: "none", "relu", "gelu", …
    grid                        of the integers it writes; None for float32
    ends                        the nodes of the planned graph that are done with it
    """

    name: str = "none"
    arguments: tuple[float, ...] = ()
    algorithm: str = ""
    grid: Grid | None = None
    ends: tuple[Node, ...] = ()


PostOperation = tuple[str, tuple[float, ...], str]  # name, arguments, algorithm


def _no_activation(node: Node) -> PostOperation:
    return "none", (), ""


def _gelu(node: Node) -> PostOperation:
    return "gelu", (), str(node.kwargs.get("approximate", "none"))


def _clamp(node: Node) -> PostOperation:
    bounds = (*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :])
    return "hardtanh", tuple(float(bound) for bound in bounds), ""  # type: ignore[arg-type]


# What oneDNN can do to the sums of a linear; of a convolution, all but GELU and tanh.
ACTIVATIONS: dict[Any, Callable[[Node], PostOperation]] = {
    aten.relu.default: lambda node: ("relu", (), ""),
    aten.relu6.default: lambda node: ("hardtanh", (0.0, 6.0), ""),
    aten.hardtanh.default: _clamp,
    aten.silu.default: lambda node: ("swish", (), ""),
    aten.hardswish.default: lambda node: ("hardswish", (), ""),
    aten.gelu.default: _gelu,
    aten.tanh.default: lambda node: ("tanh", (), ""),
}
_LINEAR_ONLY = {aten.gelu.default, aten.tanh.default}


def epilogue(lowering: Lowering, node: Node, *, convolution: bool = False) -> Epilogue:
    """What the kernel of `node` does at its end: the activation and the rounding that alone read its result."""
    name, arguments, algorithm = _no_activation(node)
    ends: list[Node] = [node]
    reader = only_reader(node)
    if reader is not None and reader.target in ACTIVATIONS and not (convolution and reader.target in _LINEAR_ONLY):
        name, arguments, algorithm = ACTIVATIONS[reader.target](reader)
        ends.append(reader)
        reader = only_reader(reader)
    site = lowering.site(reader)
    if site is None or reader is None:
        return Epilogue(name=name, arguments=arguments, algorithm=algorithm, ends=tuple(ends))
    return Epilogue(
        name=name, arguments=arguments, algorithm=algorithm, grid=grid_of(site.params), ends=(*ends, reader)
    )


def _finish(lowering: Lowering, end: Epilogue, result: Node) -> None:
    """Let `result` stand for all that the kernel computed."""
    *inner, last = end.ends
    for node in inner:
        lowering.values[node] = result  # read by the next of them alone
    lowering.values[last] = result if end.grid is None else Integers(node=result, grid=end.grid)


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
    x = lowering.integers(node.args[0])
    first = _linear(lowering, node)
    if x is None or first is None:
        return False
    siblings = [other for other in readers(node.args[0]) if other.target is node.target]  # type: ignore[arg-type]
    found = [_linear(lowering, other) for other in siblings if other not in lowering.values]
    joined = [row for row in found if row is not None and row.kind == first.kind]
    _write_linear(lowering, x, joined if first.end.name == "none" else [first])
    return True


def _linear(lowering: Lowering, node: Node) -> _Linear | None:
    weight, bias = _weight(lowering, node), node.args[2] if len(node.args) > 2 else None
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
        end=epilogue(lowering, node),
    )


def _weight(lowering: Lowering, node: Node) -> Weight | None:
    argument = node.args[1]
    weight = lowering.weight(argument)
    site = lowering.site(argument) if isinstance(argument, Node) else None
    if weight is None and site is not None:  # not reached yet: it belongs to a later sibling
        weight = lowering.rounded(argument) if lowering.tensor(argument.args[0]) is not None else None  # type: ignore[union-attr,arg-type]
    return weight


def _write_linear(lowering: Lowering, x: Integers, rows: list[_Linear]) -> None:
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
    result = _qlinear(lowering, x, torch.cat([row.integers for row in rows]), torch.cat(scales), bias, rows[0].end)
    start = 0
    for row in rows:
        size = len(row.scales)
        part = result if len(rows) == 1 else lowering.emit(aten.slice.Tensor, result, -1, start, start + size)
        _finish(lowering, row.end, part)
        lowering.ran(row.node, "linear", "onednn_i8")
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
    lowering: Lowering, x: Integers, weight: Tensor, scales: Tensor, bias: Tensor | None, end: Epilogue
) -> Node:
    result = lowering.emit(
        torch.ops.octavo.int8_linear.default,
        *_operands(lowering, x, weight, scales, bias),
        *_output(end), end.name, list(end.arguments), end.algorithm,
    )  # fmt: skip
    return _clipped(lowering, result, end.grid)


def _operands(lowering: Lowering, x: Integers, weight: Tensor, scales: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    constants = (lowering.constant(weight.contiguous()), lowering.constant(scales))
    return x.node, x.grid.scale, x.grid.zero, *constants, None if bias is None else lowering.constant(bias)


def _output(end: Epilogue) -> tuple[float, int, bool]:
    """(scale, zero, whether uint8 comes out)."""
    return (1.0, 0, False) if end.grid is None else (end.grid.scale, end.grid.zero, True)


def _clipped(lowering: Lowering, result: Node, grid: Grid | None) -> Node:
    """`result` within the integers in use, where those are fewer than uint8 has."""
    if grid is None or (grid.low, grid.high) == (0, 255):
        return result
    return lowering.emit(torch.clamp, result, grid.low, grid.high)


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
        *_operands(lowering, x, weight.integers(), scales, lowering.tensor(bias)),
        *geometry, *_output(end), end.name, list(end.arguments),
    )  # fmt: skip
    _finish(lowering, end, _clipped(lowering, result, end.grid))
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


def moved(lowering: Lowering, node: Node) -> bool:
    """What returns only values of its input, or zero: the same on uint8, where zero is the zero-point."""
    sources = [source for source in node.all_input_nodes if _is_floating(source)]
    found = [lowering.integers(source) for source in sources]
    grids = {None if x is None else x.grid for x in found}
    if len(grids) != 1 or None in grids:
        return False
    (grid,) = grids
    assert grid is not None
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: _inner(lowering.values[source]))
    if _pads_with_zero(node):
        result = lowering.emit(aten.constant_pad_nd.default, *args[:2], grid.zero)
    elif node.target in _WITHOUT_UINT8:
        result = lowering.emit(through_float, node.target, args, kwargs)
    else:
        result = lowering.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    lowering.values[node] = Integers(node=result, grid=grid)
    return True


def _is_floating(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor) and bool(node.meta["val"].is_floating_point())


def _inner(value: Any) -> Any:
    return value.node if isinstance(value, Integers) else value


def _pads_with_zero(node: Node) -> bool:
    if node.target is aten.pad.default:
        return (node.args[2] if len(node.args) > 2 else "constant") == "constant"
    return node.target is aten.constant_pad_nd.default


def through_float(operator: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
    """`operator` on uint8, by way of float32, which holds every one of them."""
    to_float = tree_map(lambda leaf: leaf.to(torch.float32) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return operator(*to_float[0], **to_float[1]).to(torch.uint8)


# torch has no kernel of these for uint8, or none that Inductor can use.
_WITHOUT_UINT8 = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.pad.default,
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec,
}  # fmt: skip


def matmul(lowering: Lowering, node: Node) -> bool:
    """With a constant matrix on the right, a linear without bias; else a product of two activations."""
    x, weight = lowering.integers(node.args[0]), lowering.weight(node.args[1])
    if weight is None:
        return product(lowering, node)
    scales = weight.scales(-1)
    if x is None or scales is None or weight.real.ndim != 2 or len(shape(node)) < 2:
        return False
    end = epilogue(lowering, node)
    _finish(lowering, end, _qlinear(lowering, x, weight.integers().t().contiguous(), scales, None, end))
    lowering.ran(node, "linear", "onednn_i8")
    return True


LOWERINGS: dict[Any, Callable[[Lowering, Node], bool]] = {
    aten.linear.default: linear,
    aten.matmul.default: matmul,
    aten.embedding.default: embedding,
    **dict.fromkeys(CONVOLUTIONS, convolution),
}


def lower(lowering: Lowering, node: Node) -> None:
    """Write what stands for `node` of the planned graph, unless it is done already as part of another."""
    if node in lowering.values:
        return
    if lowering.site(node) is not None:
        lowering.values[node] = lowering.rounded(node)
        return
    if node.target in LOWERINGS and LOWERINGS[node.target](lowering, node):
        return
    if preserves_values(node) and moved(lowering, node):
        return
    if (operation(node) is not None and node.target is not aten.add.Tensor) or node.target in FLOAT_ONLY:
        lowering.ran(node, str(node.target).split(".")[1], "inductor_f32")
    lowering.values[node] = lowering.graph.node_copy(node, lowering.real)
