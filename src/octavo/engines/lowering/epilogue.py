"""How an integer kernel begins and ends: its constants, the activation and the rounding done inside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from octavo.engines.lowering.build import Grid, Integers, Lowering, grid_of, only_reader
from octavo.network.edit import argument

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


_NO_ACTIVATION: PostOperation = ("none", (), "")


def _gelu(node: Node) -> PostOperation:
    return "gelu", (), str(argument(node, "approximate"))


def _clamp(node: Node) -> PostOperation:
    return "hardtanh", (float(argument(node, "min_val")), float(argument(node, "max_val"))), ""


# What oneDNN has a name for.
ACTIVATIONS: dict[Any, Callable[[Node], PostOperation]] = {
    aten.relu.default: lambda node: ("relu", (), ""),
    aten.relu6.default: lambda node: ("hardtanh", (0.0, 6.0), ""),
    aten.hardtanh.default: _clamp,
    aten.silu.default: lambda node: ("swish", (), ""),
    aten.hardswish.default: lambda node: ("hardswish", (), ""),
    aten.gelu.default: _gelu,
    aten.tanh.default: lambda node: ("tanh", (), ""),
}
# What its kernel of an operation can do to the sums: of a convolution, by its axes of space.
LINEAR = frozenset(("relu", "hardtanh", "swish", "hardswish", "gelu", "tanh"))
CONVOLUTION = {1: frozenset(("relu",)), 2: frozenset(("relu", "hardtanh", "swish", "hardswish"))}


def epilogue(lowering: Lowering, node: Node, able: frozenset[str], *, of_channels: bool = False) -> Epilogue:
    """What the kernel of `node` does at its end: the activation and the rounding that alone read its result.

    able         the post operations that it has
    of_channels  whether it can round every channel on a scale of its own: see `per_step`
    """
    name, arguments, algorithm = _NO_ACTIVATION
    ends: list[Node] = [node]
    reader = only_reader(node)
    if reader is not None and reader.target in ACTIVATIONS:
        found = ACTIVATIONS[reader.target](reader)
        if found[0] in able:
            name, arguments, algorithm = found
            ends.append(reader)
            reader = only_reader(reader)
    site = lowering.rounding(reader)
    grid = None if site is None else grid_of(site)
    if grid is not None and grid.channels is not None:
        post = _in_steps((name, arguments, algorithm), grid) if of_channels else None
        grid = None if post is None else grid
        name, arguments, algorithm = post or (name, arguments, algorithm)
    if grid is None or reader is None:
        return Epilogue(name=name, arguments=arguments, algorithm=algorithm, ends=tuple(ends))
    return Epilogue(name=name, arguments=arguments, algorithm=algorithm, grid=grid, ends=(*ends, reader))


def _in_steps(post: PostOperation, grid: Grid) -> PostOperation | None:
    """What does to sums in steps of their channel what `post` does to real ones; None if nothing does."""
    name, arguments, _ = post
    if name == "hardtanh" and redundant(arguments, grid):
        return _NO_ACTIVATION  # the integers end before the bounds
    return post if name in ("none", "relu") else None


def redundant(bounds: tuple[float, ...], grid: Grid) -> bool:
    """Whether the integers of `grid` all lie within `bounds`, to the nearest."""
    low, high = ((grid.scales() * (end - grid.zero)) for end in (grid.low, grid.high))
    half = grid.scales() / 2
    return bool((low >= bounds[0] - half).all() and (high <= bounds[1] + half).all())


def per_step(end: Epilogue, scales: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`scales` and `bias` [outputs] of a kernel that writes steps; it knows one step for all, where channels differ."""
    if end.grid is None or end.grid.channels is None:
        return scales, bias
    steps = end.grid.scales()
    return (scales.double() / steps).float(), None if bias is None else (bias.double() / steps).float()


def finish(lowering: Lowering, end: Epilogue, result: Node) -> None:
    """Let `result` stand for all that the kernel computed."""
    *inner, last = end.ends
    for node in inner:
        lowering.values[node] = result  # read by the next of them alone
    lowering.values[last] = result if end.grid is None else Integers(node=result, grid=end.grid)


def operands(lowering: Lowering, x: Integers, weight: Tensor, scales: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    constants = (lowering.constant(weight.contiguous()), lowering.constant(scales))
    return x.node, x.grid.scale, x.grid.zero, *constants, None if bias is None else lowering.constant(bias)


def output(end: Epilogue) -> tuple[float, int, bool]:
    """(scale, zero, whether uint8 comes out)."""
    return (1.0, 0, False) if end.grid is None else (end.grid.scale, end.grid.zero, True)


def clipped(lowering: Lowering, result: Node, grid: Grid | None) -> Node:
    """`result` within the integers in use, where those are fewer than uint8 has."""
    if grid is None or (grid.low, grid.high) == (0, 255):
        return result
    return lowering.emit(torch.clamp, result, grid.low, grid.high)
