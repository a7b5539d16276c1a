"""The bounds of a call: the sizes of tensors and the rows of embeddings that a captured network was made for."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import GraphModule, Node

from octavo.errors import QuantizationError

aten = torch.ops.aten

# Through these an index stays the same index.
_REORDER = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim,
    aten.permute.default, aten.transpose.int, aten.contiguous.default, aten.clone.default, aten.to.dtype,
    aten._to_copy.default,
}  # fmt: skip


class Sizes:
    """The sizes of the tensors: numbers where the network works for one size only, else what they have to do with one
    another.
    """

    def __init__(self, module: GraphModule) -> None:
        self._wanted = {str(node.target): tuple(map(_size, node.meta["val"].shape)) for node in _tensors(module)}
        self._most = largest(module)

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
        if not all(want.is_Symbol for want in known):
            self._check_derived(tensors, {want: size for want, (size, _) in known.items() if want.is_Symbol})

    def _check_derived(self, tensors: Mapping[str, Tensor], known: Mapping[Any, int]) -> None:
        """The sizes that are computed of others, with the symbols that are `known`."""
        import sympy  # noqa: PLC0415 (it is slow to import, and few networks have such sizes)

        values = {want: sympy.Integer(size) for want, size in known.items()}
        for name, tensor, axis, want in self._axes(tensors):
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


def largest(module: GraphModule) -> dict[Any, int]:
    """{symbol: the largest size that torch.export found to fit}, where there is one."""
    found = {}
    for node in _tensors(module):
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

    def __init__(self, module: GraphModule) -> None:
        self.rows: dict[str, int] = {}
        for node in module.graph.nodes:
            if node.target is aten.embedding.default:
                source = node.args[1]
                while source.op == "call_function" and source.target in _REORDER:
                    source = source.args[0]
                rows = node.args[0].meta["val"].shape[0]
                if source.op == "placeholder" and isinstance(rows, int):
                    name = str(source.target)
                    self.rows[name] = min(rows, self.rows.get(name, rows))

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise QuantizationError naming the input that holds a row that is none."""
        for name, rows in self.rows.items():
            low, high = map(int, tensors[name].aminmax()) if tensors[name].numel() else (0, 0)
            if low < 0 or high >= rows:
                raise QuantizationError(
                    asked=f"look up the row {low if low < 0 else high} of an embedding",
                    seen=f"it has {rows} rows, counted from 0",
                    remedy="see that the tokenizer and the network belong together",
                    site=name,
                )


def _tensors(module: GraphModule) -> list[Node]:
    inputs = module.graph.find_nodes(op="placeholder")
    return [node for node in inputs if isinstance(node.meta["val"], Tensor)]
