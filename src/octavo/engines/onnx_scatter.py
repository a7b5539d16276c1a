"""Scattering in forms that ONNX has: torch's exporter writes no mean, and all as if src had the shape of index.

ScatterElements reduces by add, mul, max and min, and its updates have the shape of its indices. torch lets src be
larger; a mean is a sum and a count; index_reduce is a scatter whose index is the same along all other axes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from octavo.network.edit import replace_by_module

aten = torch.ops.aten

_SAME = {"add": "sum", "multiply": "prod"}  # scatter's words for the reductions of scatter_reduce
_SCATTERS: dict[Any, str | None] = {
    aten.scatter.src: "last",
    aten.scatter.reduce: None,
    aten.scatter.value_reduce: None,
    aten.scatter_add.default: "sum",
    aten.scatter_reduce.two: None,
    aten.index_reduce.default: None,
}


class Scatter(nn.Module):
    """x with the values of src at index along `dim`, reduced where several meet.

    reduce        "sum", "mean", "prod", "amax", "amin", or "last": no reduction
    include_self  whether the value of x takes part where any of src does
    x, index      [...] and [...], int64, of one rank; index [n] if `along`: one place for a whole slice of src
    src           at least as long as index on each axis, or one number
    returns       [...], shape and dtype of x
    """

    def __init__(self, dim: int, reduce: str, *, include_self: bool, along: bool) -> None:
        super().__init__()
        self.dim, self.reduce, self.include_self, self.along = dim, reduce, include_self, along

    def forward(self, x: Tensor, index: Tensor, src: Tensor | float) -> Tensor:
        if not isinstance(src, Tensor):
            src = torch.full_like(index, src, dtype=x.dtype)
        if self.along:
            sizes = [1] * src.ndim
            sizes[self.dim] = -1
            index = index.view(sizes).expand(src.shape)
        src = _as_long_as(src, index)
        if self.reduce == "last":
            return x.scatter(self.dim, index, src)
        if self.reduce != "mean":
            return x.scatter_reduce(self.dim, index, src, self.reduce, include_self=self.include_self)
        start = x if self.include_self else torch.zeros_like(x)
        total = start.scatter_reduce(self.dim, index, src, "sum")
        count = torch.zeros_like(x).scatter_reduce(self.dim, index, torch.ones_like(src), "sum")
        divisor = count + 1 if self.include_self else count.clamp(min=1)
        mean = total / divisor if x.is_floating_point() else total.div(divisor, rounding_mode="floor")
        return mean if self.include_self else torch.where(count > 0, mean, x)


def _as_long_as(src: Tensor, index: Tensor) -> Tensor:
    for axis, (have, want) in enumerate(zip(src.shape, index.shape, strict=True)):
        if str(have) != str(want):  # sizes may be symbols
            src = src.narrow(axis, 0, want)
    return src


def replace_scatters(module: GraphModule) -> None:
    """Every scatter with values from a tensor, and every index_reduce, as a `Scatter`."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _SCATTERS:
            _replace(module, node)


def _replace(module: GraphModule, node: Node) -> None:
    x, dim, index, src, *rest = node.args
    reduce = _SCATTERS[node.target] or (rest[0] if rest else node.kwargs["reduce"])
    layer = Scatter(
        dim,  # type: ignore[arg-type]
        _SAME.get(str(reduce), str(reduce)),
        include_self=bool(node.kwargs.get("include_self", True)),
        along=node.target is aten.index_reduce.default,
    )
    replace_by_module(module, node, f"scatter_{node.name}", layer, (x, index, src))
