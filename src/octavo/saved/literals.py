"""The arguments of an operation as plain data, and back.

None, bool, int, str, list    as they are         {"tuple": […]}  {"slice": […]}
{"node": name}  {"float": "inf"}  {"device": "cpu"}  {"dtype": "float32"}  {"layout": …}  {"memory_format": …}
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from octavo.errors import QuantizationError, refused
from octavo.saved.sizes import Json

_BY_NAME = {  # {tag in the record: (type, its values by name)}
    "dtype": (torch.dtype, torch),
    "layout": (torch.layout, torch),
    "memory_format": (torch.memory_format, torch),
}


def written(argument: Any, node: Node) -> Json:  # noqa: PLR0911
    """`argument` of `node` as data; QuantizationError naming the node if it has no written form."""
    if argument is None or isinstance(argument, bool | int | str):
        return argument
    if isinstance(argument, float):
        return argument if math.isfinite(argument) else {"float": str(argument)}
    if isinstance(argument, Node):
        return {"node": argument.name}
    if isinstance(argument, list):
        return [written(item, node) for item in argument]
    if isinstance(argument, tuple):
        return {"tuple": [written(item, node) for item in argument]}
    if isinstance(argument, slice):
        return {"slice": [written(item, node) for item in (argument.start, argument.stop, argument.step)]}
    if isinstance(argument, torch.device):
        return {"device": str(argument)}
    for tag, (kind, _) in _BY_NAME.items():
        if isinstance(argument, kind):
            return {tag: str(argument).removeprefix("torch.")}
    raise cannot_write(node, f"it has an argument of type {type(argument).__name__}")


def cannot_write(node: Node, seen: str) -> QuantizationError:
    """That `node` has no written form."""
    return QuantizationError(
        asked="save a network",
        seen=seen,
        remedy="please report it: every operation that is captured should have a written form",
        site=node.name,
    )


def read(value: Json, nodes: Mapping[str, Node]) -> Any:
    """What `written` wrote; `nodes` are those that stand before it."""
    if isinstance(value, list):
        return [read(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag in _BY_NAME:
        kind, home = _BY_NAME[tag]
        found = getattr(home, str(inner), None)
        if not isinstance(found, kind):
            raise refused(None, f"{str(inner)[:100]!r} is no {tag}")
        return found
    return _READERS[tag](inner, nodes)


_READERS: dict[str, Callable[[Json, Mapping[str, Node]], Any]] = {
    "node": lambda name, nodes: nodes[name],
    "tuple": lambda items, nodes: tuple(read(item, nodes) for item in items),
    "slice": lambda items, nodes: slice(*read(items, nodes)),
    "float": lambda text, nodes: float(text),
    "device": lambda text, nodes: torch.device(text),
}
