"""A captured graph as plain data, and back: JSON beside named tensors, neither code nor pickle.

    Graph ─▶ GraphRecord ─▶ JSON ─▶ GraphRecord ─▶ Graph

Operations are written by name and found again among those that torch has registered; sizes that depend on the inputs
are written as expressions of symbols and rebuilt from a fixed list of functions. Nothing in a record is executed.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node

from octavo.errors import QuantizationError
from octavo.network.edit import attribute, layer_of, submodule
from octavo.network.graph import Graph
from octavo.network.sizes import Json, Symbols, Values, value_record
from octavo.network.structure import Structure, spec_of, structure_of


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeRecord(_Record):
    """One node: `val` is what it produces, in the form of `value_record`; `layer` the user's."""

    op: str
    name: str
    target: str
    args: list[Json]
    kwargs: dict[str, Json]
    val: Json
    layer: str


class InputRecord(_Record):
    """An input of the example: the shape, dtype and range of a tensor, or the value of anything else."""

    shape: tuple[int, ...] | None = None
    dtype: str = ""
    low: float = 0.0
    high: float = 0.0
    value: Json = None


class GraphRecord(_Record):
    """A captured graph without its tensors.

    symbols    {name of a size that depends on the inputs: its value in the example}
    arguments  names of the arguments of forward
    """

    nodes: list[NodeRecord]
    symbols: dict[str, int]
    arguments: list[str]
    inputs: Structure
    outputs: Structure
    example: list[InputRecord]
    dynamic_axes: tuple[int, ...]


def graph_record(graph: Graph) -> GraphRecord:
    """`graph` as data; its tensors are those that `tensors_of` names.

    raises  QuantizationError naming the operation that cannot be written
    """
    info = graph.module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    symbols = Symbols()
    nodes = [_node_record(node, symbols) for node in graph.module.graph.nodes]
    leaves = torch.utils._pytree.tree_leaves((graph.example_args, graph.example_kwargs))
    return GraphRecord(
        nodes=nodes,
        symbols=symbols.values,
        arguments=list(info.orig_args),
        inputs=structure_of(info.in_spec),
        outputs=structure_of(info.out_spec),
        example=[_input_record(leaf) for leaf in leaves],
        dynamic_axes=graph.dynamic_axes,
    )


def tensors_of(graph: Graph) -> dict[str, Tensor]:
    """{name: tensor} of every parameter and buffer that the graph reads."""
    return {
        str(node.target): attribute(graph.module, node).detach()
        for node in graph.module.graph.nodes
        if node.op == "get_attr"
    }


def graph_of(record: GraphRecord, tensors: Mapping[str, Tensor]) -> Graph:
    """The graph that `record` was made from, with these tensors; its example inputs are random in the same ranges.

    raises  QuantizationError for an operation that this version of torch does not have
    """
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        submodule(root, owner).register_buffer(leaf, tensor)
    graph, values = FxGraph(), Values(record.symbols)
    nodes: dict[str, Node] = {}
    for row in record.nodes:
        args, kwargs = _read((row.args, row.kwargs), nodes)
        target = _operator(row) if row.op == "call_function" else row.target
        node = graph.create_node(row.op, target, tuple(args), kwargs, name=row.name)
        node.meta["val"] = values.read(row.val)
        if row.layer:
            node.meta["nn_module_stack"] = {row.layer: (row.layer, "")}
        nodes[row.name] = node
    module = GraphModule(root, graph)
    module._in_spec, module._out_spec = spec_of(record.inputs), spec_of(record.outputs)
    graph.set_codegen(_codegen(record.arguments, module._in_spec, module._out_spec))
    module.recompile()
    args, kwargs = torch.utils._pytree.tree_unflatten(map(_example, record.example), module._in_spec)
    return Graph(module=module, example_args=args, example_kwargs=kwargs, dynamic_axes=record.dynamic_axes)


def _codegen(arguments: list[str], in_spec: Any, out_spec: Any) -> Any:
    codegen = torch.fx.graph._PyTreeCodeGen
    return codegen(torch.fx.graph._PyTreeInfo(arguments, in_spec, out_spec))


# ---- operations and their arguments

