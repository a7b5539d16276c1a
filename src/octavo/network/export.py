"""torch.export of a private copy: ATen operations with a dynamic batch, or an error that names the user's line."""

import inspect
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportGraphSignature
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from octavo.errors import QuantizationError, reason
from octavo.network.private import private
from octavo.quiet import quiet

_FAILURE_LOGS = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")


def private_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares no storage with `model`.

    raises  QuantizationError for TorchScript, for parameters without values, and for what cannot be copied
    """
    scripted = [name for name, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        raise QuantizationError(
            asked="capture a TorchScript module",
            seen="torch.export reads Python modules only",
            remedy="capture the nn.Module that it was scripted or traced from",
            site=scripted[0] or None,
        )
    empty = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if empty:
        raise QuantizationError(
            asked=f"capture {type(model).__name__}",
            seen="this parameter is on the meta device, which holds no values",
            remedy='load the weights first: model.to_empty(device="cpu"), and then load_state_dict',
            site=empty[0],
        )
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise QuantizationError(
            asked=f"capture {type(model).__name__}",
            seen="this lazy parameter has no shape yet",
            remedy="call the model once on a batch of data, and then capture it",
            site=lazy[0],
        )
    return private(model).eval()


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], axes: tuple[int, ...]) -> GraphModule:
    """`model` as ATen operations, with `axes` of every tensor input dynamic.

    raises  QuantizationError naming the line of the user's module that cannot be exported, inputs that do not fit, or a
            buffer that the model writes to
    """
    dynamic_shapes = _dynamic_shapes(model, args, kwargs, axes) if axes else None
    try:
        with (
            quiet(*_FAILURE_LOGS, level=logging.CRITICAL),
            redirect_stderr(StringIO()),
            _without_fused_transformers(),
            without_autocast(),
        ):
            exported = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
            exported = exported.run_decompositions({})
            _check_stateless(exported.graph_signature)
            module = exported.module(check_guards=False)
    except QuantizationError:
        raise
    except Exception as error:
        raise QuantizationError(
            asked=f"capture {type(model).__name__} with torch.export",
            seen=f"{_user_line(error)} cannot be exported ({_first_line(error)})",
            remedy="rewrite that line, or quantize a submodule: capture(model.part, example_of_that_part)",
        ) from error
    assert isinstance(module, GraphModule)
    for refused in ("train", "eval"):  # torch forbids both; the graph is in evaluation mode, whatever the flag says
        vars(module).pop(refused, None)
    return module


def _dynamic_shapes(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], axes: tuple[int, ...]
) -> dict[str, Any]:
    """`axes` of every tensor marked as dynamic, in the structure of the arguments of `model.forward`.

    raises  QuantizationError if the inputs do not fit the arguments
    """

    def dynamic(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        return {axis: Dim.AUTO for axis in axes if axis < leaf.ndim}

    signature = inspect.signature(model.forward)
    remedy = "give a tensor, a tuple of positional inputs or a dict of keyword inputs; (inputs,) for a dict that is one"
    try:
        bound = signature.bind(*args, **kwargs)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD and name in bound.arguments:
                remedy = "name the inputs in the arguments of forward: torch.export cannot make those of a ** dynamic"
                raise TypeError(f"{list(bound.arguments[name])} fall under **{name}")
    except TypeError as error:
        raise QuantizationError(
            asked=f"capture {type(model).__name__}.forward{signature}",
            seen=f"the example does not fit it: {error}",
            remedy=remedy,
        ) from error
    shapes: dict[str, Any] = tree_map(dynamic, dict(bound.arguments))
    return shapes


@contextmanager
def _without_fused_transformers() -> Iterator[None]:
    """Without torch's inference-only kernels for whole transformer layers, which hide every operation inside them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def without_autocast() -> Iterator[None]:
    """In the precision of the network itself: autocast would be written into the graph, or change what is compared."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def _check_stateless(signature: ExportGraphSignature) -> None:
    for name in signature.buffers_to_mutate.values():
        raise QuantizationError(
            asked="capture a network that computes the same function at every call",
            seen="the model writes to this buffer in evaluation mode",
            remedy="update it in training mode only, or make it an input and an output",
            site=name,
        )


def check_dynamic(module: GraphModule, axes: Sequence[int]) -> None:
    """Raise if an axis is fixed in every input that has it; a mask [T, T] beside a batch of inputs may be."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder" and isinstance(node.meta["val"], Tensor)]
    for axis in axes:
        having = [node for node in inputs if axis < node.meta["val"].ndim]
        if having and all(_is_fixed(node.meta["val"].shape[axis]) for node in having):
            raise QuantizationError(
                asked=f"capture with axis {axis} of the inputs dynamic",
                seen=f"the model works for size {int(having[0].meta['val'].shape[axis])} only",
                remedy="look for a hard-coded size (view, len(x), a loop over the axis), pass dynamic_axes=(1,) if the "
                "batch is axis 1, or dynamic_axes=() to fix the sizes of the example",
                site=str(having[0].target),
            )


def _is_fixed(size: int | torch.SymInt) -> bool:
    """Whether a size is a number; torch.export leaves some as symbols with only one solution."""
    return isinstance(size, int) or size.node.maybe_as_int() is not None


def _user_line(error: BaseException) -> str:
    """`file:line, in function: source` of the innermost frame outside torch; that is the user's module."""
    torch_home = str(Path(torch.__file__).parent)
    here = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((torch_home, here, "<")) and "contextlib" not in frame.filename
    ]
    if not frames:
        return "the model"
    frame = frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}: `{frame.line}`"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}"[:200]
