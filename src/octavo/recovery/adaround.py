"""Learned rounding: each weight goes up or down as the layer's output asks, not to the nearest (Nagel et al. 2020).

Layer by layer, on unlabelled data: h(V) in [0, 1] takes the place of the rounding,

    minimise over V   ‖ float output − layer(x̂, s · (⌊W / s⌋ + h(V))) ‖² / E  +  λ · mean (1 − |2 h(V) − 1|^β)

where x̂ is what reaches the layer in the rounded network, and E is the error that rounding to the nearest leaves; β
falls, until every h is 0 or 1.
"""

from collections import ChainMap
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from octavo.arguments import checked
from octavo.network.edit import attribute, is_constant
from octavo.network.quantized import Quantized
from octavo.numerics.broadcast import beside
from octavo.numerics.scheme import Scheme
from octavo.recovery.lockstep import Layer, walk
from octavo.recovery.stepwise import call

STEPS = 300  # per layer
RATE = 0.03  # of Adam, on V
PULL = 0.5  # λ
WARM_UP = 0.2  # share of the steps without the second term
STRETCH = (-0.1, 1.1)  # h is a sigmoid stretched to this and cut at 0 and 1, so that it can reach them
BETA = (20.0, 2.0)  # first and last


@checked
def adaround(net: Quantized, batches: Iterable[Any]) -> Quantized:
    """Weights on their integers' grid, rounded as the layer's output asks; scales stay. See above.

    A layer keeps the nearest integers if learning does not bring its output nearer to the float network's.
    """

    def fix(layer: Layer) -> None:
        weight = layer.weight
        if weight is None:
            return
        params = layer.scales[layer.operation.quantizers[weight]]
        if not params.scheme.symmetric or params.scheme.block is not None:
            return
        original = attribute(layer.graph.module, weight).detach().clone()
        scale = beside(params.scale.to(original.device), params.scheme, original.ndim)
        before = layer.error()
        layer.set_weight(_learned(layer, original, scale, params.scheme, before))
        if layer.error() >= before:
            layer.set_weight(original)

    return walk(net, batches, fix)


def _learned(layer: Layer, weight: Tensor, scale: Tensor, scheme: Scheme, before: float) -> Tensor:
    """The weight, every entry one of the two integers around it times the scale."""
    assert layer.weight is not None
    floor, wanted = (weight / scale).floor(), layer.wanted()
    inputs = [_activations(layer, values) for values in layer.values]
    entries = sum(want.numel() for want in wanted)
    scaled = max(before / max(entries, 1), 1e-30)
    low, high = STRETCH
    with torch.enable_grad():
        start = ((weight / scale - floor) - low) / (high - low)
        v = torch.logit(start.clamp(1e-4, 1 - 1e-4)).requires_grad_()
        adam = torch.optim.Adam([v], RATE)
        for step in range(STEPS):
            way = step / STEPS
            h = (torch.sigmoid(v) * (high - low) + low).clamp(0, 1)
            rounded = scale * (floor + h).clamp(scheme.qmin, scheme.qmax)
            batch = step % len(wanted)
            found = call(layer.node, ChainMap({layer.weight: rounded}, inputs[batch]))
            loss = (wanted[batch] - found).square().mean() / scaled
            if way > WARM_UP:
                beta = BETA[0] + (BETA[1] - BETA[0]) * (way - WARM_UP) / (1 - WARM_UP)
                loss = loss + PULL * (1 - (2 * h - 1).abs().pow(beta)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        up = torch.sigmoid(v.detach()) * (high - low) + low >= 0.5
    return scale * (floor + up).clamp(scheme.qmin, scheme.qmax)


def _activations(layer: Layer, values: Any) -> ChainMap[Any, Any]:
    """What the layer reads in the rounded network, rounded but for the weight."""
    own = {
        node: attribute(layer.graph.module, node).detach() for node in layer.node.all_input_nodes if is_constant(node)
    }
    return ChainMap({k: v for k, v in layer.inputs(values).items() if not is_constant(k)}, own, values)
