"""What was called otherwise in the last version, and still works in this one, with a warning that names the new way.

Until version 0.1 the network and its parameters travelled as two values, `compile(graph, params)`; they are one now.
All of this goes with the next version.
"""

import warnings
from collections.abc import Callable
from functools import reduce, wraps
from typing import Any

from octavo.errors import QuantizationError

# A floor below the values that it speaks of, it knows those by the names of their classes.
# The functions that took a graph beside what was made from it, and those of them that returned both.
TOOK_PAIRS = (
    "observe", "choose_params", "simulate", "compile", "choose_engine", "export", "save", "repair", "finetune",
    "trainable", "trained",
)  # fmt: skip
RETURNED_PAIRS = ("repair", "trained")
RENAMED = {"Params": "Quantized", "Distance": "Difference"}
REPAIRS_RENAMED = {
    "equalize": "cross_layer_equalization",
    "migrate": "smoothquant",
    "learn_rounding": "adaround",
}


def former(old: str, new: str, *, level: int = 3) -> None:
    """Warn that `old` is now `new`."""
    warnings.warn(f"{old} is now {new}, and goes with the next version", DeprecationWarning, stacklevel=level)


def field_of_old(old: str, new: str) -> property:
    """A field that was called otherwise: `old` is "Class.field", `new` the path from the value to what it is now."""

    def read(self: Any) -> Any:
        former(old, f"{old.partition('.')[0]}.{new}")
        return reduce(getattr, new.split("."), self)

    return property(read, doc=f"Of old: `{new}`.")


def named_now(repair: str) -> str:
    """The name of a repair; of one that was called otherwise, with a warning."""
    if repair not in REPAIRS_RENAMED:
        return repair
    former(f"the repair {repair!r}", repr(REPAIRS_RENAMED[repair]), level=4)
    return REPAIRS_RENAMED[repair]


def with_pair(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which took a graph and what was made from it, and still takes both."""
    name = function.__name__

    @wraps(function)
    def door(*args: Any, **kwargs: Any) -> Any:
        pair = _pair(args, kwargs)
        if pair is None:
            return function(*args, **kwargs)
        graph, made, args, kwargs = pair
        former(f"octavo.{name}(graph, …)", f"octavo.{name}(…), of what was made from the graph alone")
        if made is not None and made.graph is not graph:
            raise QuantizationError(
                asked=f"call octavo.{name} with a graph and a {type(made).__name__}",
                seen="it was made from another graph",
                remedy=f"leave the graph out: a {type(made).__name__} has its own",
            )
        found = function(graph if made is None else made, *args, **kwargs)
        return (found.graph, found) if name in RETURNED_PAIRS else found

    return door


def _pair(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]] | None:
    """(graph, what was made from it or None, the other arguments) of a call in the former way; None for another."""
    given, kwargs = list(args), dict(kwargs)
    graph = given.pop(0) if given else kwargs.pop("graph", None)
    if type(graph).__name__ != "Graph":
        return None
    named = [name for name in ("plan", "params") if name in kwargs]
    if not named and not (given and (given[0] is None or type(given[0]).__name__ in ("Plan", "Quantized"))):
        return None
    made = kwargs.pop(named[0]) if named else given.pop(0)
    return graph, made, tuple(given), kwargs
