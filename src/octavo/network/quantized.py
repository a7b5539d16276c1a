"""The quantized network: a plan, and the scale and zero-point of all that it rounds.

It is what is simulated, compiled, repaired, trained, saved and exported. Each of these returns a new one, or a network
that runs and remembers it; none changes what it is given.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

from octavo.arguments import check_fields
from octavo.errors import QuantizationError
from octavo.network.graph import Graph
from octavo.network.marker import marks, with_markers
from octavo.network.plan import Coverage, Plan
from octavo.network.samples import Call
from octavo.network.target import TARGETS, Target
from octavo.numerics.affine import QParams


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A network and the scale and zero-point of every quantizer of its plan, chosen by `method`.

    by       the method itself, if it is a function of the user's own: neither pickled nor saved
    notes    where a rule overruled the method, or an engine the plan, and why
    samples  a few of the inputs that calibration saw: every engine is checked on them
    """

    plan: Plan
    values: Mapping[str, QParams]
    method: str
    notes: tuple[str, ...] = ()
    samples: tuple[Call, ...] = field(default=(), repr=False, compare=False)
    by: Callable[..., Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        missing = [quantizer.name for quantizer in self.plan.quantizers if quantizer.name not in self.values]
        if missing:
            raise QuantizationError(
                asked="use parameters with a plan",
                seen=f"{len(missing)} of its quantizers have none",
                remedy="choose the parameters from statistics of this very plan",
                site=missing[0],
            )

    @property
    def graph(self) -> Graph:
        """The float network that the plan was made for."""
        return self.plan.graph

    @property
    def coverage(self) -> Coverage:
        """How many of the compute-heavy operations the plan has in integers."""
        return self.plan.coverage

    def __reduce__(self) -> tuple[Any, ...]:
        """With a plain dict: read-only views cannot be pickled."""
        return _quantized, (self.plan, dict(self.values), self.method, self.notes, self.samples)


def _quantized(plan: Plan, values: dict[str, QParams], method: str, notes: Any, samples: Any) -> Quantized:
    return Quantized(plan=plan, values=MappingProxyType(values), method=method, notes=notes, samples=samples)


def on_graph(net: Quantized, graph: Graph, values: Mapping[str, QParams] | None = None) -> Quantized:
    """`net` on a float network whose operations have the names of its own, with other `values` if there are some."""
    own = net.values if values is None else MappingProxyType(dict(values))
    plan = replace(net.plan, graph=graph, marked=with_markers(graph, marks(net.plan.marked)))
    return replace(net, plan=plan, values=own)


def graph_of(net: Quantized | Graph) -> Graph:
    """The float network."""
    return net if isinstance(net, Graph) else net.graph


def target_of(net: Quantized | Graph) -> Target:
    """What the network was planned for; a float one for nothing, and all that is compute-heavy counts."""
    return TARGETS["paper"] if isinstance(net, Graph) else net.plan.target


SIMULATION = "simulation"
TRAINING = "training"
Network = Callable[..., Any]  # whatever is called like the user's model
Kept = TypeVar("Kept", bound=Network)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a network that runs was made from, quantized or as it was captured, and the engine, or `SIMULATION`."""

    net: Quantized | Graph
    engine: str


def remember(model: Kept, origin: Origin) -> Kept:
    """`model`, whose origin `origin_of` knows from now on."""
    vars(model)["origin"] = origin
    return model


def origin_of(model: Network) -> Origin | None:
    """The origin of what `compile` or `simulate` returned; None for any other callable."""
    found = getattr(model, "origin", None)
    return found if isinstance(found, Origin) else None
