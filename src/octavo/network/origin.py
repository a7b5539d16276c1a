"""What a network that runs was made from, kept beside it: to compare it with another that was made from the same."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from octavo.network.graph import Graph
from octavo.network.quantized import Quantized

SIMULATION = "simulation"
TRAINING = "training"
Network = Callable[..., Any]  # whatever is called like the user's model
Kept = TypeVar("Kept", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The network that runs, quantized or as it was captured, and the engine that runs it, or `SIMULATION`."""

    net: Quantized | Graph
    engine: str


def remember(model: Kept, origin: Origin) -> Kept:
    """`model`, whose origin `origin_of` knows from now on."""
    vars(model)["origin"] = origin
    return model


def origin_of(model: Callable[..., Any]) -> Origin | None:
    """The origin of what `compile` or `simulate` returned; None for any other callable."""
    found = getattr(model, "origin", None)
    return found if isinstance(found, Origin) else None
