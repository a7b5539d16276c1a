"""Under torchrun: what the ranks saw, put together, and what the first does for all."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from octavo.numerics.histogram import Histogram

Value = TypeVar("Value")

PATIENCE = timedelta(days=7)  # ranks wait for a whole search, not for a gradient


def is_first() -> bool:
    """Whether this process is rank 0, or alone."""
    return not _several() or dist.get_rank() == 0


def by_first(work: Callable[[], Value]) -> Value:
    """What `work` returns on rank 0, on every rank; the others wait. What it raises is raised everywhere.

    work  its value is pickled for the other ranks
    """
    if not _several():
        return work()
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome = [work(), None]
        except BaseException as error:
            dist.broadcast_object_list([None, error], group=group)
            raise
    dist.broadcast_object_list(outcome, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    value: Value = outcome[0]
    return value


def merged_over_ranks(
    histograms: Mapping[str, Histogram], batches: int, error: Exception | None
) -> tuple[dict[str, Histogram], int]:
    """The histograms and the number of batches of all ranks together, on every rank; alone, as they are.

    error   why this rank has none to give; it is raised on every rank
    """
    if not _several():
        if error is not None:
            raise error
        return dict(histograms), batches
    own = {name: histogram.state() for name, histogram in histograms.items()}
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (own, batches, error))
    for _, _, found in gathered:
        if found is not None:
            raise found
    merged = {name: Histogram() for name in histograms}
    for states, _, _ in gathered:
        for name, state in states.items():
            merged[name] = merged[name].merge(Histogram.from_state(state))
    return merged, sum(number for _, number, _ in gathered)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
