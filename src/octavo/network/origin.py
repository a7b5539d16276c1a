"""What a network that runs was made from, kept beside it: to compare it with another that was made from the same."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from octavo.network.graph import Graph
from octavo.network.quantized import Quantized

SIMULATION = "simulation"
TRAINING = "training"
Model = TypeVar("Model", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The network that runs, quantized or as it was captured, and the engine that runs it, or `SIMULATION`."""

    net: Quantized | Graph
    engine: str


def remember(model: Model, origin: Origin) -> Model:
    """`model`, whose origin `origin_of` knows from now on."""
    vars(model)["origin"] = origin
    return model


def origin_of(model: Callable[..., Any]) -> Origin | None:
    """The origin of what `compile` or `simulate` returned; None for any other callable."""
    found = getattr(model, "origin", None)
    return found if isinstance(found, Origin) else None
