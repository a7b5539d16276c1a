"""Capture: a PyTorch network as one graph of ATen operations, with the user's names and a dynamic batch.

`capture` copies the model, exports it with `torch.export` and runs `PASSES` over the graph. What comes back computes
the same function and is called in the same way, but every operation stands in the open, batch-norm is folded, and
attention and einsum are the matrix multiplications that they are (Wu et al. 2020, §4).
"""

import copy
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from octavo.errors import QuantizationError
from octavo.network.canonical import to_matmul
from octavo.network.passes import fold_batch_norm, fold_constant_weights, remove_identities

Pass = Callable[[GraphModule], None]

# In the order they run. Each edits the graph in place and leaves a graph that `verify` accepts.
PASSES: dict[str, Pass] = {
    "remove_identities": remove_identities,
    "fold_constant_weights": fold_constant_weights,
    "fold_batch_norm": fold_batch_norm,
    "to_matmul": to_matmul,
}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A captured network.

    module          ATen operations only; parameters under the user's names; called like the user's model
    example_args    the positional inputs it was captured with
    example_kwargs  the keyword inputs it was captured with
    dynamic_axes    the axes of every tensor input that may have any size, (0,) by default: the batch
    """

    module: GraphModule
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any]
    dynamic_axes: tuple[int, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def capture(model: nn.Module, example: Any, *, dynamic_axes: Sequence[int] = (0,)) -> Graph:
    """The graph of `model` in evaluation mode. The model itself is never touched.

    model         any module that `torch.export` accepts; for one that it does not, pass a submodule that it does
    example       one input: a tensor, a tuple of positional inputs, or a dict of keyword inputs
    dynamic_axes  axes of every tensor input that may have any size; (0, 1) for batch and sequence, () for none
    raises        QuantizationError naming the line of the user's module that cannot be exported
    """
    args, kwargs = call_arguments(example)
    args, kwargs = tree_map(lambda leaf: _widened(leaf, dynamic_axes), (args, kwargs))
    private = copy.deepcopy(model).eval()
    module = _export(private, args, kwargs, tuple(dynamic_axes))
    for run in PASSES.values():
        run(module)
    graph = Graph(module=module, example_args=args, example_kwargs=kwargs, dynamic_axes=tuple(dynamic_axes))
    verify(graph)
    return graph


def call_arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) for a batch: a mapping gives keyword inputs, a tuple or list positional ones, all else one input."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    return (batch,), {}


def clone(graph: Graph) -> Graph:
    """A graph whose operations and parameters can be changed without touching `graph`."""
    return replace(graph, module=copy.deepcopy(graph.module))


def verify(graph: Graph) -> None:
    """Check the invariants that every pass keeps and every later stage relies on.

    1. The graph is well-formed and every name that it reads exists.
    2. It holds inputs, parameters, functional operations and one output: no submodule calls, no in-place operations.
    3. Every floating-point value has a known shape and dtype.
    4. Nothing in it behaves differently in training (dropout, batch statistics).
    """
    module = graph.module
    module.graph.lint()
    for node in module.graph.nodes:
        _verify_node(node)


def _verify_node(node: torch.fx.Node) -> None:
    if node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        if schema is not None and (schema.is_mutable or "dropout" in schema.name):
            _invariant_broken(node, f"holds {node.target}, which writes to its inputs or differs in training")
    elif node.op not in ("placeholder", "get_attr", "output"):
        _invariant_broken(node, f"holds a {node.op} of {node.target}")
    if node.op in ("call_function", "get_attr") and "val" not in node.meta:
        _invariant_broken(node, "does not know the shape of what it produces")


def _invariant_broken(node: torch.fx.Node, seen: str) -> None:
    raise QuantizationError(
        asked="verify a captured graph",
        seen=f"it {seen}",
        remedy="this is a defect of the pass that ran last, not of your model; please report it",
        site=node.name,
    )


def _widened(leaf: Any, axes: Sequence[int]) -> Any:
    """`leaf` with every dynamic axis of size 1 repeated to 2: torch.export takes a size of 1 for a constant."""
    if not isinstance(leaf, Tensor):
        return leaf
    for axis in axes:
        if axis < leaf.ndim and leaf.shape[axis] == 1:
            leaf = leaf.repeat_interleave(2, dim=axis)
    return leaf


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], axes: tuple[int, ...]) -> GraphModule:
    def dynamic(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        return {axis: Dim.AUTO for axis in axes if axis < leaf.ndim}

    dynamic_shapes = tree_map(dynamic, (*args, *kwargs.values())) if axes else None
    if dynamic_shapes is not None and kwargs:
        names = list(_parameter_names(model, args)) + list(kwargs)
        dynamic_shapes = dict(zip(names, dynamic_shapes, strict=True))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations and notes about recurrent weights
            exported = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
            module = exported.run_decompositions({}).module(check_guards=False)
    except Exception as error:
        raise QuantizationError(
            asked=f"capture {type(model).__name__} with torch.export",
            seen=f"{_user_line(error)} cannot be exported ({_first_line(error)})",
            remedy="rewrite that line, or quantize a submodule: capture(model.part, example_of_that_part)",
        ) from error
    assert isinstance(module, GraphModule)
    _check_dynamic(module, axes)
    return module


def _parameter_names(model: nn.Module, args: tuple[Any, ...]) -> list[str]:
    code = getattr(model.forward, "__code__", None)
    names: tuple[str, ...] = code.co_varnames if code is not None else ()
    first = 1 if hasattr(model.forward, "__self__") else 0
    return list(names[first : first + len(args)])


def _check_dynamic(module: GraphModule, axes: tuple[int, ...]) -> None:
    for node in module.graph.nodes:
        if node.op != "placeholder" or not isinstance(node.meta.get("val"), Tensor):
            continue
        sizes = node.meta["val"].shape
        fixed = [axis for axis in axes if axis < len(sizes) and isinstance(sizes[axis], int)]
        if fixed:
            raise QuantizationError(
                asked=f"capture with axes {list(axes)} of every input dynamic",
                seen=f"the model works for size {[int(sizes[axis]) for axis in fixed]} of axis {fixed} only",
                remedy="look for a hard-coded size (view, reshape, a loop over the axis), or pass dynamic_axes=() "
                "to fix the sizes of the example",
                site=str(node.target),
            )


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
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
