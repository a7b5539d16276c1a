"""A network with labelled data: what calibrates it, what is kept of every sample, and the metric made of that."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.zoo.task import Batch, Task

Network = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A network and its metric.

    metric        name and unit; more of it is better
    build         the float network, in evaluation mode
    calibration   batches; none of their samples is scored
    dynamic_axes  axes of the inputs that may have any size
    predict       network → [samples, ...] what the metric needs to know of every sample
    score         (predictions, numbers of samples that may repeat) → the metric of those
    resampled     whether the metric of a resample means something and comes fast enough for a bootstrap
    transformer   whether NNCF is told that it is one
    """

    metric: str
    build: Callable[[], nn.Module]
    calibration: Callable[[], list[Batch]]
    dynamic_axes: tuple[int, ...] = (0,)
    predict: Callable[[Network], Tensor]
    score: Callable[[Tensor, Tensor], float]
    resampled: bool = True
    transformer: bool = False

    def of_all(self, predictions: Tensor) -> float:
        """The metric of all samples."""
        return self.score(predictions, torch.arange(len(predictions)))


def of_task(task: Task) -> Scored:
    """A task of the zoo."""
    return Scored(
        metric=task.metric,
        build=task.build,
        calibration=task.calibration,
        dynamic_axes=task.dynamic_axes,
        predict=task.predict,
        score=task.score,
        transformer=task.name == "minilm",
    )


def in_batches(inputs: Callable[[], Tensor], size: int, read: Callable[[Tensor, int], Tensor]) -> Any:
    """A `predict`: the network sees `size` inputs at a time, and `read` makes rows of its output.

    read  (output, number of its first sample) → [samples, ...]
    """
    return partial(_in_batches, inputs, size, read)


def _in_batches(
    inputs: Callable[[], Tensor], size: int, read: Callable[[Tensor, int], Tensor], network: Network
) -> Tensor:
    x = inputs()
    with torch.inference_mode():
        return torch.cat([read(network(x[i : i + size]), i) for i in range(0, len(x), size)])
