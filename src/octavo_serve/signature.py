"""How a saved network is called, as data: arrays by name from a call, and what the network returns from arrays.

    {"arguments": [name, …], "inputs": structure, "leaves": [leaf, …], "most": {symbol: the largest that it can be},
     "outputs": structure, "returned": [name, or {"value": …}, …]}

A structure is {"kind": "leaf" | "tuple" | "list" | "dict" | "named", "name": …, "keys": […], "children": […]}; a leaf
is {"name": …, "dtype": …, "shape": [size, …], "rows": number or null}, or {"name": …, "value": what it always is}.
"""

import sys
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo_serve.errors import QuantizationError
from octavo_serve.sizes import check_size, size_of

Structure = Mapping[str, Any]
Array = npt.NDArray[Any]
DTYPES = frozenset(
    {"float64", "float32", "float16", "bool", "int8", "uint8", "int16", "int32", "int64"}
)  # of numpy, and of torch


@dataclass(frozen=True, kw_only=True)
class Input:
    """One array that the network reads.

    shape  of every axis the size, or the name of one that depends on the call, or an expression of those
    rows   of the table that it is looked up in, None if it is not
    """

    name: str
    dtype: str
    shape: tuple[Any, ...]
    rows: int | None


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """One argument that is part of the network."""

    name: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The inputs and outputs of a saved network. See above."""

    arguments: tuple[str, ...]
    inputs: Structure
    leaves: tuple[Input | Fixed, ...]
    most: Mapping[str, int]
    outputs: Structure
    returned: tuple[Any, ...]

    @property
    def arrays_in(self) -> tuple[Input, ...]:
        """What it reads."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Input))

    @property
    def arrays_out(self) -> tuple[str, ...]:
        """The names of the distinct arrays that it returns, in order."""
        return tuple(dict.fromkeys(leaf for leaf in self.returned if isinstance(leaf, str)))

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Array]:
        """The arrays of a call by name.

        raises  QuantizationError naming the input that the network cannot be called with
        """
        positional, keywords = self.inputs["children"]
        if len(args) != len(positional["children"]) or kwargs.keys() != set(keywords["keys"]):
            raise QuantizationError(
                asked=f"run a network that was captured with ({', '.join(self.arguments)})",
                seen=f"it was called with {len(args)} by position and {', '.join(map(str, kwargs)) or 'none'} by name",
                remedy="pass just those, by position or by name as in capture's example",
            )
        given = _leaves(args, positional) + _leaves(kwargs, keywords)
        found = {}
        for leaf, value in zip(self.leaves, given, strict=True):
            if isinstance(leaf, Input):
                found[leaf.name] = _array(leaf, value)
            elif not (value is leaf.value or (type(value) is type(leaf.value) and value == leaf.value)):
                raise _wrong(leaf.name, f"the network was captured with {leaf.value!r}, which is part of it")
        self._check_sizes(found)
        self._check_rows(found)
        return found

    def unflatten(self, arrays: Sequence[Any]) -> Any:
        """What the network returns, from the distinct arrays of `arrays_out`."""
        named = dict(zip(self.arrays_out, arrays, strict=True))
        leaves = (named[leaf] if isinstance(leaf, str) else leaf["value"] for leaf in self.returned)
        return _built(self.outputs, leaves)

    def _check_sizes(self, arrays: Mapping[str, Array]) -> None:
        known: dict[str, int] = {}
        for name, size, want in self._axes(arrays):
            if isinstance(want, str) and known.setdefault(want, size) != size:
                raise _wrong(name, f"an axis of it is {size}, where the same is {known[want]} elsewhere")
            if isinstance(want, str) and size > self.most.get(want, size):
                raise _wrong(name, f"an axis of it is {size}, and the network has room for {self.most[want]}")
        for name, size, want in self._axes(arrays):
            wanted = size if isinstance(want, list) and not _symbols(want) <= known.keys() else size_of(want, known)
            if size != wanted:
                raise _wrong(name, f"an axis of it is {size}, and has to be {wanted}")

    def _axes(self, arrays: Mapping[str, Array]) -> Iterator[tuple[str, int, Any]]:
        for leaf in self.arrays_in:
            shape = arrays[leaf.name].shape
            yield from ((leaf.name, size, want) for size, want in zip(shape, leaf.shape, strict=True))

    def _check_rows(self, arrays: Mapping[str, Array]) -> None:
        for leaf in self.arrays_in:
            array = arrays[leaf.name]
            if leaf.rows is not None and array.size and not 0 <= array.min() <= array.max() < leaf.rows:
                raise _wrong(leaf.name, f"it looks up a row of a table that has {leaf.rows}, counted from 0")


def signature_from(record: Mapping[str, Any]) -> Signature:
    """The signature that `record` states. Whatever does not fit raises one of Python's errors, or QuantizationError."""
    leaves = tuple(_leaf(**row) for row in record["leaves"])
    counts = sum(1 for _ in _places(record["inputs"])), sum(1 for _ in _places(record["outputs"]))
    kinds = [record["inputs"]["kind"], *(child["kind"] for child in record["inputs"]["children"])]
    if counts != (len(leaves), len(record["returned"])) or kinds != ["tuple", "tuple", "dict"]:
        raise ValueError("its inputs or outputs are not as many as it says")
    if len({leaf.name for leaf in leaves}) < len(leaves):
        raise ValueError("two of its inputs have one name")
    if not all(isinstance(leaf, str) or leaf.keys() == {"value"} for leaf in record["returned"]):
        raise ValueError("an output is neither an array nor what it always is")
    return Signature(
        arguments=tuple(map(str, record["arguments"])),
        inputs=record["inputs"],
        leaves=leaves,
        most={str(name): int(most) for name, most in record["most"].items()},
        outputs=record["outputs"],
        returned=tuple(record["returned"]),
    )


