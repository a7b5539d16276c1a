"""Batch-norm folding (Wu et al. 2020, §3.3): per-channel quantized weights are no worse for it."""

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from octavo.network.edit import argument, attribute, emit, emit_parameter, is_constant, replace, set_argument, shape
from octavo.network.passes import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from octavo.numerics.broadcast import broadcast_along

aten = torch.ops.aten

BATCH_NORMS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}


def name_batch_norm(module: GraphModule) -> None:
    """Write every batch-norm as aten.batch_norm, and fold none: for networks that train with live statistics."""
    for node in list(module.graph.nodes):
        _as_batch_norm(node)


def fold_batch_norm(module: GraphModule) -> None:
    """Fold each batch-norm into the convolution or linear before it: w' = w·γ/√(σ²+ε), b' = (b−μ)·γ/√(σ²+ε) + β.

    A layer that is called several times is folded once, if every call is followed by the same batch-norm. Batch-norms
    with nothing to fold into stay, in evaluation mode.
    """
    calls: dict[tuple[Any, ...], list[tuple[Node, Node]]] = {}
    for node in list(module.graph.nodes):
        norm = _as_batch_norm(node)
        if norm is not None:
            layer = argument(norm, "input")
            if isinstance(layer, Node) and _foldable(layer):
                read = [*_of(layer), *(argument(norm, name) for name in _STATISTICS)]
                key = (*map(_parameter_name, read), argument(norm, "eps"))
                calls.setdefault(key, []).append((layer, norm))
    for pairs in calls.values():
        weight, _ = _of(pairs[0][0])
        if _readers(module, weight) == {layer for layer, _ in pairs}:
            _fold(module, pairs)


def _as_batch_norm(node: Node) -> Node | None:
    """`node` as aten.batch_norm in evaluation mode, rewritten from the functional form that torch.export gives."""
    if node.target is aten.batch_norm.default:
        return None if argument(node, "training") else node
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


def _foldable(layer: Node) -> bool:
    if layer.target not in CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS | {aten.linear.default} or len(layer.users) != 1:
        return False
    weight, bias = _of(layer)
    if not is_constant(weight) or not (bias is None or is_constant(bias)):
        return False
    # Of linears only [N, C]: in [N, L, C] batch-norm's axis 1 is not the channel.
    return layer.target is not aten.linear.default or len(shape(layer)) == 2


_STATISTICS = ("weight", "bias", "running_mean", "running_var")  # of a batch-norm


def _of(layer: Node) -> tuple[Any, Any]:
    """(weight, bias) of a layer."""
    return argument(layer, "weight"), argument(layer, "bias")


def _parameter_name(argument: Any) -> str | None:
    return str(argument.target) if isinstance(argument, Node) else None


def _readers(module: GraphModule, weight: Node) -> set[Node]:
    """Every node that reads the same parameter, through whichever `get_attr` node."""
    reads = [node for node in module.graph.nodes if node.op == "get_attr" and node.target == weight.target]
    return {user for node in reads for user in node.users}


def _fold(module: GraphModule, pairs: list[tuple[Node, Node]]) -> None:
    layer, norm = pairs[0]
    weight_node, bias_node = _of(layer)
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
        set_argument(call, "bias", bias_read)
        replace(call_norm, call)


def _folded(module: GraphModule, layer: Node, norm: Node) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of `layer` with `norm` in them, computed in float64."""
    weight_node, bias_node = _of(layer)
    bias, gain, shift, mean, variance = (
        attribute(module, node).double() if isinstance(node, Node) else None
        for node in (bias_node, *(argument(norm, name) for name in _STATISTICS))
    )
    assert mean is not None
    assert variance is not None
    weight, epsilon = attribute(module, weight_node), argument(norm, "eps")
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
        return broadcast_along(factor, 0, weight.ndim)
    # A transposed convolution's weight is [inputs, outputs/groups, ...]: each group of inputs has its own outputs.
    groups = factor.numel() // weight.shape[1]
    spread = factor.reshape(groups, 1, weight.shape[1]).expand(-1, weight.shape[0] // groups, -1)
    return spread.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))
