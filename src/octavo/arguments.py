"""The door of every public function: arguments are what its annotations say, or one error that names them.

`checked` reads the annotations of a function, `check_fields` those of a dataclass: there is no second table to keep.
"""

import inspect
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from octavo.errors import QuantizationError

P = ParamSpec("P")
Result = TypeVar("Result")

# Where values of our own types come from, and what is often given in place of others.
REMEDIES = {
    "Graph": "pass what octavo.capture(model, example) returns",
    "Plan": "pass what octavo.make_plan(graph) returns",
    "Quantized": "pass what octavo.choose_params(plan, stats) returns",
    "Module": "pass a torch.nn.Module: an instance of its class; the model that a state_dict was loaded into; the "
    "module() of an ExportedProgram; for a function, a module whose forward calls it",
    "Batches": "pass a list of batches or a DataLoader",
}

# What an annotation stands for in Python's own words; a bool is no number, and numpy's scalars are.
_ABSTRACT: dict[Any, Any] = {int: numbers.Integral, float: numbers.Real, os.PathLike: os.PathLike}
_NAMES = {int: "an integer", float: "a number", bool: "True or False", str: "a string", NoneType: "None"}


def checked(function: Callable[P, Result]) -> Callable[P, Result]:
    """`function`, which raises QuantizationError for arguments that its annotations exclude, and then does nothing."""

    @wraps(function)
    def door(*args: P.args, **kwargs: P.kwargs) -> Result:
        _check_call(function, args, kwargs)
        return function(*args, **kwargs)

    return door


def check_fields(value: Any) -> None:
    """Raise QuantizationError naming the field of a dataclass that is not what its annotation says."""
    hints = _hints(cast("Callable[..., Any]", type(value)))
    for field in fields(value):
        _check(f"make a {type(value).__name__}", field.name, getattr(value, field.name), hints[field.name])


def made_folder(path: str | Path) -> Path:
    """The folder at `path`, made if it is not there; QuantizationError where something else is."""
    found = Path(path)
    if found.exists() and not found.is_dir():
        raise QuantizationError(
            asked="keep results in a folder", seen="this is a file", remedy="name a folder in out=", site=str(path)
        )
    found.mkdir(parents=True, exist_ok=True)
    return found


def _check_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    signature, hints = _signature(function), _hints(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise QuantizationError(
            asked=f"call octavo.{function.__name__}", seen=str(error), remedy=f"its arguments are {signature}"
        ) from error
    for name, value in given.items():
        kind = signature.parameters[name].kind
        if kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            _check(f"call octavo.{function.__name__}", name, value, hints.get(name, Any))


@lru_cache(maxsize=256)  # methods like percentile(99.9) are functions made on the way
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


@lru_cache(maxsize=256)
def _hints(what: Callable[..., Any]) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(what).items() if name != "return"}


def _check(asked: str, name: str, value: Any, hint: Any) -> None:
    if not matches(value, hint):
        remedy = next((REMEDIES[word] for word in _words(hint) if word in REMEDIES), f"pass {described(hint)}")
        raise QuantizationError(
            asked=f"{asked} with {name}={_short(value)}",
            seen=f"{name} has to be {described(hint)}",
            remedy=remedy,
            site=name,
        )


def matches(value: Any, hint: Any) -> bool:
    """Whether `value` is what the annotation `hint` says, as far as can be told without reading an iterator."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(matches(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    kind = origin or hint
    if kind in (int, float):
        return isinstance(value, _ABSTRACT[kind]) and not isinstance(value, bool)
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](value, inner)
    if kind is None:
        return value is None
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _is_sequence(value: Any, inner: tuple[Any, ...]) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and all(matches(one, inner[0]) for one in (value if inner and inner[0] is not Any else ()))  # data stay unread
    )


def _is_iterable(value: Any, inner: tuple[Any, ...]) -> bool:
    """A list, a loader, a generator or a dataset: no text, no single tensor, no model and no class."""
    if isinstance(value, str | bytes | Tensor | Mapping | nn.Module | type):
        return False
    if isinstance(value, Sequence):
        return _is_sequence(value, inner)
    return hasattr(value, "__iter__") or hasattr(value, "__getitem__")


def _is_tuple(value: Any, inner: tuple[Any, ...]) -> bool:
    return isinstance(value, tuple) and (inner[1:] != (...,) or all(matches(one, inner[0]) for one in value))


def _is_mapping(value: Any, inner: tuple[Any, ...]) -> bool:
    return isinstance(value, Mapping) and all(
        matches(key, inner[0]) and matches(one, inner[1]) for key, one in (value.items() if inner else ())
    )


_CONTAINERS: dict[Any, Callable[[Any, tuple[Any, ...]], bool]] = {
    Sequence: _is_sequence,
    tuple: _is_tuple,
    Mapping: _is_mapping,
    Iterable: _is_iterable,
}


def described(hint: Any) -> str:
    """An annotation in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(described(one) for one in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is Callable or hint is Callable:
        return "a function"
    if hint in _NAMES:
        return _NAMES[hint]
    name = getattr(origin or hint, "__name__", str(hint))
    what = f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
    shown = [described(one) for one in inner if one is not ... and one is not Any]
    return f"{what} of {', '.join(shown)}" if shown and origin is not os.PathLike else what


def _words(hint: Any) -> list[str]:
    """The names of the types in an annotation, outermost first."""
    batches = get_origin(hint) is Iterable and get_args(hint) == (Any,)
    own = "Batches" if batches else getattr(get_origin(hint) or hint, "__name__", "")
    return [own, *(word for one in get_args(hint) for word in _words(one))]


def _short(value: Any) -> str:
    """A value in a message: whole if it is short, else its type."""
    if isinstance(value, bool | int | float | str | None) or (isinstance(value, list | tuple | dict) and not value):
        return repr(value)[:80]
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
