"""Networks that are code: the model of a recipe, a function in a file, or what a caller hands in. It is executed."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from octavo.engines.signature import output_name
from octavo.errors import QuantizationError, reading
from octavo.gate.network import Array, Arrays, Opened, Port, Told
from octavo.measure import size_mb
from octavo.network.export import private_copy
from octavo.workflow.run import Recipe, imported, load_recipe

UNKNOWN = Told(by="nothing: code does not tell")


def read_recipe(path: Path) -> Recipe:
    """The recipe `path`, which is executed.

    raises  QuantizationError for one that fails, too
    """
    with reading(asked=f"read {path.name}", seen="its code failed", remedy="run it by itself", site=str(path)):
        return load_recipe(path)


def open_recipe(path: Path, name: str) -> Opened:
    """The model of the recipe `path`, run by torch as it is."""
    recipe = read_recipe(path)
    with reading(asked=f"open {name}", seen="its model() failed", remedy="run it by itself", site=str(path)):
        model = recipe.model()
    if not isinstance(model, nn.Module):
        raise QuantizationError(
            asked=f"open {name}",
            seen=f"its model() returned a {type(model).__name__}",
            remedy="return a torch.nn.Module, or name a function: file.py:function",
            site=str(path),
        )
    return open_callable(model, name)


def open_function(path: Path, function: str, name: str) -> Opened:
    """The function of that name in the file `path`: arrays in, by name or in their order; arrays or tensors out."""
    with reading(asked=f"open {name}", seen="its code failed", remedy="run it by itself", site=str(path)):
        found = getattr(imported(path), function, None)
    if not callable(found):
        raise QuantizationError(
            asked=f"open {name}",
            seen=f"there is no function {function} in it",
            remedy="write file.py:function, with the name of one",
            site=str(path),
        )
    return open_callable(found, name)


def open_callable(network: Callable[..., Any], name: str) -> Opened:
    """A torch module, which is called with tensors, or a function, with arrays."""
    module = isinstance(network, nn.Module)
    found = private_copy(network) if isinstance(network, nn.Module) else network
    inputs, by_name = _taken(found.forward if isinstance(found, nn.Module) else found, name)

    def call(arrays: Arrays) -> dict[str, Array]:
        given: dict[str, Any] = {key: tensor(array) if module else array for key, array in arrays.items()}
        with reading(asked=f"run {name}", seen="it failed", remedy="run it by itself on these samples"):
            with torch.inference_mode():
                value = found(**given) if by_name else found(*given.values())
            return named(value)

    return Opened(
        name=name,
        kind="torch module" if module else "Python function",
        runtime=f"PyTorch {torch.__version__}" if module else "Python",
        inputs=inputs,
        call=call,
        told=lambda arrays: UNKNOWN,
        network=found if module else None,
        size_mb=size_mb(found) if isinstance(found, nn.Module) else None,
    )


def _taken(function: Callable[..., Any], name: str) -> tuple[tuple[Port, ...] | None, bool]:
    """(the inputs that a call takes, None for any; whether they can be given by name)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise QuantizationError(
            asked=f"open {name}", seen="Python does not say what it takes", remedy="wrap it in a def"
        ) from error
    kinds = {one.kind for one in parameters}
    by_name = not kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return None, by_name
    return tuple(Port(name=one.name, needed=one.default is one.empty) for one in parameters), by_name


def tensor(array: Array) -> Tensor:
    """A tensor of its own with the numbers of `array`."""
    return torch.from_numpy(np.array(array))


def named(value: Any) -> dict[str, Array]:
    """What a call returned as arrays: under the keys of a dict, or "output", "output_0", ….

    raises  QuantizationError for what is no array of numbers, and for nothing
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and _is_numbers(value):
        value = np.asarray(value)
    leaves, _ = tree_flatten_with_path(dict(value) if isinstance(value, Mapping) else value)
    found = {output_name(path, set()): array_of(leaf) for path, leaf in leaves if leaf is not None}
    if not found:
        raise QuantizationError(
            asked="run a network", seen="it returns nothing", remedy="return arrays, tensors, or a dict of them"
        )
    return found


def _is_numbers(value: Sequence[Any]) -> bool:
    """Whether this is a list of numbers, or of lists of them."""
    return bool(value) and all(
        _is_numbers(one) if isinstance(one, list | tuple) else isinstance(one, int | float) for one in value
    )


def array_of(leaf: Any) -> Array:
    """A tensor or array of numbers as an array; bfloat16 as float32."""
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().cpu()
        leaf = (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).resolve_conj().resolve_neg().numpy()
    found = np.asarray(leaf)
    if found.dtype.kind not in "fiub":
        raise QuantizationError(
            asked="run a network",
            seen=f"it returns {found.dtype} in a {type(leaf).__name__}",
            remedy="return arrays or tensors of real numbers",
        )
    return found
