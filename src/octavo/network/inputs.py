"""What a captured network can be called with: tensors, sizes, numbers and indices as captured, or one error."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import sympy
import torch
from torch import SymInt, Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_leaves, tree_structure

from octavo.errors import QuantizationError

aten = torch.ops.aten

# Through these an index stays the same index.
_REORDER = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim,
    aten.permute.default, aten.transpose.int, aten.contiguous.default, aten.clone.default, aten.to.dtype,
    aten._to_copy.default,
}  # fmt: skip


# What no engine can read, though it is a tensor: (test, what it is, what to pass instead).
_NOT_PLAIN: tuple[tuple[Callable[[Tensor], bool], str, str], ...] = (
    (lambda x: x.is_meta, "it is on the meta device, which holds no values", "a tensor with data"),
    (lambda x: x.is_nested, "it is nested", "a padded tensor"),
    (lambda x: x.layout is not torch.strided, "it is sparse", "{}.to_dense()"),
    (lambda x: x.is_quantized, "it is quantized by torch", "{}.dequantize()"),
)
_NOT_EXAMPLE = (*_NOT_PLAIN, (lambda x: not x.numel(), "it holds no values", "a batch with one sample or more"))
_TO_TENSOR: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (np.ndarray, "torch.from_numpy({})"),
    ((int, float, list, tuple, np.generic), "torch.tensor({})"),
)


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """One input: the dtype of a tensor, or the value that `capture` made part of the network."""

    name: str
    dtype: torch.dtype | None
    fixed: Any


class Inputs:
    """How a network is called: its arguments, and what each of them can be. Plain data, which copies and pickles."""

    def __init__(self, module: GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        names = module.graph._codegen.pytree_info.orig_args  # type: ignore[attr-defined]
        self._positional, self._keywords = tuple(names[: len(args)]), tuple(kwargs)
        given = (*args, *kwargs.values())
        self._specs = {name: tree_structure(value) for name, value in zip(names, given, strict=True)}
        nodes = module.graph.find_nodes(op="placeholder")
        self._leaves = tuple(_leaf(node, value) for node, value in zip(nodes, tree_leaves(given), strict=True))
        self._sizes, self._indices = Sizes(module), Indices(module)

    def check(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, device: torch.device | None = None
    ) -> dict[str, Tensor]:
        """The tensors of a call by name.

        device  where they have to be; None for anywhere with data
        raises  QuantizationError naming the input that is missing, superfluous, no tensor, or of another dtype, size or
                number than the network was captured with, and for an index of an embedding that has no such row
        """
        tensors = {}
        for leaf, value in zip(self._leaves, self._bound(args, kwargs), strict=True):
            if leaf.dtype is None:
                _check_number(leaf, value)
            else:
                tensors[leaf.name] = _plain(leaf, value, device)
        self._sizes.check(tensors)
        self._indices.check(tensors)
        return tensors

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves of a call, in the order of the network's inputs."""
        if len(args) != len(self._positional) or kwargs.keys() != set(self._keywords):
            raise self._misfit(args, kwargs)
        values = (*args, *(kwargs[name] for name in self._keywords))
        leaves: list[Any] = []
        for (name, spec), value in zip(self._specs.items(), values, strict=True):
            leaves += [value] if spec.is_leaf() else _flattened(name, spec, value)
        return leaves

    def _misfit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> QuantizationError:
        missing = [*self._positional[len(args) :], *(name for name in self._keywords if name not in kwargs)]
        more = [str(name) for name in kwargs if name not in self._keywords]
        more += [f"a {type(value).__name__} behind them" for value in args[len(self._positional) :]]
        seen = [f"{', '.join(missing)} is missing"] * bool(missing) + [f"there is {', '.join(more)} too"] * bool(more)
        wanted = [*self._positional, *(f"{name}=…" for name in self._keywords)]
        return QuantizationError(
            asked=f"run a network that was captured with ({', '.join(wanted)})",
            seen=" and ".join(seen),
            remedy="pass just those, by position or by name as in capture's example",
            site=(missing or more)[0],
        )


