"""Partial quantization: the same calibration with some layers left in float (Wu et al. 2020, §5.1)."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType

from octavo.errors import QuantizationError
from octavo.network.join import together
from octavo.network.marker import renamed
from octavo.network.operations import OUTPUT
from octavo.network.placement import every_site, make_plan
from octavo.network.plan import Plan, Quantizer
from octavo.network.quantized import Quantized
from octavo.network.rule import Rule, Site


def layers(plan: Plan) -> tuple[str, ...]:
    """The layers that `plan` quantizes, in data-flow order: what can be left in float one by one.

    Residual additions are layers ("layer1.0.add"), and so is every further call of one ("conv1@1").
    """
    names = layers_of_nodes(plan)
    return tuple(dict.fromkeys(names[node.name] for node in plan.graph.module.graph.nodes if node.name in names))


def layers_of_nodes(plan: Plan) -> dict[str, str]:
    """{node: layer} of every operation that `plan` quantizes."""
    sites = (site for quantizer in plan.quantizers for site in quantizer.sites)
    return {site.node: site.layer for site in sites if site.role != OUTPUT}


def keep_float(net: Quantized, names: Collection[str]) -> Quantized:
    """`net` with the layers `names` left in float; every other layer keeps its scales, so nothing is calibrated.

    raises  QuantizationError for a name that is not in `layers`, and if no layer is left to quantize
    """
    order = layers(net.plan)
    _check_known(names, order)
    skips = [Rule(name, skip=True, exact=True) for name in order if name in names]
    rules = _still_deciding(net.plan, names)
    return _with_scales_of(net, make_plan(net.graph, [*skips, *rules], target=net.plan.target))


def quantize_only(net: Quantized, names: Collection[str]) -> Quantized:
    """`net` with all layers but `names` left in float.

    raises  QuantizationError for a name that is not in `layers`, and for no names at all
    """
    order = layers(net.plan)
    _check_known(names, order)
    return keep_float(net, [name for name in order if name not in names])


def _still_deciding(plan: Plan, names: Collection[str]) -> list[Rule]:
    """The rules of `plan` that decide something outside `names`: without the others, which a plan would refuse."""
    left = [site for site in every_site(plan.graph, plan.target) if site.layer not in names]
    deciding = {_first_match(site, plan.rules) for site in left}
    return [rule for i, rule in enumerate(plan.rules) if i in deciding]


def _first_match(site: Site, rules: Sequence[Rule]) -> int | None:
    return next((i for i, rule in enumerate(rules) if rule.matches(site)), None)


def _with_scales_of(net: Quantized, plan: Plan) -> Quantized:
    """`plan` with the schemes and scales that its sites have in `net`.

    Where a reader is gone, tensors that shared a quantizer may have one each now: they keep the shared range, and its
    scheme, although one of them alone might have been seen to be never negative.
    """
    full = {site: quantizer for quantizer in net.plan.quantizers for site in quantizer.sites}
    parts: dict[str, list[Quantizer]] = {}
    for part in plan.quantizers:
        parts.setdefault(full[part.sites[0]].name, []).append(part)
    quantizers = tuple(together(own, full[own[0].sites[0]].scheme) for own in parts.values())
    values = {part.name: net.values[full[part.sites[0]].name] for part in quantizers}
    names = {part.name: own[0].name for own in parts.values() for part in own}
    plan = replace(plan, marked=renamed(plan.marked, names), quantizers=quantizers)
    return replace(net, plan=plan, values=MappingProxyType(values))


def _check_known(names: Collection[str], order: Sequence[str]) -> None:
    for name in names:
        if name not in order:
            close = get_close_matches(name, order)
            shown = f"close to it are {', '.join(close)}" if close else f"it quantizes {_first(order)}"
            raise QuantizationError(
                asked=f"choose the layer {name!r} for partial quantization",
                seen=f"the plan does not quantize it; {shown}",
                remedy="use a name that octavo.network.partial.layers returns",
            )


def _first(order: Sequence[str]) -> str:
    return ", ".join(order[:6]) + (", …" if len(order) > 6 else "")
