"""How a captured graph is edited: one node at a time, keeping shapes and the user's layer names up to date."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx._pytree import tree_flatten_spec
from torch.fx.node import map_arg

from octavo.quiet import OWN_DEPRECATION, quiet

# What a new node inherits from the node it replaces: the user's layer and the line of source it came from.
PROVENANCE = ("nn_module_stack", "stack_trace", "torch_fn", "source_fn_stack")

Operator = Callable[..., Any]


def copy_module(module: GraphModule, *, own_parameters: bool = True) -> GraphModule:
    """A copy whose graph can be edited, with parameters of its own or those of `module`."""
    with quiet(ignored=(OWN_DEPRECATION,)):
        return copy.deepcopy(module) if own_parameters else with_graph(module, copy_graph(module))


def copy_graph(module: GraphModule) -> Graph:
    """A copy of its graph, to be edited and given to `with_graph`."""
    with quiet(ignored=(OWN_DEPRECATION,)):
        return copy.deepcopy(module.graph)


def with_graph(module: GraphModule, graph: Graph) -> GraphModule:
    """A module that runs `graph` on the parameters of `module`."""
    graph.lint()
    with quiet(ignored=(OWN_DEPRECATION,)):
        return GraphModule(module, graph)


def tree_info(module: GraphModule) -> Any:
    """How torch.export put the module's inputs and outputs together: orig_args, in_spec, out_spec."""
    codegen: Any = module.graph._codegen
    return codegen.pytree_info


def flat_inputs(module: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The leaves of a call in the order of the graph's inputs, in whatever order the call has its keys."""
    return list(tree_flatten_spec((args, kwargs), tree_info(module).in_spec))


def emit(like: Node, operator: Operator, *args: Any, **kwargs: Any) -> Node:
    """The new node `operator(*args, **kwargs)`, before `like` and in its layer; its shape is inferred."""
    fake_args, fake_kwargs = map_arg((args, kwargs), value)
    with _fake_mode(like.graph), torch.no_grad():
        val = operator(*fake_args, **fake_kwargs)
    return emit_as(like, val, operator, *args, **kwargs)


def emit_as(like: Node, val: Any, operator: Operator, *args: Any, **kwargs: Any) -> Node:
    """The new node `operator(*args, **kwargs)`, before `like` and in its layer; it is known to return `val`."""
    with like.graph.inserting_before(like):
        node = like.graph.call_function(operator, args, kwargs)
    node.meta.update({key: like.meta[key] for key in PROVENANCE if key in like.meta})
    node.meta["val"] = val
    return node


def emit_parameter(module: GraphModule, like: Node, name: str, tensor: Tensor) -> Node:
    """The new node that reads `tensor`, stored in `module` under `name` (a parameter if `tensor` is one)."""
    owner_path, _, leaf = name.rpartition(".")
    owner = submodule(module, owner_path)
    while leaf in owner._parameters or leaf in owner._buffers:
        leaf += "_"
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)
    return read_attribute(like, f"{owner_path}.{leaf}" if owner_path else leaf, tensor)


def forget_parameter(module: GraphModule, node: Node) -> None:
    """Take away what `emit_parameter` made, which nothing reads."""
    owner_path, _, leaf = str(node.target).rpartition(".")
    delattr(submodule(module, owner_path), leaf)
    node.graph.erase_node(node)


def read_attribute(like: Node, target: str, tensor: Tensor) -> Node:
    """The new `get_attr` node of `target`, placed before `like`."""
    with like.graph.inserting_before(like):
        node = like.graph.create_node("get_attr", target)
    node.meta["val"] = _fake_mode(like.graph).from_tensor(tensor.detach(), static_shapes=True)
    return node


def _fake_mode(graph: Graph) -> FakeTensorMode:
    """The mode under which the values of `graph` were inferred; it knows the symbols of the dynamic axes."""
    vals = (node.meta.get("val") for node in graph.nodes)
    return next(val.fake_mode for val in vals if isinstance(val, FakeTensor))


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule of `module` at `path`, created empty where it does not exist."""
    for name in filter(None, path.split(".")):
        if name not in module._modules:
            module.add_module(name, nn.Module())
        child = module._modules[name]
        assert child is not None
        module = child
    return module


def attribute(module: nn.Module, node: Node) -> Tensor:
    """The tensor that a `get_attr` node reads."""
    path, _, name = str(node.target).rpartition(".")
    tensor = getattr(module.get_submodule(path), name)
    assert isinstance(tensor, Tensor)
    return tensor


def replace(old: Node, new: Node) -> None:
    """Every reader of `old` reads `new` instead, and `old` is gone."""
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def value(node: Node) -> Any:
    """The fake tensor (shape, dtype, device) that `node` produces."""
    return node.meta["val"]


def shape(node: Node) -> tuple[int | torch.SymInt, ...]:
    """The shape of what `node` produces; dynamic axes are symbols."""
    return tuple(value(node).shape)


def argument(node: Node, name: str) -> Any:
    """The argument of an operation by its name in the operator's schema; the schema's default if it is not given."""
    position, declared = _declared(node, name)
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if position < len(node.args) else declared.default_value


def set_argument(node: Node, name: str, found: Any) -> None:
    """Let the argument of that name be `found`; those before it are given by place, too."""
    if name in node.kwargs:
        node.kwargs = {**node.kwargs, name: found}
        return
    position, _ = _declared(node, name)
    before = [declared.name for declared in _schema(node)[len(node.args) : position]]
    args = [*node.args, *(argument(node, one) for one in before)]
    node.args = (*args[:position], found, *args[position + 1 :])
    node.kwargs = {key: given for key, given in node.kwargs.items() if key not in before}


def _declared(node: Node, name: str) -> tuple[int, Any]:
    found = next((row for row in enumerate(_schema(node)) if row[1].name == name), None)
    assert found is not None, f"{node.target} has no argument {name!r}"
    return found


def _schema(node: Node) -> Sequence[Any]:
    return node.target._schema.arguments  # type: ignore[union-attr, no-any-return]


def is_floating(node: Any) -> bool:
    """Whether `node` produces a tensor of floating-point numbers; sizes, lists and None are none."""
    val = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(val, Tensor) and val.is_floating_point()


def is_constant(node: Any) -> bool:
    """Whether `node` reads a parameter or buffer."""
    return isinstance(node, Node) and node.op == "get_attr"


def layer_of(node: Node) -> str:
    """The path of the innermost user module that executed `node`; "" for the root."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if not path.startswith("_empty")]
    return str(stack[-1]).split("@")[0] if stack else ""


def replace_by_module(module: GraphModule, node: Node, target: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
    """`layer`, as the submodule `target` called with `args`, in the place of `node`, whose meta it has."""
    module.add_submodule(target, layer)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(target, args)
    call.meta.update(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)
