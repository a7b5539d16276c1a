"""What training makes small: the user's loss, the distance to the float network, or both."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from octavo.errors import QuantizationError
from octavo.measure import real
from octavo.network.graph import Graph

Loss = Callable[[Any, Any], Tensor]  # (what the network returns, the batch) → a scalar
Distance = Callable[[Any, Any], Tensor]  # (outputs, the float network's outputs) → a scalar


def distance(outputs: Any, wanted: Any) -> Tensor:
    """How far a network is from its float original: squared error over the original's mean square, tensor by tensor."""
    pairs = [(y, t) for y, t in _pairs(outputs, wanted) if t.is_floating_point()]
    return torch.stack(
        [F.mse_loss(y.float(), t.float()) / t.float().square().mean().clamp(min=1e-12) for y, t in pairs]
    ).sum()


def divergence(outputs: Any, wanted: Any) -> Tensor:
    """Kullback-Leibler divergence of logits [N, ..., classes] from those of the float original (Hinton et al. 2015)."""
    y, t = (x.float().flatten(0, -2).log_softmax(-1) for x in _pairs(outputs, wanted)[0])
    return F.kl_div(y, t, log_target=True, reduction="batchmean")


def _pairs(outputs: Any, wanted: Any) -> list[tuple[Tensor, Tensor]]:
    """The tensors of two networks' outputs, side by side.

    raises  QuantizationError if there is none, or they do not belong together
    """
    ours, theirs = tree_leaves(outputs), tree_leaves(wanted)
    shapes = [[getattr(leaf, "shape", type(leaf).__name__) for leaf in leaves] for leaves in (ours, theirs)]
    if not ours or shapes[0] != shapes[1] or not all(isinstance(leaf, Tensor) for leaf in (*ours, *theirs)):
        raise QuantizationError(
            asked="measure how far outputs are from those of the float network",
            seen=f"outputs holds {shapes[0]} and wanted {shapes[1]}",
            remedy="give what two networks return for one input: tensors of the same shapes",
        )
    return list(zip(ours, theirs, strict=True))


class Objective:
    """The sum of `loss` and `distill`, of those that there are, for one batch."""

    def __init__(self, graph: Graph, loss: Loss | None, distill: Distance | None) -> None:
        self.graph, self.loss, self.distill = graph, loss, distill

    def __call__(self, outputs: Any, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        terms = [] if self.loss is None else [self.loss(outputs, batch)]
        if self.distill is not None:
            with torch.no_grad():
                wanted = self.graph(*args, **kwargs)
            terms.append(self.distill(outputs, wanted))
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


def check_loss(value: Any, *, batch: int, epoch: int) -> None:
    """Raise QuantizationError for a loss that nothing can be learned from."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise QuantizationError(
            asked="train with rounding",
            seen=f"the loss is {_shown(value)}",
            remedy="let loss and distill return one number that was computed from the outputs with torch: a tensor []",
        )
    if not torch.isfinite(value):
        raise QuantizationError(
            asked="train with rounding",
            seen=f"the loss of batch {batch} in epoch {epoch} is {value.item()}",
            remedy="lower the learning rate, or look for NaN in the data and for a loss that overflows",
        )


def one_number(value: Any) -> float:
    """What `evaluate` returned; QuantizationError if it is not one finite number."""
    found = real(value, "train with rounding by what evaluate returned")
    if found.numel() != 1 or not torch.isfinite(found).all():
        raise QuantizationError(
            asked="train with rounding",
            seen=f"evaluate returned {_shown(value)}",
            remedy="let it return one finite number: the score of the network",
        )
    return found.item()


def _shown(value: Any) -> str:
    """One number as it is, else the type and shape."""
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"a tensor {list(value.shape)}"
    return f"{value.item()}, cut off from the outputs" if isinstance(value, Tensor) else repr(value)[:80]
