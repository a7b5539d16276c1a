"""What a captured network can be called with: tensors, sizes, numbers and indices as captured, or one error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_leaves, tree_structure

from octavo.errors import QuantizationError, reason
from octavo.network.bounds import Indices, Sizes
from octavo.network.edit import tree_info

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
        names = tree_info(module).orig_args
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
        more += [f"argument {n}, {_what(args[n])}" for n in range(len(self._positional), len(args))]
        seen = [f"{', '.join(missing)} is missing"] * bool(missing) + [f"there is {', '.join(more)} too"] * bool(more)
        wanted = [*self._positional, *(f"{name}=…" for name in self._keywords)]
        return QuantizationError(
            asked=f"run a network that was captured with ({', '.join(wanted)})",
            seen=" and ".join(seen),
            remedy="pass just those, by position (counted from 0) or by name as in capture's example",
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
            seen=f"the network was captured with another structure there ({reason(error)})",
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
        seen, remedy = f"it is on {value.device} and the network on {device}", f'{{}}.to("{device}")'
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
