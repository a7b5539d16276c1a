"""Whether an engine computes the network that was vouched for: its outputs beside the simulation's, on real inputs.

Sums of integers are exact, so an engine may differ from the simulation only where it rounds a value that lies near a
tie: the next integer, one step away. What that does to the outputs depends on the network: nothing to a shallow one,
and in a deep one as much as any other choice at the ties would do. So the bar is measured on the network itself: the
simulation is run again with every value moved, before it is rounded, by as much as the engine may be off
(`Engine.near_tie`). An engine that is right is one more such draw.

    bar = the smaller of ENOUGH_DB and (the worst of DRAWS simulations with moved values − SLACK_DB); at least LEAST_DB
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from octavo.errors import reason
from octavo.network.export import without_autocast
from octavo.network.graph import device_of
from octavo.network.marker import Rounded
from octavo.network.quantized import Network, Quantized
from octavo.network.samples import Call
from octavo.numerics.affine import round_by
from octavo.numerics.broadcast import steps_beside
from octavo.numerics.decibels import decibels
from octavo_serve.nearness import nearness_db

Outputs = tuple[list[Tensor], ...]  # for each call the tensors that a model returns, however nested

ENOUGH_DB = 40.0  # right engines are further than this from the simulation only where rounding at ties explains it
ENOUGH_EQUAL = 0.9  # the same for outputs that are no real numbers: the share of them that is equal
LEAST_DB = (
    3.0  # half of the output's power: a network that rounding at ties shakes more than this, nobody can vouch for
)
DRAWS, SLACK_DB = 3, 3.0  # draws scatter by 2 dB and less on four samples (docs/engines.md)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near a network is to the simulation, and how near it has to be, in the output that is nearest to failing.

    nearness_db  as `nearness`, inf for the same numbers
    bar_db       what rounding at ties accounts for; at most ENOUGH_DB
    failure      what it ended in, if it did not even run
    """

    nearness_db: float
    bar_db: float
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether the network is as near as it has to be."""
        return self.nearness_db >= self.bar_db

    def __str__(self) -> str:
        if self.failure:
            return f"without outputs ({reason(self.failure)})"
        return f"{self.nearness_db:.1f} dB from the simulation, where rounding accounts for {self.bar_db:.1f} dB"


def agreement(wanted: Outputs, found: Outputs, moved: Callable[[], Iterable[Outputs]]) -> Agreement:
    """How `found` stands to the simulation's outputs `wanted`; `moved` gives DRAWS of those with moved values.

    Nothing is drawn where `found` is near enough without.
    """
    near, bars = nearness(wanted, found), [enough(leaf) for leaf in wanted[0]]
    if any(have < bar for have, bar in zip(near, bars, strict=True)):
        for draw in moved():
            bars = [
                min(bar, max(one - SLACK_DB, LEAST_DB)) for bar, one in zip(bars, nearness(wanted, draw), strict=True)
            ]
    worst = min(range(len(near)), key=lambda n: _margin(near[n], bars[n]), default=None)
    if worst is None:
        return Agreement(nearness_db=math.inf, bar_db=ENOUGH_DB)
    return Agreement(nearness_db=near[worst], bar_db=bars[worst])


def _margin(near: float, bar: float) -> float:
    return math.inf if near == bar else near - bar  # ∞ − ∞ is no number


def enough(leaf: Tensor) -> float:
    """The decibels that are near enough for an output, whatever rounding does."""
    return ENOUGH_DB if leaf.is_floating_point() else decibels(1, 1 - ENOUGH_EQUAL)


def nearness(wanted: Outputs, found: Outputs) -> list[float]:
    """Decibels between the outputs of two executions, tensor by tensor: 10·log₁₀(signal / noise).

    What that is says `octavo_serve.nearness`. −inf for another number of tensors, another shape or type, and where only
    one is NaN or infinite.
    """
    columns = list(zip(*wanted, strict=True))
    if [len(leaves) for leaves in wanted] != [len(leaves) for leaves in found]:
        return [-math.inf] * len(columns)
    return [_nearness(mine, theirs) for mine, theirs in zip(columns, zip(*found, strict=True), strict=True)]


def _nearness(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    if [leaf.dtype for leaf in wanted] != [leaf.dtype for leaf in found]:
        return -math.inf
    return nearness_db(*([_array(leaf) for leaf in leaves] for leaves in (wanted, found)))


def _array(leaf: Tensor) -> NDArray[Any]:
    """Its values; those that numpy has no type for are float64."""
    return (leaf.double() if leaf.is_floating_point() else leaf).resolve_conj().resolve_neg().numpy()


# ---- the simulation, and the same with its values moved


def simulated(net: Quantized, calls: Sequence[Call]) -> Outputs:
    """What the simulation returns for `calls`."""
    return _rounded(net, lambda name, x: round_by(x, net.values[name]), calls)


def moved(net: Quantized, calls: Sequence[Call], near_tie: float) -> Iterator[Outputs]:
    """The same, DRAWS times, with every activation moved by up to `near_tie` steps before it is rounded.

    It is rounded to another integer than by the simulation where that is nearly as near.
    """
    weights = {quantizer.name for quantizer in net.plan.quantizers if quantizer.constant}
    for draw in range(DRAWS):
        source = torch.Generator().manual_seed(draw)

        def at(name: str, x: Tensor, source: torch.Generator = source) -> Tensor:
            params = net.values[name]
            if name not in weights:
                part = 2 * torch.rand(x.shape, generator=source).to(x) - 1
                x = x + part * near_tie * steps_beside(x, params.scale.to(x.device), params.scheme).to(x)
            return round_by(x, params)

        yield _rounded(net, at, calls)


def _rounded(net: Quantized, at: Callable[[str, Tensor], Tensor], calls: Sequence[Call]) -> Outputs:
    """What the network returns, on its own device, with `at` wherever it rounds."""
    marked = net.plan.marked
    return ran(Rounded(marked.module, at), calls, device=marked.device)


def ran(model: Network, calls: Sequence[Call], *, device: torch.device | None = None) -> Outputs:
    """What `model` returns for `calls`, which it gets on its own device (or `device`) and as tensors of its own."""
    device = device or (device_of(model) if isinstance(model, nn.Module) else None) or torch.device("cpu")

    def own(leaf: Any) -> Any:
        return leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf

    outputs = []
    with torch.inference_mode(), without_autocast():
        for call in calls:
            args, kwargs = tree_map(own, call)
            returned = tree_leaves(model(*args, **kwargs))
            outputs.append([leaf.detach().cpu() for leaf in returned if isinstance(leaf, Tensor)])
    return tuple(outputs)
