"""What a captured network can be called with: sizes, numbers and indices that it was captured for, or one error."""

from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from octavo.errors import QuantizationError
from octavo.network.graph import Graph

aten = torch.ops.aten

# Through these an index stays the same index.
_REORDER = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim,
    aten.permute.default, aten.transpose.int, aten.contiguous.default, aten.clone.default, aten.to.dtype,
    aten._to_copy.default,
}  # fmt: skip


class Numbers:
    """The arguments that are no tensors: `capture` made their values part of the network."""

    def __init__(self, graph: Graph) -> None:
        names = graph.module.graph._codegen.pytree_info.orig_args  # type: ignore[attr-defined]
        given = dict(zip(names, graph.example_args, strict=False)) | graph.example_kwargs
        leaves = {name: tree_leaves(value) for name, value in given.items()}
        self._names = tuple(names)
        self._fixed = {
            name: {n: leaf for n, leaf in enumerate(own) if not isinstance(leaf, Tensor)}
            for name, own in leaves.items()
        }
        self._fixed = {name: fixed for name, fixed in self._fixed.items() if fixed}

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise QuantizationError naming the argument that has another value than it was captured with."""
        if not self._fixed:
            return
        given = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        for name, fixed in self._fixed.items():
            leaves = tree_leaves(given[name]) if name in given else []
            for n, wanted in fixed.items():
                if n < len(leaves) and not _same(leaves[n], wanted):
                    found = "a tensor" if isinstance(leaves[n], Tensor) else repr(leaves[n])
                    raise QuantizationError(
                        asked=f"run with {name}={found}",
                        seen=f"the network was captured with {wanted!r}, which is part of it since then",
                        remedy="capture it once for each value, or make it a tensor",
                        site=name,
                    )


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Tensor) and type(a) is type(b) and bool(a == b))


class Sizes:
    """The sizes of the tensors: numbers where the network works for one size only, else what they have to do with one
    another.
    """

    def __init__(self, graph: Graph) -> None:
        self._wanted = {str(node.target): tuple(map(_size, node.meta["val"].shape)) for node in _tensors(graph)}
        self._most = _largest(graph)

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise QuantizationError naming the input that has another size than the network can have."""
        known: dict[Any, tuple[int, str]] = {}
        for name, tensor, axis, want in self._axes(tensors):
            size = tensor.shape[axis]
            if isinstance(want, int):
                if size != want:
                    raise _wrong(name, tensor, f"axis {axis} is {want} in the network, and fixed")
            elif known.setdefault(want, (size, f"axis {axis} of {name}"))[0] != size:
                raise _wrong(name, tensor, f"axis {axis} has to be {known[want][0]}, as {known[want][1]} is")
            elif size > self._most.get(want, size):
                raise _wrong(name, tensor, f"the network has room for {self._most[want]} along axis {axis}")
        values = {want: sympy.Integer(size) for want, (size, _) in known.items() if want.is_Symbol}
        for name, tensor, axis, want in self._axes(tensors) if len(values) < len(known) else ():
            found = sympy.sympify(want).xreplace(values)
            if found.is_Integer and int(found) != tensor.shape[axis]:
                raise _wrong(name, tensor, f"axis {axis} has to be {int(found)} beside the other inputs")

    def _axes(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, int, Any]]:
        """(input, tensor, axis, the size that it should have) of every axis."""
        for name, tensor in tensors.items():
            wanted = self._wanted[name]
            if tensor.ndim != len(wanted):
                raise _wrong(name, tensor, f"the network was captured with {len(wanted)} axes")
            yield from ((name, tensor, axis, want) for axis, want in enumerate(wanted))


def _size(size: int | SymInt) -> Any:
    """A number, or the expression of symbols that the size is."""
    if isinstance(size, int):
        return size
    only = size.node.maybe_as_int()
    return size.node.expr if only is None else only


def _largest(graph: Graph) -> dict[Any, int]:
    """{symbol: the largest size that torch.export found to fit}, where there is one."""
    found = {}
    for node in _tensors(graph):
        for size in node.meta["val"].shape:
            if isinstance(size, SymInt) and size.node.expr.is_Symbol:
                bounds = size.node.shape_env.var_to_range.get(size.node.expr)
                if bounds is not None and bounds.upper.is_finite and bounds.upper < 2**31:
                    found[size.node.expr] = int(bounds.upper)
    return found


def _wrong(name: str, tensor: Tensor, seen: str) -> QuantizationError:
    return QuantizationError(
        asked=f"run on a tensor of shape {list(tensor.shape)}",
        seen=seen,
        remedy="pass that size, or capture the network with other dynamic_axes",
        site=name,
    )


class Indices:
    """The inputs that are rows of an embedding: integer engines read whatever lies in memory at a row that is none."""

    def __init__(self, graph: Graph) -> None:
        self._rows: dict[str, int] = {}
        for node in graph.module.graph.nodes:
            if node.target is aten.embedding.default:
                source = node.args[1]
                while source.op == "call_function" and source.target in _REORDER:
                    source = source.args[0]
                rows = node.args[0].meta["val"].shape[0]
                if source.op == "placeholder" and isinstance(rows, int):
                    name = str(source.target)
                    self._rows[name] = min(rows, self._rows.get(name, rows))

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise QuantizationError naming the input that holds a row that is none."""
        for name, rows in self._rows.items():
            low, high = map(int, tensors[name].aminmax()) if tensors[name].numel() else (0, 0)
            if low < 0 or high >= rows:
                raise QuantizationError(
                    asked=f"look up the row {low if low < 0 else high} of an embedding",
                    seen=f"it has {rows} rows, counted from 0",
                    remedy="see that the tokenizer and the network belong together",
                    site=name,
                )


def _tensors(graph: Graph) -> list[Node]:
    inputs = graph.module.graph.find_nodes(op="placeholder")
    return [node for node in inputs if isinstance(node.meta["val"], Tensor)]
