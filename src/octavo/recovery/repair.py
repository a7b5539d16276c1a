"""Repairs before training: better parameters for the same function. Each is (network, batches) → network.

What is given stays as it is. Batches are unlabelled calibration data. None of them helps every network, so the recipe
keeps a repair only if the metric says so.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.arguments import checked
from octavo.errors import QuantizationError
from octavo.former import named_now
from octavo.network.edit import attribute, is_constant
from octavo.network.placement import compute_heavy
from octavo.network.quantized import Quantized
from octavo.recovery.adaround import adaround
from octavo.recovery.lockstep import Layer, walk
from octavo.recovery.rescale import cross_layer_equalization, smoothquant
from octavo.recovery.stepwise import read_again

SHARES = tuple(0.30 + 0.05 * step for step in range(15))  # of a calibrated range that refinement tries: 0.3 … 1


@checked
def correct_bias_analytically(net: Quantized, batches: Iterable[Any]) -> Quantized:
    """Take the mean error of each layer's rounded weights, (W_q − W)·E[x], out of its bias (Nagel et al. 2019, §4.2).

    E[x] is that of the float network: every layer is corrected for its own weights alone.
    """

    def fix(layer: Layer) -> None:
        if layer.weight is not None:
            layer.shift_bias(_mean_error(layer, layer.outputs(weights_only=True)))

    return walk(net, batches, fix)


@checked
def correct_bias(net: Quantized, batches: Iterable[Any]) -> Quantized:
    """Make each layer's mean output that of the float network, measured with all before it rounded and corrected."""

    def fix(layer: Layer) -> None:
        if layer.weight is not None:
            layer.shift_bias(_mean_error(layer, layer.outputs()))

    return walk(net, batches, fix)


def _mean_error(layer: Layer, outputs: list[Tensor]) -> Tensor:
    """Mean of wanted − found per channel, float64 [channels], over everything else in all batches."""
    axis, total, count = layer.row.output, torch.zeros(1, dtype=torch.float64), 0
    assert axis is not None  # it has a weight
    for wanted, found in zip(layer.wanted(), outputs, strict=True):
        error = (wanted.double() - found.double()).movedim(axis, 0).flatten(1)
        total, count = total.to(error.device) + error.sum(1), count + error.shape[1]
    return total / max(count, 1)


@checked
def refine_ranges(net: Quantized, batches: Iterable[Any]) -> Quantized:
    """Shrink each activation's range, to the share in SHARES at which its first reader's output is nearest to float."""
    seen: set[str] = set()

    def fix(layer: Layer) -> None:
        for source, name in layer.operation.quantizers.items():
            if not is_constant(source) and name not in seen and not layer.scales[name].scheme.rows:
                seen.add(name)
                _refine(layer, name)

    return walk(net, batches, fix)


def _refine(layer: Layer, name: str) -> None:
    whole = layer.scales[name]

    def error(share: float) -> float:
        layer.scales[name] = replace(whole, scale=whole.scale * share)
        return layer.error()

    errors = {share: error(share) for share in SHARES}
    best = min(errors, key=lambda share: (errors[share], -share))
    layer.scales[name] = replace(whole, scale=whole.scale * best)


@dataclass(frozen=True)
class Repair:
    """One row of REPAIRS: a function (network, batches) → network.

    keeps_function  whether the float function is still the user's afterwards; else weights or biases are fitted to
                    the rounding of every layer
    """

    function: Callable[[Quantized, Iterable[Any]], Quantized]
    keeps_function: bool = False

    def __call__(self, net: Quantized, batches: Iterable[Any]) -> Quantized:
        """`net` with this repair."""
        return self.function(net, batches)


# In the order in which they are tried: those that change ranges before those that fit themselves to them.
REPAIRS: Mapping[str, Repair] = {
    "cross_layer_equalization": Repair(cross_layer_equalization, keeps_function=True),
    "smoothquant": Repair(smoothquant, keeps_function=True),
    "refine_ranges": Repair(refine_ranges, keeps_function=True),
    "adaround": Repair(adaround),
    "correct_bias": Repair(correct_bias),
    "correct_bias_analytically": Repair(correct_bias_analytically),
}


@checked
def repair(net: Quantized, batches: Iterable[Any], names: Iterable[str]) -> Quantized:
    """Every repair of `names`, one after the other.

    batches  read once or twice for each repair; a generator is read once, and kept
    raises   QuantizationError for a name that is not in REPAIRS, and for no batches
    """
    batches = read_again(batches, "repair a network")
    for asked in names:
        name = named_now(asked)
        if name not in REPAIRS:
            raise QuantizationError(
                asked=f"repair by {name!r}",
                seen="there is no such repair",
                remedy=f"choose from {', '.join(REPAIRS)}",
            )
        net = REPAIRS[name](net, batches)
    return net


def changed_layers(before: Quantized, after: Quantized) -> tuple[str, ...]:
    """The layers whose weights or biases a repair changed; where it changed none, those that read what it rescaled."""
    old, new = _constants(before), _constants(after)
    found = [layer for layer, own in new.items() if not _same(old.get(layer, []), own)]
    if found:
        return tuple(found)
    moved = [q for q in after.plan.quantizers if not _same(_scales(before, q.name), _scales(after, q.name))]
    return tuple(dict.fromkeys(site.layer for quantizer in moved for site in quantizer.sites))


def _constants(net: Quantized) -> dict[str, list[Tensor]]:
    """{layer: the tensors of its own that it reads}."""
    layers, found = compute_heavy(net.graph, net.plan.target), {}
    for node in net.graph.module.graph.nodes:
        if node.name in layers:
            own = [source for source in node.all_input_nodes if is_constant(source)]
            found[layers[node.name]] = [attribute(net.graph.module, source).detach() for source in own]
    return found


def _scales(net: Quantized, name: str) -> list[Tensor]:
    return [net.values[name].scale] if name in net.values else []


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))