_OF_OPERATOR = "getitem add sub mul floordiv truediv mod pow neg pos abs eq ne lt le gt ge and_ or_ not_"
_OF_TORCH = "sym_int sym_float sym_max sym_min sym_not sym_ite"
_PLAIN: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in _OF_OPERATOR.split()},
    **{name: getattr(torch, name) for name in _OF_TORCH.split()},
    **{name: getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
_PLAIN_NAMES: dict[Any, str] = {function: name for name, function in _PLAIN.items()}
_BY_NAME = {  # {tag in the record: (type, its values by name)}
    "dtype": (torch.dtype, torch),
    "layout": (torch.layout, torch),
    "memory_format": (torch.memory_format, torch),
}


def _node_record(node: Node, symbols: Symbols) -> NodeRecord:
    return NodeRecord(
        op=node.op,
        name=node.name,
        target=_target(node),
        args=[_written(argument, node) for argument in node.args],
        kwargs={name: _written(argument, node) for name, argument in node.kwargs.items()},
        val=value_record(node.meta.get("val"), symbols),
        layer=layer_of(node),
    )


def _target(node: Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    if node.target in _PLAIN_NAMES:
        return _PLAIN_NAMES[node.target]
    raise _cannot_write(node, f"it calls {node.target}")


def _operator(row: NodeRecord) -> Callable[..., Any]:
    if row.target in _PLAIN:
        return _PLAIN[row.target]
    try:
        namespace, name, overload = row.target.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except (ValueError, AttributeError) as error:
        raise QuantizationError(
            asked="read a saved network",
            seen=f"torch {torch.__version__} has no operation {row.target!r}",
            remedy="import the package that registers it, or use the version of torch that the network was saved with",
            site=row.name,
        ) from error
    assert isinstance(found, torch._ops.OpOverload)
    return found


def _written(argument: Any, node: Node) -> Json:  # noqa: PLR0911
    if argument is None or isinstance(argument, bool | int | str):
        return argument
    if isinstance(argument, float):
        return argument if math.isfinite(argument) else {"float": str(argument)}
    if isinstance(argument, Node):
        return {"node": argument.name}
    if isinstance(argument, list):
        return [_written(item, node) for item in argument]
    if isinstance(argument, tuple):
        return {"tuple": [_written(item, node) for item in argument]}
    if isinstance(argument, slice):
        return {"slice": [_written(item, node) for item in (argument.start, argument.stop, argument.step)]}
    if isinstance(argument, torch.device):
        return {"device": str(argument)}
    for tag, (kind, _) in _BY_NAME.items():
        if isinstance(argument, kind):
            return {tag: str(argument).removeprefix("torch.")}
    raise _cannot_write(node, f"it has an argument of type {type(argument).__name__}")


def _cannot_write(node: Node, seen: str) -> QuantizationError:
    return QuantizationError(
        asked="save a network",
        seen=seen,
        remedy="please report it: every operation that is captured should have a written form",
        site=node.name,
    )


def _read(value: Json, nodes: Mapping[str, Node]) -> Any:
    if isinstance(value, tuple):  # ours, around args and kwargs
        return [_read(value[0], nodes), {name: _read(item, nodes) for name, item in value[1].items()}]
    if isinstance(value, list):
        return [_read(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag in _BY_NAME:
        kind, home = _BY_NAME[tag]
        found = getattr(home, inner)
        assert isinstance(found, kind)
        return found
    return _READERS[tag](inner, nodes)


_READERS: dict[str, Callable[[Json, Mapping[str, Node]], Any]] = {
    "node": lambda name, nodes: nodes[name],
    "tuple": lambda items, nodes: tuple(_read(items, nodes)),
    "slice": lambda items, nodes: slice(*_read(items, nodes)),
    "float": lambda text, nodes: float(text),
    "device": lambda text, nodes: torch.device(text),
}


# ---- the example

_RANDOM = 0  # seed of the example inputs that are made anew


def _input_record(leaf: Any) -> InputRecord:
    if not isinstance(leaf, Tensor):
        return InputRecord(value=leaf)
    finite = leaf[torch.isfinite(leaf)] if leaf.is_floating_point() else leaf
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
    return InputRecord(shape=tuple(leaf.shape), dtype=str(leaf.dtype).removeprefix("torch."), low=low, high=high)


def _example(record: InputRecord) -> Any:
    """Uniform in the range of the tensor that it stands for."""
    if record.shape is None:
        return record.value
    dtype, source = getattr(torch, record.dtype), torch.Generator().manual_seed(_RANDOM)
    uniform = torch.rand(record.shape, dtype=torch.float64, generator=source)
    if dtype.is_floating_point:
        return (record.low + uniform * (record.high - record.low)).to(dtype)
    return (record.low + uniform * (record.high - record.low + 1)).floor().clamp(record.low, record.high).to(dtype)
