"""Operations that only move values, such as reshape, concatenation and max-pooling: the same on uint8."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from octavo.engines.lowering.build import Grid, Integers, Lowering, grid_of
from octavo.network.edit import argument, is_floating
from octavo.network.operations import preserves_values

aten = torch.ops.aten


def moved(lowering: Lowering, node: Node) -> bool:
    """What returns only values of its input, or zero: the same on uint8, where zero is the zero-point."""
    grid = grid_ahead(lowering, node)
    if grid is None:
        return False
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: _inner(lowering.values[source]))
    if _pads_with_zero(node):
        result = lowering.emit(aten.constant_pad_nd.default, *args[:2], grid.zero)
    elif node.target in _WITHOUT_UINT8:
        result = lowering.emit(through_float, node.target, args, kwargs)
    else:
        result = lowering.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    lowering.values[node] = Integers(node=result, grid=grid)
    return True


def grid_ahead(lowering: Lowering, node: Node) -> Grid | None:
    """The integers in which `node` is, or will be once it is lowered; None if that is in float."""
    if node in lowering.values:
        found = lowering.integers(node, of_channels=True)
        return None if found is None else found.grid
    site = lowering.rounding(node)
    if site is not None:
        return None if any(lowering.tensor(source) is not None for source in node.args) else grid_of(site)
    if not preserves_values(node):
        return None
    grids = {grid_ahead(lowering, source) for source in node.all_input_nodes if is_floating(source)}
    return grids.pop() if len(grids) == 1 else None


def _inner(value: Any) -> Any:
    return value.node if isinstance(value, Integers) else value


def _pads_with_zero(node: Node) -> bool:
    if node.target is aten.pad.default:
        return bool(argument(node, "mode") == "constant")
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
