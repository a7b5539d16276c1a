"""A captured graph as plain data, and back: JSON beside named tensors, neither code nor pickle.

    Graph ─▶ GraphRecord ─▶ JSON ─▶ GraphRecord ─▶ Graph

Operations are written by name and found again among those that are allowed (`octavo.saved.allowed`); sizes that
depend on the inputs are written as expressions of symbols and rebuilt from a fixed list of functions. torch writes
Python from a graph, so whatever becomes a name in it has to be one: nothing in a record is executed.
"""

import keyword
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints
from torch import Tensor
from torch.fx import Graph as FxGraph, GraphModule, Node
from torch.utils._pytree import TreeSpec

from octavo.errors import refused
from octavo.network.edit import attribute, layer_of, submodule, tree_info
from octavo.network.graph import Graph
from octavo.saved.allowed import NAME_OF_SIZES, check_arguments, operator_named
from octavo.saved.literals import cannot_write, read, written
from octavo.saved.sizes import Json, Symbols, Values, dtype_named, value_record
from octavo.saved.structure import Structure, spec_of, structure_of

MOST_NODES, MOST_INPUTS = 20_000, 1_000


def _no_keyword(name: str) -> str:
    if keyword.iskeyword(name):
        raise ValueError(f"{name} is a word of Python")
    return name


