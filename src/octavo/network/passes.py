"""Passes that make a captured graph smaller without changing its function.

Each takes a graph module and edits it in place. `graph.PASSES` names them in order.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from octavo.network.edit import attribute, emit, emit_parameter, is_constant, replace, shape, value

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
CONVOLUTIONS |= {aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding}
TRANSPOSED_CONVOLUTIONS = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}

_COPIES = {aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.copy.default}
_END = 2**63 - 1


def remove_identities(module: GraphModule) -> None:
    """Remove what returns its input: copies, whole slices, casts to the same dtype, expansions to the same shape."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and _is_identity(node):
            replace(node, node.args[-1] if node.target is aten.copy.default else node.args[0])
    module.graph.eliminate_dead_code()
    _drop_unread(module)


def _is_identity(node: Node) -> bool:
    if node.target is aten.copy.default:  # copy(destination, source) returns source, cast and broadcast
        return _same_kind(node, node.args[1])
    if node.target in _COPIES:
        return _same_kind(node, node.args[0])
    if node.target is aten.slice.Tensor:
        _, _, start, end, step = (*node.args, *(0, 0, None, None, 1)[len(node.args) :])
        return start in (0, None) and end in (_END, None) and step == 1
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
        if node.op != "call_function" or node.target not in _WEIGHT_READERS:
            continue
        for source in node.all_input_nodes:
            if source.op == "call_function" and _from_constants(source):
                if source not in folded:
                    folded[source] = _evaluate(module, source)
                node.replace_input_with(source, folded[source])
    module.graph.eliminate_dead_code()
    _drop_unread(module)


_WEIGHT_READERS = {aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default}
_WEIGHT_READERS |= {aten.einsum.default, *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS}


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
    """A new parameter that holds what `node` computes; named after the first parameter that it reads."""
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
    return emit_parameter(module, node, f"{names[0]}_folded", weight)


def fold_batch_norm(module: GraphModule) -> None:
    """Fold each batch-norm into the convolution or linear before it: w' = w·γ/√(σ²+ε), b' = (b−μ)·γ/√(σ²+ε) + β.

    A layer that is called several times is folded once, if every call is followed by the same batch-norm. Batch-norms
    with nothing to fold into stay, in evaluation mode.
    """
    calls: dict[tuple[str, ...], list[tuple[Node, Node]]] = {}
    for node in list(module.graph.nodes):
        norm = _as_batch_norm(node)
        if norm is not None:
            layer = norm.args[0]
            if _foldable(layer):
                calls.setdefault((str(layer.args[1].target), *map(str, norm.args[1:5])), []).append((layer, norm))
    for pairs in calls.values():
        weight = pairs[0][0].args[1]
        assert isinstance(weight, Node)
        if _readers(module, weight) == {layer for layer, _ in pairs}:
            _fold(module, pairs)
    module.graph.eliminate_dead_code()
    _drop_unread(module)


def _as_batch_norm(node: Node) -> Node | None:
    """`node` as aten.batch_norm in evaluation mode, rewritten from the functional form that torch.export gives."""
    if node.target is aten.batch_norm.default:
        return node
    if node.target is not aten._native_batch_norm_legit_no_training.default:
        return None
    x, weight, bias, mean, variance, momentum, epsilon = node.args
    norm = emit(node, aten.batch_norm.default, x, weight, bias, mean, variance, False, momentum, epsilon, False)
    for reader in list(node.users):
        assert reader.target is operator.getitem
        assert reader.args[1] == 0
        replace(reader, norm)
    node.graph.erase_node(node)
    return norm


def _foldable(layer: Any) -> bool:
    if not isinstance(layer, Node) or len(layer.users) != 1 or not is_constant(layer.args[1] if layer.args else None):
        return False
    if layer.target is aten.linear.default:  # of [N, C] only: in [N, L, C] batch-norm's axis 1 is not the channel
        return len(shape(layer)) == 2
    bias = layer.args[2] if len(layer.args) > 2 else None
    return layer.target in CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS and (bias is None or is_constant(bias))


def _readers(module: GraphModule, weight: Node) -> set[Node]:
    """Every node that reads the same parameter, through whichever `get_attr` node."""
    return {u for node in module.graph.nodes if node.op == "get_attr" and node.target == weight.target for u in node.users}


def _fold(module: GraphModule, pairs: list[tuple[Node, Node]]) -> None:
    layer, norm = pairs[0]
    weight_node = layer.args[1]
    bias_node = layer.args[2] if len(layer.args) > 2 else None
    assert isinstance(weight_node, Node)
    read: Callable[[Any], Tensor | None] = lambda node: attribute(module, node) if isinstance(node, Node) else None  # noqa: E731
    gain, shift, mean, variance = (read(node) for node in norm.args[1:5])
    weight, bias = attribute(module, weight_node), read(bias_node)
    assert mean is not None
    assert variance is not None
    with torch.no_grad():
        factor = torch.rsqrt(variance.double() + float(norm.args[7]))  # type: ignore[arg-type]
        factor = factor if gain is None else factor * gain.double()
        offset = -mean.double() if bias is None else bias.double() - mean.double()
        offset = offset * factor if shift is None else offset * factor + shift.double()
        weight_new = (weight.double() * _along_outputs(layer, factor, weight)).to(weight.dtype)
    module_path, _, leaf = str(weight_node.target).rpartition(".")
    owner = module.get_submodule(module_path)
    setattr(owner, leaf, nn.Parameter(weight_new, requires_grad=weight.requires_grad))
    bias_name = f"{module_path}.bias" if module_path else "bias"
    new_bias = nn.Parameter(offset.to(weight.dtype), requires_grad=weight.requires_grad)
    if isinstance(bias_node, Node):
        bias_name = str(bias_node.target)
        bias_owner, _, bias_leaf = bias_name.rpartition(".")
        delattr(module.get_submodule(bias_owner), bias_leaf)
    first = next(iter(module.graph.nodes))
    bias_read = emit_parameter(module, first, bias_name, new_bias)
    for call, call_norm in pairs:
        call.args = (*call.args[:2], bias_read, *call.args[3:])
        replace(call_norm, call)


def _along_outputs(layer: Node, factor: Tensor, weight: Tensor) -> Tensor:
    """`factor` [outputs], shaped to multiply `weight` along its output axis."""
    if layer.target not in TRANSPOSED_CONVOLUTIONS:
        return factor.reshape(-1, *[1] * (weight.ndim - 1))
    # A transposed convolution's weight is [inputs, outputs/groups, ...]: each group of inputs has its own outputs.
    groups = factor.numel() // weight.shape[1]
    spread = factor.reshape(groups, 1, weight.shape[1]).expand(-1, weight.shape[0] // groups, -1)
    return spread.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))


def _drop_unread(module: GraphModule) -> None:
    """Forget parameters and buffers that no node reads any more."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    names = [name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))]
    for name in names:
        if name not in read:
            path, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(path), leaf)
    module.delete_all_unused_submodules()
    module.recompile()