def _leaf(node: Node, value: Any) -> _Leaf:
    val = node.meta["val"]
    is_tensor = isinstance(val, Tensor)
    return _Leaf(name=str(node.target), dtype=val.dtype if is_tensor else None, fixed=None if is_tensor else value)


def _flattened(name: str, spec: TreeSpec, value: Any) -> list[Any]:
    try:
        return spec.flatten_up_to(value)
    except ValueError as error:
        raise QuantizationError(
            asked=f"run with a {type(value).__name__} for {name}",
            seen=f"the network was captured with another structure there ({str(error).splitlines()[0]})",
            remedy="pass tuples, lists and dicts of the same lengths and names as in capture's example",
            site=name,
        ) from error


def _plain(leaf: _Leaf, value: Any, device: torch.device | None) -> Tensor:
    """`value`, if it is a tensor that engines can read."""
    seen, remedy = None, ""
    if not isinstance(value, Tensor):
        seen = "the network was captured with a tensor there"
        remedy = next((remedy for kind, remedy in _TO_TENSOR if isinstance(value, kind)), "a tensor")
    elif found := next(((seen, remedy) for test, seen, remedy in _NOT_PLAIN if test(value)), None):
        seen, remedy = found
    elif value.dtype != leaf.dtype:
        seen, remedy = f"the network was captured with {leaf.dtype}", f"{{}}.to({leaf.dtype})"
    elif device is not None and value.device != device:
        seen, remedy = f"the network is on {device}", f'{{}}.to("{device}")'
    if seen is not None:
        raise QuantizationError(
            asked=f"run on {_what(value)}", seen=seen, remedy=f"pass {remedy.format(leaf.name)}", site=leaf.name
        )
    return cast(Tensor, value)


def check_example(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise QuantizationError for an example that holds no tensor, or one that holds no values."""
    named = {**{f"input {number}": value for number, value in enumerate(args)}, **kwargs}
    tensors = [(name, leaf) for name, value in named.items() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    if not tensors:
        raise QuantizationError(
            asked="capture a model with this example",
            seen=f"there is no tensor in it, but {', '.join(map(_what, named.values())) or 'nothing'}",
            remedy="give a tensor, a tuple of positional inputs or a dict of keyword inputs, as the model takes them",
            site="example",
        )
    for name, leaf in tensors:
        found = next(((seen, remedy) for test, seen, remedy in _NOT_EXAMPLE if test(leaf)), None)
        if found is not None:
            raise QuantizationError(
                asked=f"capture a model with this example of shape {list(leaf.shape)}",
                seen=found[0],
                remedy=f"pass {found[1].format(name)}",
                site=f"example, {name}",
            )


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} on {value.device}" if value.device.type != "cpu" else f"{value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"


def _check_number(leaf: _Leaf, value: Any) -> None:
    if not _same(value, leaf.fixed):
        raise QuantizationError(
            asked=f"run with {leaf.name}={'a tensor' if isinstance(value, Tensor) else repr(value)}",
            seen=f"the network was captured with {leaf.fixed!r}, which is part of it since then",
            remedy="capture it once for each value, or make it a tensor",
            site=leaf.name,
        )


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Tensor) and type(a) is type(b) and bool(a == b))


class Sizes:
    """The sizes of the tensors: numbers where the network works for one size only, else what they have to do with one
    another.
    """

    def __init__(self, module: GraphModule) -> None:
        self._wanted = {str(node.target): tuple(map(_size, node.meta["val"].shape)) for node in _tensors(module)}
        self._most = _largest(module)

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


def _largest(module: GraphModule) -> dict[Any, int]:
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
        self._rows: dict[str, int] = {}
        for node in module.graph.nodes:
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


def _tensors(module: GraphModule) -> list[Node]:
    inputs = module.graph.find_nodes(op="placeholder")
    return [node for node in inputs if isinstance(node.meta["val"], Tensor)]