def _leaf(*, name: str, **facts: Any) -> Input | Fixed:
    if facts.keys() == {"value"}:
        return Fixed(name=name, value=facts["value"])
    dtype, shape, rows = facts["dtype"], facts["shape"], facts["rows"]
    if dtype not in DTYPES or not isinstance(name, str) or not (rows is None or type(rows) is int):
        raise ValueError("an input is of no known type")
    for size in shape:
        check_size(size)
    return Input(name=name, dtype=dtype, shape=tuple(shape), rows=rows)


# ---- structures


DEPTH = 100  # of tuples, lists and dicts within one another: a call goes as deep


def _places(structure: Structure, depth: int = 0) -> Iterator[None]:
    """Once for each leaf; raises where a structure is none."""
    kind, keys, children = structure["kind"], structure["keys"], structure["children"]
    if kind not in ("leaf", "tuple", "list", "dict", "named") or (kind == "leaf" and children) or depth > DEPTH:
        raise ValueError("its inputs or outputs are nested as nothing is")
    if kind in ("dict", "named") and (len(keys) != len(children) or len(set(keys)) < len(keys)):
        raise ValueError("its inputs or outputs have other names than parts")
    if kind == "named":
        _named(structure["name"], *keys)
    if kind == "leaf":
        yield None
    for child in children:
        yield from _places(child, depth + 1)


@lru_cache(maxsize=256)
def _named(name: str, *fields: str) -> Any:
    """The namedtuple of that name; ValueError for names that are none."""
    return namedtuple(name, fields)


def _built(structure: Structure, leaves: Iterator[Any]) -> Any:
    if structure["kind"] == "leaf":
        return next(leaves)
    children = [_built(child, leaves) for child in structure["children"]]
    if structure["kind"] == "dict":
        return dict(zip(structure["keys"], children, strict=True))
    if structure["kind"] == "named":
        return _named(structure["name"], *structure["keys"])(*children)
    return tuple(children) if structure["kind"] == "tuple" else children


def _leaves(value: Any, structure: Structure) -> list[Any]:
    """The leaves of `value`, which is nested as `structure` says."""
    kind, children = structure["kind"], structure["children"]
    if kind == "leaf":
        return [value]
    if kind == "dict":
        fits = isinstance(value, Mapping) and value.keys() == set(structure["keys"])
        parts = [value[key] for key in structure["keys"]] if fits else []
    else:
        fits = isinstance(value, list if kind == "list" else tuple) and len(value) == len(children)
        parts = list(value) if fits else []
    if not fits:
        raise QuantizationError(
            asked=f"run with a {type(value).__name__} in place of a {kind} of {len(children)}",
            seen="the network was captured with another structure there",
            remedy="pass tuples, lists and dicts of the same lengths and names as in capture's example",
        )
    return [leaf for part, child in zip(parts, children, strict=True) for leaf in _leaves(part, child)]


# ---- arrays


def is_tensor(value: Any) -> bool:
    """Whether it is torch's: of a torch that somebody else imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _array(leaf: Input, value: Any) -> Array:
    """`value` as the array that `leaf` is, contiguous."""
    found = _from_tensor(leaf, value) if is_tensor(value) else value
    if not isinstance(found, np.ndarray):
        raise _wrong(leaf.name, f"it is a {type(value).__name__}", f"numpy.asarray({leaf.name}, {leaf.dtype!r})")
    if found.dtype != np.dtype(leaf.dtype):
        raise _wrong(leaf.name, f"it is of {found.dtype}", f"{leaf.name}.astype({leaf.dtype!r})")
    if found.ndim != len(leaf.shape):
        raise _wrong(leaf.name, f"it has {found.ndim} axes, and the network was captured with {len(leaf.shape)}")
    return np.ascontiguousarray(found).reshape(found.shape)  # a number of no axes stays one


def _from_tensor(leaf: Input, value: Any) -> Any:
    """The array of a tensor of torch's, which has one if it is of the dtype of `leaf`, and plain."""
    if str(value.dtype) != f"torch.{leaf.dtype}":
        raise _wrong(leaf.name, f"it is of {value.dtype}", f"{leaf.name}.to(torch.{leaf.dtype})")
    if value.is_meta:
        raise _wrong(leaf.name, "it is on the meta device, which holds no values", "a tensor with data")
    if str(value.layout) != "torch.strided" or value.is_nested:
        seen = "it is nested" if value.is_nested else f"it is {value.layout}"
        raise _wrong(leaf.name, seen, f"{leaf.name}.to_dense(), or a padded tensor")
    return value.detach().cpu().resolve_conj().resolve_neg().numpy()


def _symbols(size: Any) -> set[str]:
    """The names in an expression."""
    if isinstance(size, list):
        return {name for argument in size[1:] for name in _symbols(argument)}
    return {size} if isinstance(size, str) else set()


def _wrong(name: str, seen: str, remedy: str = "what the network was captured with") -> QuantizationError:
    return QuantizationError(asked=f"run on this {name}", seen=seen, remedy=f"pass {remedy}", site=name)