Identifier = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\z", max_length=1000), AfterValidator(_no_keyword)
]
Printable = Annotated[str, StringConstraints(pattern=r"""^[^\x00-\x1f\x7f"'\\]*\z""", max_length=1000)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeRecord(_Record):
    """One node: `val` is what it produces, in the form of `value_record`; `layer` the user's."""

    op: Literal["placeholder", "get_attr", "call_function", "output"]
    name: Identifier
    target: Printable
    args: list[Json]
    kwargs: dict[Identifier, Json]
    val: Json
    layer: Printable


class InputRecord(_Record):
    """An input of the example: the shape, dtype and range of a tensor, or the value of anything else."""

    shape: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    dtype: str = ""
    low: FiniteFloat = 0.0
    high: FiniteFloat = 0.0
    value: bool | int | float | str | None = None


class GraphRecord(_Record):
    """A captured graph without its tensors.

    symbols    {name of a size that depends on the inputs: its value in the example}
    arguments  names of the arguments of forward
    """

    nodes: Annotated[list[NodeRecord], Field(min_length=1, max_length=MOST_NODES)]
    symbols: Annotated[dict[Identifier, int], Field(max_length=MOST_INPUTS)]
    arguments: Annotated[list[Identifier], Field(max_length=MOST_INPUTS)]
    inputs: Structure
    outputs: Structure
    example: Annotated[list[InputRecord], Field(max_length=MOST_INPUTS)]
    dynamic_axes: Annotated[tuple[int, ...], Field(max_length=64)]


def graph_record(graph: Graph) -> GraphRecord:
    """`graph` as data; its tensors are those that `tensors_of` names.

    raises  QuantizationError naming the operation that cannot be written
    """
    info = tree_info(graph.module)
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


def graph_from(record: GraphRecord, tensors: Mapping[str, Tensor], *, operators: Collection[str] = ()) -> Graph:
    """The graph that `record` was made from, with these tensors; its example inputs are random in the same ranges.

    Nothing is computed: `octavo.saved.cost` says whether the operations fit together, and what they would take.

    operators  further ones that the caller trusts, see `operator_named`
    raises     QuantizationError for an operation that is not allowed or that this version of torch does not have, and
               for names, arguments and structures that no captured network has
    """
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        submodule(root, owner).register_buffer(leaf, tensor)
    in_spec, out_spec = spec_of(record.inputs), spec_of(record.outputs)
    _check_signature(record, in_spec, out_spec)
    graph, values = FxGraph(), Values(record.symbols)
    nodes: dict[str, Node] = {}
    for row in record.nodes:
        if row.op == "get_attr" and row.target not in tensors:
            raise refused(row.name, f"it reads the parameter {row.target[:100]!r}, which is not stored")
        node = _node(row, graph, nodes, operators)
        node.meta["val"] = values.read(row.val)
        if row.layer:
            node.meta["nn_module_stack"] = {row.layer: (row.layer, "")}
        nodes[row.name] = node
    module = GraphModule(root, graph)
    module._in_spec, module._out_spec = in_spec, out_spec
    graph.set_codegen(_codegen(record.arguments, in_spec, out_spec))
    module.recompile()
    args, kwargs = torch.utils._pytree.tree_unflatten(map(_example, record.example), in_spec)
    return Graph(module=module, example_args=args, example_kwargs=kwargs, dynamic_axes=record.dynamic_axes)


def _node(row: NodeRecord, graph: FxGraph, nodes: Mapping[str, Node], operators: Collection[str]) -> Node:
    args, kwargs = [read(item, nodes) for item in row.args], {name: read(v, nodes) for name, v in row.kwargs.items()}
    target: Any = row.target
    if row.op == "call_function":
        target = operator_named(row.target, row.name, operators)
        check_arguments(row.name, target, tuple(args), kwargs)
    elif row.op == "placeholder" and (args or kwargs or not row.target.isidentifier() or keyword.iskeyword(row.target)):
        raise refused(row.name, "it is an input whose name is no name")
    elif row.op == "get_attr" and (args or kwargs):
        raise refused(row.name, "it reads a parameter, and has arguments")
    node = graph.create_node(row.op, target, tuple(args), kwargs, name=row.name)
    if node.name != row.name:
        raise refused(row.name, "its name is taken, or none that torch gives")
    return node


def _check_signature(record: GraphRecord, in_spec: TreeSpec, out_spec: TreeSpec) -> None:
    """Inputs with names of their own, one output at the end, and as many of both as the structures have leaves."""
    if [record.inputs.kind, *(child.kind for child in record.inputs.children)] != ["tuple", "tuple", "dict"]:
        raise refused("inputs", "its inputs are not positional and keyword arguments")
    positional, keywords = record.inputs.children
    ops, last = [row.op for row in record.nodes], record.nodes[-1]
    names = [row.target for row in record.nodes if row.op == "placeholder"]
    counts = {len(names), len(set(names)), in_spec.num_leaves, len(record.example)}
    returned = last.args[0] if len(last.args) == 1 else None
    returned = returned.get("tuple") if isinstance(returned, dict) else returned
    for holds, seen in (
        (set(keywords.keys) <= {*record.arguments}, "its keyword arguments are not those of its forward"),
        (len(record.arguments) == len(positional.children) + len(keywords.children), "its forward has others"),
        (len(counts) == 1, f"its inputs, their names, examples and leaves are of the numbers {counts}"),
        (ops.index("output") == len(ops) - 1 if "output" in ops else False, "it does not end with its outputs"),
        (isinstance(returned, list) and len(returned) == out_spec.num_leaves, "it returns others than it says"),
    ):
        if not holds:
            raise refused("arguments", seen)


def _codegen(arguments: list[str], in_spec: Any, out_spec: Any) -> Any:
    codegen = torch.fx.graph._PyTreeCodeGen
    return codegen(torch.fx.graph._PyTreeInfo(arguments, in_spec, out_spec))


# ---- nodes


def _node_record(node: Node, symbols: Symbols) -> NodeRecord:
    return NodeRecord(
        op=node.op,  # type: ignore[arg-type]  # pydantic checks it
        name=node.name,
        target=_target(node),
        args=[written(argument, node) for argument in node.args],
        kwargs={name: written(argument, node) for name, argument in node.kwargs.items()},
        val=value_record(node.meta.get("val"), symbols),
        layer=layer_of(node),
    )


def _target(node: Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    if node.target in NAME_OF_SIZES:
        return NAME_OF_SIZES[node.target]
    raise cannot_write(node, f"it calls {node.target}")


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
    dtype, source = dtype_named(record.dtype), torch.Generator().manual_seed(_RANDOM)
    uniform = torch.rand(record.shape, dtype=torch.float64, generator=source)
    if dtype.is_floating_point:
        return (record.low + uniform * (record.high - record.low)).to(dtype)
    return (record.low + uniform * (record.high - record.low + 1)).floor().clamp(record.low, record.high).to(dtype)
