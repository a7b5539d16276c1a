"""Placement: which tensors of a captured network are quantized, and by which scheme (Wu et al. 2020, §4).

operations ─▶ sites ─▶ rules decide ─▶ quantizers: one per produced tensor, shared by all its readers
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from octavo.errors import QuantizationError
from octavo.network.edit import layer_of
from octavo.network.graph import Graph
from octavo.network.operations import FLOAT_ONLY, Operand, is_factor, never_negative, operands, operation
from octavo.network.residual import residual_operands
from octavo.network.rule import EVERYTHING, Rule, Site, decide
from octavo.network.share import Edge, Read, shared_reads
from octavo.network.target import Target, target_named
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """One scale and zero-point, and where they apply.

    name      the name of its first site
    scheme    how the tensor is represented
    constant  whether it quantizes a weight, known before any data is seen
    edges     who reads the quantized value of what
    sites     the operands that it serves
    """

    name: str
    scheme: Scheme
    constant: bool
    edges: tuple[Edge, ...]
    sites: tuple[Site, ...]


@dataclass(frozen=True, kw_only=True)
class KeptFloat:
    """A compute-heavy operation that is not executed on integers, and why."""

    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many of the compute-heavy operations are quantized in all their inputs. Additions are not counted."""

    quantized: int
    total: int
    kept_float: tuple[KeptFloat, ...]

    def __str__(self) -> str:
        lines = [f"{self.quantized} of {self.total} compute-heavy operations quantized"]
        return "\n".join(lines + [f"  {kept.site}: float, {kept.reason}" for kept in self.kept_float])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every quantizer of a network, in the order of the data flow. Names of quantizers are unique."""

    target: Target
    rules: tuple[Rule, ...]
    quantizers: tuple[Quantizer, ...]
    coverage: Coverage


def make_plan(graph: Graph, rules: Sequence[Rule] = (EVERYTHING,), *, target: Target | str = "openvino") -> Plan:
    """Where `graph` is quantized for `target`.

    rules    the first that matches a site decides; a site that none matches stays in float
    raises   QuantizationError for a rule that matches nothing, and for a plan that quantizes nothing at all
    """
    target = target_named(target) if isinstance(target, str) else target
    placed = list(_placed(graph, target))
    decisions = decide([site for site, _ in placed], rules)
    chosen = [
        (site, operand, _scheme(site, operand, rule, target))
        for (site, operand), rule in zip(placed, decisions, strict=True)
        if rule is not None and not rule.skip
    ]
    coverage = _coverage(graph, target, placed, decisions)
    if not chosen:
        raise QuantizationError(
            asked=f"quantize with {', '.join(map(str, rules))}",
            seen=f"none of the {coverage.total} compute-heavy operations is left to quantize"
            + "".join(f" ({kept.site}: {kept.reason})" for kept in coverage.kept_float[:1]),
            remedy='end the rules with Rule("*"), or capture a network with convolutions, linears or matmuls',
        )
    return Plan(target=target, rules=tuple(rules), quantizers=_quantizers(chosen, target), coverage=coverage)


def layer_names(graph: Graph, target: Target) -> dict[str, str]:
    """{node: the user's layer} of every operation that `target` would quantize, whether a plan does or not."""
    return {site.node: site.layer for site, _ in _placed(graph, target)}


def _placed(graph: Graph, target: Target) -> Iterator[tuple[Site, Operand]]:
    """Every operand that `target` would quantize, with its site."""
    calls: Counter[str] = Counter()
    for node in graph.module.graph.nodes:
        row = operation(node)
        if row is None:
            continue
        found = list(residual_operands(node, target.residual) if row.name == "add" else operands(node))
        if row.name in target.float_operations:
            found = [operand for operand in found if operand.axis is not None]
        if found:
            layer = _layer(node, row.name)
            calls[layer] += 1
            layer = layer if calls[layer] == 1 else f"{layer}@{calls[layer] - 1}"
            for operand in found:
                name = f"{layer}.{operand.role}"
                yield Site(name=name, layer=layer, operation=row.name, role=operand.role, node=node.name), operand


def _layer(node: Node, name: str) -> str:
    """The user's layer that `node` is: the owner of its weight, else the calling layer and the operation."""
    caller = layer_of(node)
    weights = [str(operand.source.target) for operand in operands(node) if operand.axis is not None]
    if weights and "." in weights[0]:
        owner = weights[0].rpartition(".")[0]
        # A weight tied to another layer's, as an output head to its embedding, still makes a layer of its own.
        return owner if f"{owner}.".startswith(f"{caller}." if caller else "") else caller
    return f"{caller}.{name}" if caller else name


def _scheme(site: Site, operand: Operand, rule: Rule, target: Target) -> Scheme:
    scheme = rule.scheme or _own_scheme(site, operand, target)
    if rule.bits is not None:
        scheme = replace(scheme, bits=rule.bits)
    if operand.axis is None:
        if scheme.axis is not None:
            raise QuantizationError(
                asked=f"quantize an activation along axis {scheme.axis}",
                seen="an integer product can factor only one scale per tensor out of its sum",
                remedy="give activations a scheme without axis",
                site=site.name,
            )
        return scheme
    if scheme.axis is None or scheme.block is not None or scheme.axis == operand.axis:
        return scheme
    if scheme.axis == 0:
        return replace(scheme, axis=operand.axis)
    raise QuantizationError(
        asked=f"quantize the weight along axis {scheme.axis}",
        seen=f"the output channels of {site.operation} weights lie along axis {operand.axis}",
        remedy="use axis=0, which stands for the output channel everywhere",
        site=site.name,
    )


def _own_scheme(site: Site, operand: Operand, target: Target) -> Scheme:
    if operand.axis is not None:
        return target.weight
    return (target.factor if is_factor(site.operation, site.role) else None) or target.activation


def _quantizers(chosen: list[tuple[Site, Operand, Scheme]], target: Target) -> tuple[Quantizer, ...]:
    reads = [
        Read(site=site, node=operand.node, source=operand.source, scheme=scheme) for site, operand, scheme in chosen
    ]
    quantizers = []
    for group in shared_reads(reads):
        scheme, constant = group.scheme, all(source.op == "get_attr" for source in group.sources)
        unsigned = target.nonnegative
        if unsigned is not None and _replaceable(scheme, target) and all(map(never_negative, group.sources)):
            scheme = replace(unsigned, bits=scheme.bits)
        quantizers.append(
            Quantizer(name=group.sites[0].name, scheme=scheme, constant=constant, edges=group.edges, sites=group.sites)
        )
    return tuple(quantizers)


def _replaceable(scheme: Scheme, target: Target) -> bool:
    """Whether `scheme` is the target's own for activations (a rule's own scheme is never second-guessed)."""
    return scheme == replace(target.activation, bits=scheme.bits)


def _coverage(
    graph: Graph, target: Target, placed: list[tuple[Site, Operand]], decisions: list[Rule | None]
) -> Coverage:
    total, quantized, kept = 0, 0, []
    left: dict[str, str] = {}
    names: dict[str, str] = {}
    for (site, _), rule in zip(placed, decisions, strict=True):
        names[site.node] = site.layer
        if rule is None:
            left.setdefault(site.node, f"no rule matches its {site.role}")
        elif rule.skip:
            left.setdefault(site.node, f"{rule} leaves its {site.role} in float")
    for node in graph.module.graph.nodes:
        row = operation(node)
        if (row is None or row.name == "add") and node.target not in FLOAT_ONLY:
            continue
        total += 1
        reason = _reason(node, target, names, left)
        if reason is None:
            quantized += 1
        else:
            name = names.get(node.name) or _layer(node, row.name if row else node.name)
            kept.append(KeptFloat(site=name, reason=reason))
    return Coverage(quantized=quantized, total=total, kept_float=tuple(kept))


def _reason(node: Node, target: Target, names: dict[str, str], left: dict[str, str]) -> str | None:
    """Why `node` is not executed on integers; None if it is."""
    row = operation(node)
    if row is None:
        return FLOAT_ONLY[node.target]
    if row.name in target.float_operations:
        return target.float_operations[row.name]
    if node.name not in names:
        return "its inputs are not floating-point tensors"
    return left.get(node.name)
