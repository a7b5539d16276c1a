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
_ASSERTIONS = {aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg}
_END = 2**63 - 1


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
    module.graph.eliminate_dead_code()
    module.recompile()


def loosen_views(module: GraphModule) -> None:
    """`reshape` for every `view`: a view also asks how its input lies in memory, which later passes change."""
    for node in module.graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    module.recompile()


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
        if node.op != "call_function" or node.target not in _WEIGHT_READERS or _from_constants(node):
            continue
        for source in node.all_input_nodes:
            if source.op == "call_function" and _from_constants(source):
                if source not in folded:
                    folded[source] = _evaluate(module, source)
                node.replace_input_with(source, folded[source])
    module.graph.eliminate_dead_code()
    _drop_unread(module)


_WEIGHT_READERS = {aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default}
_WEIGHT_READERS |= {aten.einsum.default, aten.embedding.default, aten.lstm.input, aten.gru.input}
_WEIGHT_READERS |= CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS


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


def fold_batch_norm(module: GraphModule) -> None:
    """Fold each batch-norm into the convolution or linear before it: w' = w·γ/√(σ²+ε), b' = (b−μ)·γ/√(σ²+ε) + β.

    A layer that is called several times is folded once, if every call is followed by the same batch-norm. Batch-norms
    with nothing to fold into stay, in evaluation mode.
    """
    calls: dict[tuple[Any, ...], list[tuple[Node, Node]]] = {}
    for node in list(module.graph.nodes):
        norm = _as_batch_norm(node)
        if norm is not None:
            layer = norm.args[0]
            if _foldable(layer):
                key = (*map(_parameter_name, (*layer.args[1:3], *norm.args[1:5])), norm.args[7])
                calls.setdefault(key, []).append((layer, norm))
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
        return None if node.args[5] else node
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
    bias = layer.args[2] if len(layer.args) > 2 else None
    if bias is not None and not is_constant(bias):
        return False
    if layer.target is aten.linear.default:  # of [N, C] only: in [N, L, C] batch-norm's axis 1 is not the channel
        return len(shape(layer)) == 2
    return layer.target in CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS


def _parameter_name(argument: Any) -> str | None:
    return str(argument.target) if isinstance(argument, Node) else None


def _readers(module: GraphModule, weight: Node) -> set[Node]:
    """Every node that reads the same parameter, through whichever `get_attr` node."""
    return {u for node in module.graph.nodes if node.op == "get_attr" and node.target == weight.target for u in node.users}


def _fold(module: GraphModule, pairs: list[tuple[Node, Node]]) -> None:
    layer, norm = pairs[0]
    weight_node, bias_node = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    assert isinstance(weight_node, Node)
    weight, bias = _folded(module, layer, norm)
    owner_path, _, leaf = str(weight_node.target).rpartition(".")
    bias_name = f"{owner_path}.bias" if owner_path else "bias"
    if isinstance(bias_node, Node):
        bias_name = str(bias_node.target)
        if _readers(module, bias_node) == {call for call, _ in pairs}:  # else emit_parameter finds a free name
            bias_owner, _, bias_leaf = bias_name.rpartition(".")
            delattr(module.get_submodule(bias_owner), bias_leaf)
    setattr(module.get_submodule(owner_path), leaf, weight)
    bias_read = emit_parameter(module, next(iter(module.graph.nodes)), bias_name, bias)
    for call, call_norm in pairs:
        call.args = (*call.args[:2], bias_read, *call.args[3:])
        replace(call_norm, call)


def _folded(module: GraphModule, layer: Node, norm: Node) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of `layer` with `norm` in them, computed in float64."""
    bias_node = layer.args[2] if len(layer.args) > 2 else None
    bias, gain, shift, mean, variance = (
        attribute(module, node).double() if isinstance(node, Node) else None for node in (bias_node, *norm.args[1:5])
    )
    assert isinstance(layer.args[1], Node)
    assert mean is not None
    assert variance is not None
    weight, epsilon = attribute(module, layer.args[1]), norm.args[7]
    assert isinstance(epsilon, float)
    with torch.no_grad():
        factor = torch.rsqrt(variance + epsilon)
        factor = factor if gain is None else factor * gain
        offset = (-mean if bias is None else bias - mean) * factor
        offset = offset if shift is None else offset + shift
        scaled = weight.double() * _along_outputs(layer, factor, weight)
    trainable = weight.requires_grad
    return nn.Parameter(scaled.to(weight.dtype), trainable), nn.Parameter(offset.to(weight.dtype), trainable)


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
