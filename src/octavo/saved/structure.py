"""How the inputs and outputs of a network are nested, as plain data: no class of the user's is needed to read it."""

from collections import namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch.utils._pytree import TreeSpec, tree_structure, tree_unflatten

from octavo.errors import QuantizationError


class Structure(BaseModel):
    """A nest of tuples, lists and dicts.

    kind      "leaf" is a tensor, a number or None; "named" a namedtuple
    name      of a namedtuple
    keys      of a dict, or the fields of a namedtuple
    children  in the order of the leaves
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["leaf", "tuple", "list", "dict", "named"]
    name: str = ""
    keys: tuple[str | int, ...] = ()
    children: "tuple[Structure, ...]" = ()


def structure_of(spec: TreeSpec) -> Structure:
    """`spec` as data. Mappings of any class, such as a library's own output type, become dicts.

    raises  QuantizationError for a class that is neither a tuple, a list nor a mapping
    """
    return _described(tree_unflatten(range(spec.num_leaves), spec))


def _described(value: Any) -> Structure:
    if isinstance(value, int):  # the number of a leaf
        return Structure(kind="leaf")
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        children = tuple(map(_described, value))
        return Structure(kind="named", name=type(value).__name__, keys=value._fields, children=children)
    if isinstance(value, tuple | list):
        kind: Literal["tuple", "list"] = "tuple" if isinstance(value, tuple) else "list"
        return Structure(kind=kind, children=tuple(map(_described, value)))
    if is_dataclass(value) and not isinstance(value, Mapping):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return Structure(kind="dict", keys=tuple(value), children=tuple(map(_described, value.values())))
    raise QuantizationError(
        asked="save how a network is called",
        seen=f"it takes or returns a {type(value).__name__}, which cannot be read without its class",
        remedy="let the network take and return tensors, tuples, lists and dicts",
    )


def spec_of(structure: Structure) -> TreeSpec:
    """The TreeSpec of `structure`."""
    return tree_structure(_built(structure, iter(int, 1)))


def _built(structure: Structure, leaves: Iterator[Any]) -> Any:
    if structure.kind == "leaf":
        return next(leaves)
    children = [_built(child, leaves) for child in structure.children]
    if structure.kind == "dict":
        return dict(zip(structure.keys, children, strict=True))
    if structure.kind == "named":
        return namedtuple(structure.name, map(str, structure.keys))(*children)
    return tuple(children) if structure.kind == "tuple" else children
