"""A private copy of a model: whatever runs in it, nothing of the user's is touched, hooks and what they hold included.

`copy.deepcopy` takes functions for constants, so a hook that is one would go on writing into the user's own objects:
fake tensors of torch.export into a list of activations, say. Here such a function is copied with all that it closes
over and every global object that it names, under the memo of the model: what it holds of the model is the copy's.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from octavo.errors import QuantizationError
from octavo.quiet import OWN_DEPRECATION, quiet

HOOKS = ("_forward_pre_hooks", "_forward_hooks")  # those that run in a forward pass
_SHARED = (ModuleType, type, BuiltinFunctionType)  # globals that are code, and hold no results

Memo = dict[int, Any]


def private(model: nn.Module) -> nn.Module:
    """A copy that shares no storage with `model`, and whose hooks share no object with those of `model`.

    raises  QuantizationError for a model or a hook that holds what cannot be copied, such as a lock or an open file
    """
    # deepcopy refuses tensors that a backward pass made, such as the weight that torch.nn.utils.weight_norm keeps.
    attributes = (value for module in model.modules() for value in vars(module).values())
    computed = [value for value in attributes if isinstance(value, Tensor) and not value.is_leaf]
    memo: Memo = {id(tensor): tensor.detach().clone() for tensor in computed}
    try:
        with quiet(ignored=(OWN_DEPRECATION,)):
            found = copy.deepcopy(model, memo)
    except Exception as error:  # of whatever the model holds
        raise QuantizationError(
            asked=f"copy {type(model).__name__}",
            seen=f"it holds what cannot be copied ({type(error).__name__}: {str(error)[:120]})",
            remedy="take locks, files, generators and the like out of the model, or detach the tensors that it stores",
        ) from error
    for name, module in found.named_modules():
        _own_hooks(name, module, memo)
    return found


def _own_hooks(name: str, module: nn.Module, memo: Memo) -> None:
    for kind in HOOKS:
        for key, hook in vars(module)[kind].items():
            try:
                vars(module)[kind][key] = _own(hook, memo)
            except Exception as error:  # of whatever the hook holds
                raise QuantizationError(
                    asked=f"copy the hook {getattr(hook, '__qualname__', type(hook).__name__)}",
                    seen=f"it holds what cannot be copied ({type(error).__name__}: {str(error)[:120]})",
                    remedy="remove it before capture: handle = module.register_forward_hook(…), handle.remove()",
                    site=name or "the model",
                ) from error
    forward = vars(module).get("forward")  # put there by who wraps a module; torch.compile does so with code alone
    if isinstance(forward, FunctionType) and not forward.__module__.startswith("torch."):
        vars(module)["forward"] = _own(forward, memo)


def _own(value: Any, memo: Memo) -> Any:
    """`value` with copies of all that it holds; deepcopy's result for what is no function."""
    if isinstance(value, FunctionType):
        return memo[id(value)] if id(value) in memo else _own_function(value, memo)
    if isinstance(value, partial):
        return partial(_own(value.func, memo), *_own_all(value.args, memo), **_own_named(value.keywords, memo))
    if isinstance(value, MethodType):
        return MethodType(_own(value.__func__, memo), copy.deepcopy(value.__self__, memo))
    return copy.deepcopy(value, memo)


def _own_all(values: Any, memo: Memo) -> tuple[Any, ...]:
    return tuple(_own(value, memo) for value in values)


def _own_named(values: dict[str, Any], memo: Memo) -> dict[str, Any]:
    return {name: _own(value, memo) for name, value in values.items()}


def _own_function(function: FunctionType, memo: Memo) -> Callable[..., Any]:
    held = function.__closure__ or ()
    cells = tuple(CellType() for _ in held)
    names = set(_names(function.__code__))
    wanted = {name: value for name, value in function.__globals__.items() if name in names and _holds(value, function)}
    scope = dict(function.__globals__)
    own = FunctionType(function.__code__, scope, function.__name__, None, cells)
    memo[id(function)] = own  # before what it holds: it may hold itself
    scope.update(_own_named(wanted, memo))
    for cell, source in zip(cells, held, strict=True):
        cell.cell_contents = _own(source.cell_contents, memo)
    own.__defaults__ = None if function.__defaults__ is None else _own_all(function.__defaults__, memo)
    own.__kwdefaults__ = _own_named(function.__kwdefaults__ or {}, memo)
    own.__dict__.update(function.__dict__)
    return own


def _holds(value: Any, reader: FunctionType) -> bool:
    """Whether a global may hold results: a function of the reader's own file may, through its globals."""
    if isinstance(value, FunctionType):
        return value.__module__ == reader.__module__
    return not isinstance(value, _SHARED)


def _names(code: CodeType) -> Iterator[str]:
    """The global names in a function and in those that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
