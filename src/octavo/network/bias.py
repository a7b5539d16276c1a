"""Room for biases: an engine that adds a bias as an integer of the sums needs that integer to fit into 32 bits.

The sums count in input scale · weight scale. A channel that is pruned to almost nothing and keeps its bias has a scale
so small that the bias leaves int32, and the engine returns something else. It is made larger here, for every engine:

    weight scale ≥ |bias| / (2³⁰ · input scale)

Rounding the weights to it changes a term of the sum by less than 2⁻²³ of the bias: what float32 rounds anyway.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from octavo.network.edit import argument, attribute, is_constant
from octavo.network.graph import Graph
from octavo.network.operations import operation
from octavo.network.plan import Plan, Quantizer
from octavo.network.rule import Site
from octavo.numerics.affine import QParams
from octavo.numerics.scheme import SMALLEST_SCALE

LARGEST_BIAS = 2.0**30  # the other half of int32 is for the products


def with_room_for_biases(plan: Plan, values: Mapping[str, QParams]) -> dict[str, QParams]:
    """`values` with the scales of weights large enough for the biases beside them."""
    nodes = {node.name: node for node in plan.graph.module.graph.nodes}
    fixed = [quantizer for quantizer in plan.quantizers if not quantizer.scheme.rows]  # beside rows, biases are float
    inputs = {site.node: q for q in fixed for site in q.sites if site.role == "input"}
    found = dict(values)
    for quantizer in plan.quantizers:
        if quantizer.constant and quantizer.scheme.block is None:
            for site in quantizer.sites:
                if site.role == "weight" and site.node in inputs:
                    bias = _bias(plan.graph, nodes[site.node])
                    if bias is not None:
                        step = _of_outputs(found[inputs[site.node].name].scale, site, len(bias))
                        found[quantizer.name] = _raised(quantizer, found[quantizer.name], bias, step)
    return found


def _bias(graph: Graph, node: Node) -> Tensor | None:
    """The bias of a convolution or linear, [channels], beside the scales, on the CPU."""
    row = operation(node)
    source = argument(node, "bias") if row is not None and row.inputs.keys() == {"input", "weight"} else None
    return attribute(graph.module, source).detach().cpu() if isinstance(source, Node) and is_constant(source) else None


def _of_outputs(step: Tensor, site: Site, outputs: int) -> Tensor:
    """The scale of what each output channel sums: [outputs], or [] for the smallest where none belongs to a channel."""
    if step.ndim and site.operation.startswith("conv") and outputs % len(step) == 0:
        return step.repeat_interleave(outputs // len(step))
    return step.min()


def _raised(quantizer: Quantizer, params: QParams, bias: Tensor, step: Tensor) -> QParams:
    """`params` with scales of at least |bias| / (2³⁰ · step)."""
    wanted = bias.double().abs() / (LARGEST_BIAS * step.double())
    channels = params.scale.numel()
    # One scale for all; or, of a grouped transposed convolution, one for each output channel within a group.
    wanted = wanted.reshape(-1, channels).amax(0).reshape(params.scale.shape).clamp(min=SMALLEST_SCALE).float()
    if bool((wanted <= params.scale).all()):
        return params
    return replace(params, scale=torch.maximum(params.scale, wanted))
