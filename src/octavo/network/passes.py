"""Passes that make a captured graph smaller without changing its function. `graph.PASSES` names them in order."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from octavo.network.edit import attribute, emit_parameter, is_constant, replace, value

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
CONVOLUTIONS |= {aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding}
TRANSPOSED_CONVOLUTIONS = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}

_COPIES = {aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.copy.default}
_ASSERTIONS = {aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg}
_END = 2**63 - 1

# What each of the passes below looks for.
EFFECTS = _ASSERTIONS | {aten.copy_.default}
VIEWS = {aten.view.default, aten._unsafe_view.default}
IDENTITIES = _COPIES | {aten.slice.Tensor, aten.expand.default, aten.to.dtype, aten._to_copy.default}
WEIGHT_READERS = {aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default}
WEIGHT_READERS |= {aten.einsum.default, aten.embedding.default, aten.lstm.input, aten.gru.input}
WEIGHT_READERS |= CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS


@dataclass(frozen=True)
class Pass:
    """A rewrite of a graph, in place. It runs where one of the operators that it looks for is there.

    rewrite  leaves a graph that computes the same; what nothing reads any more is removed after it
    """

    rewrite: Callable[[GraphModule], None]
    operators: Collection[Any]

    def __call__(self, module: GraphModule) -> None:
        """Rewrite `module`, if there is something to rewrite."""
        if any(node.target in self.operators for node in module.graph.nodes):
            self.rewrite(module)
            drop_unread(module)


def drop_effects(module: GraphModule) -> None:
    """Remove what has an effect in place of a result, so that only the outputs count.

    The exporter's assertions hold the dtypes and sizes of the example. A model that writes to its inputs gives the same
    outputs if the caller's tensors stay as they are.
    """
    for node in list(module.graph.nodes):
        if node.target in _ASSERTIONS:
            module.graph.erase_node(node)
        elif node.target is aten.copy_.default and node.args[0].op == "placeholder":
            replace(node, node.args[1])


def loosen_views(module: GraphModule) -> None:
    """`reshape` for every `view`: a view also asks how its input lies in memory, which later passes change."""
    for node in module.graph.nodes:
        if node.target in VIEWS:
            node.target = aten.reshape.default


def remove_identities(module: GraphModule) -> None:
    """Remove what returns its input: copies, whole slices, casts to the same dtype, expansions to the same shape."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and _is_identity(node):
            replace(node, node.args[-1] if node.target is aten.copy.default else node.args[0])


def _is_identity(node: Node) -> bool:
    if node.target is aten.copy.default:  # copy(destination, source) returns source, cast and broadcast
        return _same_kind(node, node.args[1])
    if node.target in _COPIES:
        return _same_kind(node, node.args[0])
    if node.target is aten.slice.Tensor:
        given: list[Any] = list(node.args[2:])
        start, end, step = given + [None, None, 1][len(given) :]
        return start in (0, None) and end in (_END, None) and bool(step == 1)
    if node.target in (aten.expand.default, aten.to.dtype, aten._to_copy.default):
        return _same_kind(node, node.args[0])
    return False


def _same_kind(node: Node, source: Any) -> bool:
    if not isinstance(source, Node):
        return False
    a, b = value(node), value(source)
    return bool(a.dtype == b.dtype and a.device == b.device and list(a.shape) == list(b.shape))


def fold_constant_weights(module: GraphModule) -> None:
    """Compute once what is computed from parameters alone and feeds a convolution, linear or matmul.

    Transposed weights, weight norm and other parametrizations become plain parameters, so that the placement finds a
    weight where there is one.
    """
    folded: dict[Node, Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in WEIGHT_READERS or _from_constants(node):
            continue
        for source in node.all_input_nodes:
            if source.op == "call_function" and _from_constants(source):
                if source not in folded:
                    folded[source] = _evaluate(module, source)
                node.replace_input_with(source, folded[source])


def _from_constants(node: Node) -> bool:
    """Whether `node` is computed from parameters alone (and from at least one)."""
    stack, seen, parameters = [node], set(), 0
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if is_constant(current):
            parameters += 1
        elif current.op != "call_function" or "rand" in str(current.target):
            return False
        stack.extend(current.all_input_nodes)
    return parameters > 0


def _evaluate(module: GraphModule, node: Node) -> Node:
    """A new parameter that holds what `node` computes; named after the first parameter that it reads.

    The parts of a parametrized weight, "conv.parametrizations.weight.original0", make "conv.weight".
    """
    names: list[str] = []
    trainable = False

    def run(current: Node) -> Any:
        nonlocal trainable
        if is_constant(current):
            tensor = attribute(module, current)
            names.append(str(current.target))
            trainable |= tensor.requires_grad
            return tensor
        args, kwargs = torch.fx.node.map_arg((current.args, current.kwargs), run)
        assert callable(current.target)
        return current.target(*args, **kwargs)

    with torch.no_grad():
        tensor = run(node).detach().clone()
    weight = nn.Parameter(tensor, requires_grad=trainable) if tensor.is_floating_point() else tensor
    owner, parametrized, part = names[0].partition(".parametrizations.")
    name = f"{owner}.{part.partition('.')[0]}" if parametrized else f"{names[0]}_folded"
    return emit_parameter(module, node, name, weight)


def drop_unread(module: GraphModule) -> None:
    """Forget nodes, parameters and buffers that nothing reads any more."""
    module.graph.eliminate_dead_code()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    parameters, buffers = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    for name, _ in (*parameters, *buffers):
        if name not in read:
            path, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(path), leaf)
    module.delete_all_unused_submodules()
    module.recompile()
