"""A network, the data that calibrates it and the data that scores it, never the same samples."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor, nn

from octavo.errors import QuantizationError
from octavo.network.graph import call_arguments

Batch = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class Batches:
    """Batches made when they are asked for, as often as they are asked for; their number is known beforehand.

    items  anything that has a length and can be sliced: a tensor of inputs, a list of token lists
    size   items in a batch; the last one may be smaller
    make   turns a slice of the items into a batch; by default the slice is one
    """

    def __init__(self, items: Any, size: int, make: Callable[[Any], Batch] = lambda items: items) -> None:
        self.items, self.size, self.make = items, size, make

    def __len__(self) -> int:
        return math.ceil(len(self.items) / self.size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.items), self.size):
            yield self.make(self.items[start : start + self.size])


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What it takes to quantize one network and to say how good it still is.

    metric        name and unit of what `score` returns, in points: "top-1 %"
    build         the float network in evaluation mode
    example       two samples: a tensor, a tuple of positional inputs or a dict of keyword inputs
    dynamic_axes  axes of the inputs that may have any size; pass them to `capture`
    calibration   batches to calibrate with; none of their samples is scored
    inputs        batches to score, in a fixed order
    targets       [samples] what is right: classes, or graded similarities
    collect       [rows, ...] outputs of all batches of `inputs` → [samples, ...] predictions
    measure       ([n, ...] predictions, [n] targets) → the metric
    """

    name: str
    metric: str
    build: Callable[[], nn.Module]
    example: Batch
    dynamic_axes: tuple[int, ...] = (0,)
    calibration: Callable[[], list[Batch]]
    inputs: Callable[[], Batches]
    targets: Tensor
    collect: Callable[[Tensor], Tensor] = lambda outputs: outputs  # one row per sample already
    measure: Callable[[Tensor, Tensor], float]

    @property
    def samples(self) -> int:
        """How many samples are scored."""
        return len(self.targets)

    def predict(self, model: Callable[..., Any], *, progress: bool = False) -> Tensor:
        """[samples, ...] predictions of `model`, a network in evaluation mode or anything called like it.

        progress  show a bar with the time left
        raises    QuantizationError if a prediction is NaN
        """
        with torch.inference_mode():
            outputs = [_call(model, batch) for batch in _watched(self.inputs(), self.name, progress)]
            predictions = self.collect(torch.cat(outputs))
        broken = int(predictions.isnan().reshape(self.samples, -1).any(dim=1).sum())
        if broken:
            raise QuantizationError(
                asked=f"score the task {self.name!r}",
                seen=f"{broken} of {self.samples} predictions are NaN",
                remedy="look for a division by zero or an overflow in the network",
            )
        return predictions

    def score(self, predictions: Tensor, index: Tensor | None = None) -> float:
        """The metric in points, of all samples or of those in `index`, which may repeat some (a bootstrap resample)."""
        if index is None:
            return self.measure(predictions, self.targets)
        return self.measure(predictions[index], self.targets[index])


def _watched(batches: Batches, name: str, progress: bool) -> Iterator[Batch]:
    yield from track(batches, f"scoring {name}", total=len(batches), disable=not progress)


def _call(model: Callable[..., Any], batch: Batch) -> Tensor:
    args, kwargs = call_arguments(batch)
    output = model(*args, **kwargs)
    if isinstance(output, tuple | list) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor):
        raise QuantizationError(
            asked="score a network",
            seen=f"its output is a {type(output).__name__}",
            remedy="pass a callable that returns one tensor",
        )
    return output.float().cpu()


def split_every_tenth(samples: int) -> tuple[Tensor, Tensor]:
    """(calibration, scored): the numbers 0, 10, 20, … and all the others below `samples`."""
    numbers = torch.arange(samples)
    return numbers[::10], numbers[numbers % 10 != 0]


def top1(logits: Tensor, labels: Tensor) -> float:
    """Percentage of rows of `logits` [n, classes] whose largest entry is the class in `labels` [n]."""
    return 100.0 * (logits.argmax(dim=-1) == labels).double().mean().item()


def spearman(predictions: Tensor, targets: Tensor) -> float:
    """Rank correlation of two [n] tensors × 100; tied values share their average rank.

    A constant has no ranks to compare, which scores 0: a network that answers the same to everything knows nothing.
    """
    a, b = _centred_ranks(predictions), _centred_ranks(targets)
    norm = np.sqrt((a @ a) * (b @ b))
    return float(100 * (a @ b) / norm) if norm > 0 else 0.0


def _centred_ranks(x: Tensor) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(x.numpy(), return_inverse=True, return_counts=True)
    rank = counts.cumsum() - (counts - 1) / 2
    return np.asarray(rank[place] - (len(place) + 1) / 2)
