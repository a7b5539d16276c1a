"""Operations that only move values, such as reshape, concatenation and max-pooling: the same on uint8."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from octavo.engines.lowering.build import Integers, Lowering
from octavo.network.edit import is_floating

aten = torch.ops.aten


def moved(lowering: Lowering, node: Node) -> bool:
    """What returns only values of its input, or zero: the same on uint8, where zero is the zero-point."""
    sources = [source for source in node.all_input_nodes if is_floating(source)]
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
