"""How far two executions of one network are apart: in what they return, and at every place where they round.

The float network, its simulation and every engine can be compared. Differences between the simulation and an engine
have known reasons, and bounds: see docs/engines.md.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.arguments import checked
from octavo.engines import compile
from octavo.engines.sites import Step, returning_sites
from octavo.errors import QuantizationError
from octavo.measure import leaf_pairs
from octavo.network.graph import call_arguments, network_inputs
from octavo.network.quantized import SIMULATION, Network, Quantized, graph_of, origin_of
from octavo.network.simulate import simulate
from octavo.numerics.decibels import decibels


@dataclass(frozen=True, kw_only=True)
class SiteDistance:
    """How far two executions are apart where one tensor is rounded, in integers.

    differing   share of the integers that are not the same
    most_steps  by how many steps they differ at most
    """

    name: str
    differing: float
    most_steps: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two executions are apart.

    largest  absolute difference of two outputs, and `relative` the same as a share of the largest output of `a`
    sqnr_db  10·log₁₀(Σ a² / Σ (a − b)²); inf if they are identical
    top1     percentage of rows of the first output whose largest entries stand in the same place; None without classes
    sites    in the order of the data flow; empty unless asked for
    """

    largest: float
    relative: float
    sqnr_db: float
    top1: float | None
    batches: int
    sites: tuple[SiteDistance, ...] = ()

    def __str__(self) -> str:
        same = "" if self.top1 is None else f", top-1 the same in {self.top1:.2f} %"
        lines = [f"outputs differ by at most {self.largest:.3g} ({self.relative:.2%}), {self.sqnr_db:.1f} dB{same}"]
        worst = sorted(self.sites, key=lambda site: site.differing, reverse=True)[:10]
        return "\n".join(
            lines + [f"  {s.name}: {s.differing:.3%} of the integers differ, by at most {s.most_steps}" for s in worst]
        )


@checked
def verify(a: Network, b: Network, inputs: Iterable[Any], *, sites: bool = False) -> Difference:
    """The distance of `b` from `a` over `inputs`, batches in the form of `capture`'s example.

    a, b    networks, or what `simulate` and `compile` return
    sites   also compare the integers at every site. Both are compiled anew, with the values at the sites among their
            outputs; an engine may then fuse less than it does without. For results of `simulate` and `compile` alone
    raises  QuantizationError for no inputs, for outputs that cannot be compared, and for `sites` of other models
    """
    steps: dict[str, Step] = {}
    if sites:
        (a, steps), (b, _) = _with_sites(a), _with_sites(b)
    total, places = _Outputs(), {name: _SiteTotals(step) for name, step in steps.items()}
    origin = origin_of(a) or origin_of(b)
    for batch in inputs:
        args, kwargs = network_inputs(graph_of(origin.net), batch) if origin else call_arguments(batch)
        with torch.inference_mode():
            found_a, found_b = a(*args, **kwargs), b(*args, **kwargs)
        if sites:
            for name, place in places.items():
                place.add(found_a["sites"][name], found_b["sites"][name])
            found_a, found_b = found_a["output"], found_b["output"]
        total.add(found_a, found_b)
    distances = tuple(place.distance(name) for name, place in places.items())
    return replace(total.distance(), sites=distances)


class _Outputs:
    """What is seen of the outputs, batch by batch."""

    def __init__(self) -> None:
        self.largest = self.size = self.signal = self.noise = 0.0
        self.batches = self.rows = self.same = 0

    def add(self, a: Any, b: Any) -> None:
        pairs = leaf_pairs(a, b)
        for x, y in pairs:
            if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
                raise QuantizationError(
                    asked="compare two executions of a network",
                    seen=f"an output of batch {self.batches} (counted from 0) holds NaN or infinity",
                    remedy="look for a division by zero or an overflow in the network",
                )
            if x.numel():
                self.largest = max(self.largest, (x - y).abs().max().item())
                self.size = max(self.size, x.abs().max().item())
            self.signal += x.square().sum().item()
            self.noise += (x - y).square().sum().item()
        first, second = pairs[0]
        if first.ndim >= 2 and first.shape[-1] > 1:
            same = first.argmax(dim=-1) == second.argmax(dim=-1)
            self.rows, self.same = self.rows + same.numel(), self.same + int(same.sum())
        self.batches += 1

    def distance(self) -> Difference:
        if self.batches == 0:
            raise QuantizationError(
                asked="compare two executions of a network",
                seen="there are no inputs",
                remedy="give at least one batch",
            )
        return Difference(
            largest=self.largest,
            relative=self.largest / self.size if self.size else math.inf if self.largest else 0.0,
            sqnr_db=decibels(self.signal, self.noise),
            top1=100.0 * self.same / self.rows if self.rows else None,
            batches=self.batches,
        )


class _SiteTotals:
    """What is seen at one site: its values are its step, which stands beside them, times an integer."""

    def __init__(self, step: Step) -> None:
        self.step, self.count, self.differing, self.most = step, 0, 0, 0

    def add(self, a: Tensor, b: Tensor) -> None:
        steps = ((a.double() - b.double()) / self.step(a)).round().abs()
        self.count += steps.numel()
        self.differing += int((steps > 0).sum())
        self.most = max(self.most, int(steps.max()) if steps.numel() else 0)

    def distance(self, name: str) -> SiteDistance:
        return SiteDistance(name=name, differing=self.differing / max(self.count, 1), most_steps=self.most)


def _with_sites(model: Network) -> tuple[Network, dict[str, Step]]:
    """(`model` returning {"output", "sites": {name: rounded value}}, {name: its step})."""
    origin = origin_of(model)
    if origin is None or not isinstance(origin.net, Quantized):
        raise QuantizationError(
            asked="compare two executions site by site",
            seen=f"one of them is a {type(model).__name__} that rounds nowhere, or that Octavo did not make",
            remedy="compare what simulate and compile return, or leave sites out",
        )
    net, steps = returning_sites(origin.net)
    if origin.engine == SIMULATION:
        return simulate(net), steps
    return compile(net, engine=origin.engine), steps
