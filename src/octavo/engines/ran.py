"""What an engine made of a plan: which of the operations that are planned in integers ran so.

A plan says what is rounded; an engine multiplies integers only where it has a kernel for what lies between. What it did
is read from what it compiled (`executions`), and nothing is assumed of an operation that it does not tell of.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.engines.execution import Execution
from octavo.network.plan import Coverage
from octavo.network.quantized import Quantized, origin_of
from octavo.network.work import share, work_of


@dataclass(frozen=True, kw_only=True)
class Ran:
    """The plan of a network, and how its engine runs it.

    planned     the plan's coverage
    executions  {user's layer: how it runs}
    work        {user's layer: its multiplications} of all compute-heavy operations
    """

    engine: str
    planned: Coverage
    executions: Mapping[str, Execution]
    work: Mapping[str, float]

    @property
    def on_integers(self) -> tuple[str, ...]:
        """The planned layers that run on integers."""
        return tuple(layer for layer in self.planned.layers if self._arithmetic(layer) == "int8")

    @property
    def in_float(self) -> tuple[str, ...]:
        """The planned layers that do not."""
        return tuple(layer for layer in self.planned.layers if self._arithmetic(layer) != "int8")

    @property
    def share(self) -> float:
        """Of all multiplications, those that run on integers: 0 … 1; of a network that has none, 1."""
        return share(self.work, self.on_integers)

    def _arithmetic(self, layer: str) -> str | None:
        return self.executions[layer].arithmetic if layer in self.executions else None

    def kernel(self, layer: str) -> str:
        """The kernel that runs `layer`."""
        return self.executions[layer].kernel if layer in self.executions else "no kernel of its own"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        left = [{"layer": layer, "kernel": self.kernel(layer)} for layer in self.in_float]
        return {"engine": self.engine, "int8": len(self.on_integers), "share": self.share, "in_float": left}

    @property
    def counts(self) -> str:
        """How many operations are planned, and how many ran on integers."""
        total, planned, count = self.planned.total, self.planned.quantized, len(self.on_integers)
        line = f"{planned} of {total} compute-heavy operations planned int8, {count} ran int8 on {self.engine}"
        if any(self.work.values()):
            line += f", {per_cent(self.share)} of the multiplications"
        return line

    def __str__(self) -> str:
        left = [f"{layer} ({self.kernel(layer)})" for layer in self.in_float]
        return f"{self.counts}; in float: {', '.join(left)}" if left else self.counts


def per_cent(share: float) -> str:
    """Three digits; 100 % is all, and 0 % none."""
    if 0 < share < 0.001:
        return "less than 0.1 %"
    return "more than 99.9 %" if 0.999 < share < 1 else f"{100 * share:.3g} %"


def ran(network: Callable[..., Any]) -> Ran | None:
    """What became of the plan of `network`, as `compile` or `load` returned it; None for a float network or another."""
    origin, executions = origin_of(network), getattr(network, "executions", None)
    if origin is None or not isinstance(origin.net, Quantized) or executions is None:
        return None
    plan = origin.net.plan
    return Ran(engine=origin.engine, planned=plan.coverage, executions=executions(), work=work_of(plan))
