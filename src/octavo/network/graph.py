"""Capture: a PyTorch network as one graph of ATen operations, with the user's names and a dynamic batch.

`capture` copies the model, exports it with `torch.export` and runs `PASSES` over the graph. What comes back computes
the same function and is called in the same way, but every operation stands in the open, batch-norm is folded, and
attention and einsum are the matrix multiplications that they are (Wu et al. 2020, §4).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

from octavo.arguments import checked
from octavo.errors import QuantizationError
from octavo.network.batch_norm import BATCH_NORMS, fold_batch_norm, name_batch_norm
from octavo.network.canonical import REWRITES, to_matmul
from octavo.network.edit import copy_module
from octavo.network.export import check_dynamic, export, private_copy
from octavo.network.inputs import Inputs, check_example
from octavo.network.passes import (
    EFFECTS,
    IDENTITIES,
    VIEWS,
    WEIGHT_READERS,
    Pass,
    drop_effects,
    drop_unread,
    fold_constant_weights,
    loosen_views,
    remove_identities,
)
from octavo.network.recurrent import RECURRENT, split_recurrent
from octavo.network.soundness import check_sound

# In the order they run. Each leaves a graph that `check_graph` accepts.
PASSES: dict[str, Pass] = {
    "drop_effects": Pass(drop_effects, EFFECTS),
    "loosen_views": Pass(loosen_views, VIEWS),
    "remove_identities": Pass(remove_identities, IDENTITIES),
    "split_recurrent": Pass(split_recurrent, RECURRENT),
    "to_matmul": Pass(to_matmul, REWRITES),
    "fold_constant_weights": Pass(fold_constant_weights, WEIGHT_READERS),
    "fold_batch_norm": Pass(fold_batch_norm, BATCH_NORMS),
}
LIVE = {**PASSES, "fold_batch_norm": Pass(name_batch_norm, BATCH_NORMS)}  # for a network whose batch-norms stay


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

    @cached_property
    def inputs(self) -> Inputs:
        """What it can be called with."""
        return Inputs(self.module, self.example_args, self.example_kwargs)

    @property
    def device(self) -> torch.device:
        """Where its parameters are; the CPU if it has none."""
        return device_of(self.module) or torch.device("cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graph":
        args, kwargs = copy.deepcopy((self.example_args, self.example_kwargs), memo)
        return replace(self, module=copy_module(self.module), example_args=args, example_kwargs=kwargs)

    def __reduce__(self) -> Any:
        """As `saved/portable.py` writes it, a floor above and slow to import."""
        return import_module("octavo.saved.portable").reduced(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.inputs.check(args, kwargs, device=device_of(self.module))
        return self.module(*args, **kwargs)


@checked
def capture(
    model: nn.Module, example: Any, *, dynamic_axes: Sequence[int] = (0,), batch_norm: Literal["fold", "keep"] = "fold"
) -> Graph:
    """The graph of `model` in evaluation mode. The model itself is never touched.

    model         any module that `torch.export` accepts; for one that it does not, pass a submodule that it does
    example       one input: a tensor, a tuple of positional inputs, or a dict of keyword inputs
    dynamic_axes  axes of every tensor input that may have any size; (0, 1) for batch and sequence, () for none
    batch_norm    "keep" leaves it beside its layer, for `finetune` to train with its statistics live, and to fold then
    raises        QuantizationError naming the line of the user's module that cannot be exported
    """
    args, kwargs = call_arguments(example)
    check_example(args, kwargs)
    args, kwargs = tree_map(lambda leaf: _example_input(leaf, dynamic_axes), (args, kwargs))
    module = export(private_copy(model), args, kwargs, tuple(dynamic_axes))
    check_sound(module)
    drop_unread(module)
    for run in (PASSES if batch_norm == "fold" else LIVE).values():
        run(module)
    check_dynamic(module, dynamic_axes)
    graph = Graph(module=module, example_args=args, example_kwargs=kwargs, dynamic_axes=tuple(dynamic_axes))
    check_graph(graph)
    return graph


def call_arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) for a batch: a mapping gives keyword inputs, a tuple or list positional ones, all else is one."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    return (batch,), {}


def network_inputs(graph: Graph, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of `batch` that the network reads; labels after or beside them are left out.

    raises  QuantizationError naming the input that the network cannot be called with
    """
    if not graph.example_args and isinstance(batch, tuple | list) and batch:
        batch = batch[0]  # (dict of keyword inputs, labels)
    args, kwargs = call_arguments(batch)
    args = args[: len(graph.example_args)]
    kwargs = {name: kwargs[name] for name in graph.example_kwargs if name in kwargs}
    graph.inputs.check(args, kwargs)
    return args, kwargs


def device_of(module: nn.Module) -> torch.device | None:
    """Where the parameters of `module` are; None if it has none."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)


def clone(graph: Graph) -> Graph:
    """A graph whose operations and parameters can be changed without touching `graph`."""
    return replace(graph, module=copy_module(graph.module))


def check_graph(graph: Graph) -> None:
    """Check the invariants that every pass keeps and every later stage relies on.

    1. The graph is well-formed and every name that it reads exists.
    2. It holds inputs, parameters, functional operations and one output: no submodule calls, no in-place operations.
    3. Every floating-point value has a known shape and dtype.
    4. Nothing in it behaves differently in training (dropout, running statistics).
    """
    try:
        graph.module.graph.lint()
    except RuntimeError as error:
        _invariant_broken("graph", f"is not well-formed: {error}")
    for node in graph.module.graph.nodes:
        _check_node(node)


def _check_node(node: Node) -> None:
    if node.op == "call_function":
        if _is_unstable(node):
            _invariant_broken(node.name, f"holds {node.target}, which writes to its inputs or differs in training")
    elif node.op not in ("placeholder", "get_attr", "output"):
        _invariant_broken(node.name, f"holds a {node.op} of {node.target}")
    if node.op in ("call_function", "get_attr") and "val" not in node.meta:
        _invariant_broken(node.name, "does not know the shape of what it produces")


def _is_unstable(node: Node) -> bool:
    """Whether `node` writes to its inputs, or is told that this is training."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    if schema.is_mutable or "dropout" in schema.name:
        return True
    training = [value for argument, value in zip(schema.arguments, node.args, strict=False) if "train" in argument.name]
    return True in training and schema.overload_name != "no_stats"  # without running ones it is the same in both


def _invariant_broken(site: str, seen: str) -> None:
    raise QuantizationError(
        asked="check a captured graph",
        seen=f"it {seen}",
        remedy="this is a defect of the pass that ran last, not of your model; please report it",
        site=site,
    )


def _example_input(leaf: Any, axes: Sequence[int]) -> Any:
    """`leaf` as torch.export needs it: it takes a size of 1 for a constant, and one tensor given twice for one input.

    So every dynamic axis of size 1 is repeated to 2, and every tensor is a copy of its own; contiguous, because the
    layout of the example would be that of compiled code.
    """
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach().clone(memory_format=torch.contiguous_format)
    for axis in axes:
        if axis < leaf.ndim and leaf.shape[axis] == 1:
            leaf = leaf.repeat_interleave(2, dim=axis)
    return leaf
