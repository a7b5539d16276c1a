"""A plan: a network with a marker wherever a tensor is rounded, and what is known of every rounding.

`octavo.network.placement` makes one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from octavo.errors import QuantizationError
from octavo.network.edit import attribute
from octavo.network.graph import Graph
from octavo.network.marker import Mark, marks, with_markers
from octavo.network.rule import Rule, Site
from octavo.network.target import Target
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """One scale and zero-point. Where they apply, the markers of the plan say.

    name      the name of its first site
    scheme    how the tensor is represented
    constant  whether it quantizes a weight, known before any data is seen
    sites     the operands that it serves
    """

    name: str
    scheme: Scheme
    constant: bool
    sites: tuple[Site, ...]


@dataclass(frozen=True, kw_only=True)
class KeptFloat:
    """A compute-heavy operation that is not executed on integers, and why."""

    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many of the compute-heavy operations are quantized in all their inputs. Additions are not counted.

    This is the plan. What an engine makes of it, `octavo.engines.ran` says.

    layers      the names of those that are quantized, in the order of the data flow
    per_tensor  the depthwise convolutions whose input has one scale for all channels, where sums would allow more
    """

    quantized: int
    total: int
    kept_float: tuple[KeptFloat, ...]
    layers: tuple[str, ...] = ()
    per_tensor: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.quantized} of {self.total} compute-heavy operations quantized"]
        lines += [f"  {kept.site}: float, {kept.reason}" for kept in self.kept_float]
        if self.per_tensor:
            lines.append(f"  {len(self.per_tensor)} depthwise convolutions: one scale for all channels that they read")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A network with a marker wherever a tensor is rounded, and the quantizers that the markers name.

    Change neither graph in place: `octavo.network.quantized.on_graph` puts a plan on another network.

    graph       the float network
    marked      the same with the markers, on the same parameters: see `octavo.network.marker`
    quantizers  in the order of the data flow; their names are unique
    raises      QuantizationError for a graph and a marked graph of different parameters
    """

    graph: Graph = field(repr=False, compare=False)
    marked: Graph = field(repr=False, compare=False)
    target: Target
    rules: tuple[Rule, ...]
    quantizers: tuple[Quantizer, ...]
    coverage: Coverage

    def __post_init__(self) -> None:
        float_ones, ours = (_parameters(graph) for graph in (self.graph, self.marked))
        other = [name for name, tensor in ours.items() if float_ones.get(name) is not tensor]
        if other:
            raise QuantizationError(
                asked="hold a plan on a graph",
                seen=f"its markers stand in a graph with another {other[0]}",
                remedy="put the whole on the graph: octavo.network.quantized.on_graph(net, graph)",
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """As files have it: the float network, and where its markers stand."""
        return planned, (self.graph, tuple(marks(self.marked)), self.target, self.rules, self.quantizers, self.coverage)


def planned(
    graph: Graph,
    found: Iterable[Mark],
    target: Target,
    rules: tuple[Rule, ...],
    quantizers: tuple[Quantizer, ...],
    coverage: Coverage,
) -> Plan:
    """The plan of `graph` whose markers stand where `found` says.

    A product of a tensor with itself reads it once, whatever the schemes of its sides: the first quantizer serves both.
    """
    owners: dict[tuple[str, str], str] = {}
    serves: dict[str, str] = {}  # {a quantizer: the one that stands where it would}
    for mark in found:
        owner = owners.setdefault((mark.source, mark.user), mark.name)
        serves[mark.name] = mark.name if owner == mark.name else serves.get(mark.name, owner)
    own = {q.name: [*q.sites] for q in quantizers if serves[q.name] == q.name}
    for quantizer in quantizers:
        if quantizer.name not in own:
            own[serves[quantizer.name]] += quantizer.sites
    return Plan(
        graph=graph,
        marked=with_markers(graph, [Mark(name, *edge) for edge, name in owners.items()]),
        target=target,
        rules=rules,
        quantizers=tuple(replace(q, sites=tuple(own[q.name])) for q in quantizers if q.name in own),
        coverage=coverage,
    )


def _parameters(graph: Graph) -> dict[str, Tensor]:
    """{name: tensor} of all that the graph reads."""
    nodes = graph.module.graph.find_nodes(op="get_attr")
    return {str(node.target): attribute(graph.module, node) for node in nodes}
