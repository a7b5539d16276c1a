"""An engine's fault, found and gone around: the layer that it computes wrongly is left in float on this engine.

compile ─▶ agrees with the simulation? ─ yes ─▶ the network
   ▲                 │ no
   └── left in float ┘  the layers that make the first value that deviates; at most ROUNDS times
"""

import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch.fx import Node

from octavo import engines
from octavo.engines.check import ENOUGH_DB, SLACK_DB, Agreement, Outputs, agreement, moved, nearness, ran, simulated
from octavo.engines.sites import returning_sites, rounded_at
from octavo.errors import QuantizationError
from octavo.network.device import on_cpu
from octavo.network.marker import quantizer_of, source_of
from octavo.network.partial import keep_float, layers, layers_of_nodes
from octavo.network.plan import Plan
from octavo.network.quantized import Network, Origin, Quantized, remember
from octavo.network.samples import Call, calls_of

ROUNDS = 4
COARSE = 0.25  # steps: bfloat16 keeps eight bits of what lies between two integer operations


class EngineFaultError(QuantizationError):
    """An engine computes something else than the network that it was given."""


def compile_right(net: Quantized, *, engine: str, expected: Outputs | None = None, **options: Any) -> Network:
    """`engines.compile`'s network, after it agreed with the simulation on the samples of `net`.

    Where it does not, the layers that deviate first are left in float. The `origin` of what comes back has the
    network that it runs, whose coverage and notes name those layers.

    expected  what the simulation returns for those samples, if it is known
    warns     UserWarning naming the layers that were left in float because of the engine
    raises    EngineFaultError if the engine is wrong with every plan that was tried
    """
    net = on_cpu(net)
    calls = calls_of(net.graph, net.samples)
    network = engines.compile(net, engine=engine, **options)
    near_tie = max(engines.ENGINES[engine].near_tie, COARSE if options.get("precision") == "bf16" else 0.0)
    first = _agreement(net, network, calls, near_tie, expected)
    if first.holds:
        return network
    if options.pop("network", None) is not None:  # the file may be wrong, and not the engine
        network = engines.compile(net, engine=engine, **options)
        if _agreement(net, network, calls, near_tie).holds:
            note = f"the ONNX model that was given computes something else than the network: on {engine} it is {first}"
            warnings.warn(f"{note}. It is not used; save the network again", UserWarning, stacklevel=3)
            own = replace(net, notes=(note, *net.notes))
            return remember(network, Origin(net=own, engine=engine))
    tried: list[tuple[str, ...]] = []
    for names in _fewer(net, engine, calls, near_tie):
        tried.append(names)
        remaining = keep_float(net, names)
        network = engines.compile(remaining, engine=engine, **options)
        if _agreement(remaining, network, calls, near_tie).holds:
            noted = _noted(remaining, names, f"{engine} computes it wrongly: it would be {first}")
            warnings.warn(f"{noted.notes[0]}. Please report the network", UserWarning, stacklevel=3)
            return remember(network, Origin(net=noted, engine=engine))
    raise EngineFaultError(
        asked=f"compile for {engine}",
        seen=f"it computes something else than the network: on samples of the calibration data it is {first}",
        remedy="use another engine, or pass check=False to have it as it is; and report the network",
        site=tried[0][0] if tried else None,
    )


def _agreement(
    net: Quantized,
    network: Network,
    calls: Sequence[Call],
    near_tie: float,
    expected: Outputs | None = None,
) -> Agreement:
    wanted = expected or simulated(net, calls)
    try:
        found = ran(network, calls)
    except Exception as error:  # an engine's own errors share no base but this
        return Agreement(nearness_db=-math.inf, bar_db=ENOUGH_DB, failure=f"{type(error).__name__}: {error}")
    return agreement(wanted, found, lambda: moved(net, calls, near_tie))


def _fewer(net: Quantized, engine: str, calls: Sequence[Call], near_tie: float) -> Iterator[tuple[str, ...]]:
    """Layers to leave in float: those that deviate first; when that does not help, the next, and these with those."""
    known = layers(net.plan)
    left: tuple[str, ...] = ()
    for attempt in range(ROUNDS):
        remaining = keep_float(net, left) if left else net
        names = _suspects(remaining, engine, calls, near_tie)
        if attempt >= ROUNDS // 2:  # one by one does not help
            names = _of_their_kind(net.plan, {*left, *names})
        alone, together = (tuple(layer for layer in known if layer in those) for those in (names, {*left, *names}))
        for chosen in dict.fromkeys((alone, together)):
            if chosen and chosen != left and len(chosen) < len(known):
                yield chosen
        left = together if len(together) < len(known) else left


def _of_their_kind(plan: Plan, names: Collection[str]) -> set[str]:
    """Every layer that is the same operation as one of `names`."""
    sites = [site for quantizer in plan.quantizers for site in quantizer.sites]
    kinds = {site.operation for site in sites if site.layer in names}
    return {site.layer for site in sites if site.operation in kinds}


def _suspects(net: Quantized, engine: str, calls: Sequence[Call], near_tie: float) -> set[str]:
    """The layers that make the first rounded value that deviates from the simulation's, else those before the output.

    An engine may fuse less while it also returns what it rounds, so it may be right here and wrong without.
    """
    nodes = {node.name: node for node in net.graph.module.graph.nodes}
    layer = {quantizer.name: quantizer.sites[0].layer for quantizer in net.plan.quantizers}
    where = _first_deviating(net, engine, calls, near_tie)
    if where is None:
        return _made_by(list(nodes.values())[-1], net.plan)
    marker = rounded_at(net.plan, net.plan.marked)[where]
    return _made_by(nodes[source_of(marker).name], net.plan) or {layer[quantizer_of(marker)]}


def _made_by(node: Node, plan: Plan) -> set[str]:
    """The layers that `node` was computed by since values were rounded last."""
    names = layers_of_nodes(plan)
    found, pending, seen = set(), [node], {node}
    while pending:
        current = pending.pop()
        if current.name in names:
            found.add(names[current.name])
        else:
            new = [source for source in current.all_input_nodes if source not in seen]
            seen.update(new)
            pending.extend(new)
    return found


def _first_deviating(net: Quantized, engine: str, calls: Sequence[Call], near_tie: float) -> str | None:
    """The first site, in the order of the data flow, that is further from the simulation's than rounding explains."""
    watched, scales = returning_sites(net)
    names = list(scales)
    wanted = simulated(watched, calls)
    drawn = next(moved(watched, calls, near_tie))
    try:
        found = ran(engines.compile(watched, engine=engine), calls)
    except Exception:  # an engine's own errors share no base but this; the outputs were enough to know that it is wrong
        return None
    ours = [[leaves[len(leaves) - len(names) :] for leaves in outputs] for outputs in (wanted, found, drawn)]
    near, bars = (nearness(tuple(ours[0]), tuple(other)) for other in ours[1:])
    deviating = (n for n, (a, b) in enumerate(zip(near, bars, strict=True)) if a < min(ENOUGH_DB, b - SLACK_DB))
    return next((names[n] for n in deviating), None)


def _noted(net: Quantized, names: Sequence[str], reason: str) -> Quantized:
    """`net` whose coverage and notes say why the layers `names` are in float."""
    coverage = net.plan.coverage
    kept = tuple(replace(one, reason=reason) if one.site in names else one for one in coverage.kept_float)
    plan = replace(net.plan, coverage=replace(coverage, kept_float=kept))
    return replace(net, plan=plan, notes=(f"left in float: {', '.join(names)}, because {reason}", *net.notes))
