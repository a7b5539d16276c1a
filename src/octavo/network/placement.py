"""Placement: which tensors of a captured network are quantized, and by which scheme (Wu et al. 2020, §4).

operations ─▶ sites ─▶ rules decide ─▶ quantizers: one per produced tensor, shared by all its readers ─▶ marked graph
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count

from torch.fx import Node

from octavo.arguments import checked
from octavo.errors import QuantizationError
from octavo.network.edit import layer_of
from octavo.network.graph import Graph
from octavo.network.marker import Mark
from octavo.network.operations import (
    OUTPUT,
    Operand,
    Operation,
    float_only,
    lone_channels,
    operands,
    operation,
)
from octavo.network.outputs import output_operands
from octavo.network.plan import Coverage, KeptFloat, Plan, Quantizer, planned
from octavo.network.residual import residual_operands
from octavo.network.rule import EVERYTHING, Rule, Site, decide
from octavo.network.schemes import is_convolved, is_own, scheme_of
from octavo.network.share import shared
from octavo.network.signs import never_negative
from octavo.network.target import Target, target_named
from octavo.numerics.scheme import Scheme


@checked
def make_plan(graph: Graph, rules: Sequence[Rule] = (EVERYTHING,), *, target: Target | str = "openvino") -> Plan:
    """Where `graph` is quantized for `target`.

    rules    the first that matches a site decides; a site that none matches stays in float
    raises   QuantizationError for a rule that matches nothing, and for a plan that quantizes nothing at all
    """
    target = target_named(target) if isinstance(target, str) else target
    placed = list(_placed(graph, target))
    decisions = decide([site for site, _ in placed], rules)
    left = {
        site.layer
        for (site, _), rule in zip(placed, decisions, strict=True)
        if site.role != OUTPUT and (rule is None or rule.skip)
    }
    convolved = {operand.source for site, operand in placed if is_convolved(site)}
    chosen = [
        (site, operand, scheme_of(site, operand, rule, target, convolved))
        for (site, operand), rule in zip(placed, decisions, strict=True)
        if rule is not None and not rule.skip and not (site.role == OUTPUT and site.layer in left)
    ]
    coverage = _coverage(graph, target, placed, decisions, chosen)
    if not chosen:
        raise QuantizationError(
            asked=f"quantize with {', '.join(map(str, rules))}",
            seen=f"none of the {coverage.total} compute-heavy operations is left to quantize"
            + "".join(f" ({kept.site}: {kept.reason})" for kept in coverage.kept_float[:1]),
            remedy='end the rules with Rule("*"), or capture a network with convolutions, linears or matmuls',
        )
    quantizers, found = _quantizers(chosen, target)
    return planned(graph, found, target, tuple(rules), quantizers, coverage)


def every_site(graph: Graph, target: Target) -> list[Site]:
    """Every place where `target` would quantize a tensor, whether a plan does or not."""
    return [site for site, _ in _placed(graph, target)]


def layer_names(graph: Graph, target: Target) -> dict[str, str]:
    """{node: the user's layer} of every compute-heavy operation and of the additions that `target` would quantize.

    No two have the same name: what a layer computes in its second call has "@1" behind it.
    """
    sited = _sited(_placed(graph, target))
    return sited | _heavy(graph, sited)


def compute_heavy(graph: Graph, target: Target) -> dict[str, str]:
    """{node: the user's layer} of every operation that the coverage counts, in the order of the data flow.

    Every name is there once: engines tell by it how they run the operation.
    """
    return _heavy(graph, _sited(_placed(graph, target)))


def _heavy(graph: Graph, known: dict[str, str]) -> dict[str, str]:
    taken = set(known.values())
    found = {}
    for node in graph.module.graph.nodes:
        row = operation(node)
        if (row is not None and row.name != "add") or float_only(node) is not None:
            name = known.get(node.name)
            if name is None:
                layer = _layer(node, row.name if row else node.name)
                name = next(n for i in count() if (n := f"{layer}@{i}" if i else layer) not in taken)
                taken.add(name)
            found[node.name] = name
    return found


def _sited(placed: Iterable[tuple[Site, Operand]]) -> dict[str, str]:
    """{node: the user's layer} of every operation that the target would quantize, whether a plan does or not."""
    return {site.node: site.layer for site, _ in placed if site.role != OUTPUT}


def _placed(graph: Graph, target: Target) -> Iterator[tuple[Site, Operand]]:
    """Every operand that `target` would quantize, with its site."""
    calls: Counter[str] = Counter()
    nodes = list(graph.module.graph.nodes)
    additions = residual_operands(nodes, target.residual)
    wanted = [
        (node, row, _wanted(row, additions.get(node, []) if row.name == "add" else list(operands(node)), target))
        for node in nodes
        if (row := operation(node))
    ]
    rounded = {(operand.source, operand.node) for _, _, found in wanted for operand in found}
    outputs = output_operands(nodes, rounded) if target.convolution_outputs else {}
    for node, row, found in wanted:
        if found:
            layer = _layer(node, row.name)
            calls[layer] += 1
            layer = layer if calls[layer] == 1 else f"{layer}@{calls[layer] - 1}"
            for operand in (*found, *outputs.get(node, ())):
                name, reader = f"{layer}.{operand.role}", operand.node.name
                yield Site(name=name, layer=layer, operation=row.name, role=operand.role, node=reader), operand


def _wanted(row: Operation, found: list[Operand], target: Target) -> list[Operand]:
    """Those that `target` would quantize."""
    return [operand for operand in found if operand.axis is not None or row.name not in target.float_operations]


def _layer(node: Node, name: str) -> str:
    """The user's layer that `node` is: the owner of its weight, else the calling layer and the operation."""
    caller = layer_of(node)
    weights = [str(operand.source.target) for operand in operands(node) if operand.axis is not None]
    if weights and "." in weights[0]:
        owner = weights[0].rpartition(".")[0]
        # A weight tied to another layer's, as an output head to its embedding, still makes a layer of its own.
        return owner if f"{owner}.".startswith(f"{caller}." if caller else "") else caller
    return f"{caller}.{name}" if caller else name


def _quantizers(chosen: list[tuple[Site, Operand, Scheme]], target: Target) -> tuple[tuple[Quantizer, ...], list[Mark]]:
    """(every quantizer, where they stand)."""
    quantizers, found = [], []
    positive, unsigned = never_negative(chosen[0][1].node.graph.nodes), target.nonnegative
    for members, path in shared([(operand, scheme) for _, operand, scheme in chosen]):
        sites, scheme = tuple(chosen[member][0] for member in members), chosen[members[0]][2]
        constant = all(source.op == "get_attr" for source, _ in path)
        if unsigned is not None and is_own(scheme, target) and positive.issuperset(source for source, _ in path):
            scheme = replace(unsigned, bits=scheme.bits, axis=scheme.axis, rows=scheme.rows)
        quantizers.append(Quantizer(name=sites[0].name, scheme=scheme, constant=constant, sites=sites))
        found += [Mark(sites[0].name, source.name, user.name) for source, user in path]
    return tuple(quantizers), found


def _coverage(
    graph: Graph,
    target: Target,
    placed: list[tuple[Site, Operand]],
    decisions: list[Rule | None],
    chosen: list[tuple[Site, Operand, Scheme]],
) -> Coverage:
    left: dict[str, str] = {}
    for (site, _), rule in zip(placed, decisions, strict=True):
        if site.role != OUTPUT and rule is None:
            left.setdefault(site.node, f"no rule matches its {site.role}")
        elif site.role != OUTPUT and rule is not None and rule.skip:
            left.setdefault(site.node, f"{rule} leaves its {site.role} in float")
    sited, nodes = _sited(placed), {node.name: node for node in graph.module.graph.nodes}
    reasons = {name: _reason(nodes[node], target, sited, left) for node, name in _heavy(graph, sited).items()}
    kept = tuple(KeptFloat(site=name, reason=reason) for name, reason in reasons.items() if reason is not None)
    quantized = tuple(name for name, reason in reasons.items() if reason is None)
    return Coverage(
        quantized=len(quantized), total=len(reasons), kept_float=kept, layers=quantized, per_tensor=_per_tensor(chosen)
    )


def _per_tensor(chosen: list[tuple[Site, Operand, Scheme]]) -> tuple[str, ...]:
    return tuple(
        site.layer
        for site, operand, scheme in chosen
        if site.role == "input" and lone_channels(operand) is not None and scheme.axis is None
    )


def _reason(node: Node, target: Target, sited: dict[str, str], left: dict[str, str]) -> str | None:
    """Why the plan does not execute `node` on integers; None if it does."""
    row = operation(node)
    if row is None:
        return float_only(node)
    if row.name in target.float_operations:
        return target.float_operations[row.name]
    if node.name not in sited:
        return "its inputs are not floating-point tensors"
    return left.get(node.name)
