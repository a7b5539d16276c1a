"""Under torchrun: what the ranks saw, put together, and what the first does for all.

All ranks are in step from one exchange to the next. A rank that fails takes part in one more, in place of whichever the
others come to; so they all end there, with an error that names the rank, and none waits for one that is gone. Whatever
a rank does by itself, it does as if there were no others: what it calls cannot wait for them.
"""

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from octavo.errors import QuantizationError, reason
from octavo.numerics.channels import ChannelHistogram, restored
from octavo.numerics.histogram import Histogram

Value = TypeVar("Value")

PATIENCE = timedelta(days=7)  # ranks wait for a whole search, not for a gradient


@dataclass(kw_only=True, eq=False)
class _Block:
    """The outermost `together` of this process: its own process groups, and whether an error has ended it."""

    everyone: dist.ProcessGroup
    alone: dist.ProcessGroup
    over: bool = False


_block: ContextVar[_Block | None] = ContextVar("_block", default=None)


def ranks() -> int:
    """How many processes work together here: 1 without torchrun, and in what one of them does by itself."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is rank 0, or alone."""
    return ranks() == 1 or dist.get_rank() == 0


@contextmanager
def together() -> Iterator[None]:
    """A block that every rank enters and leaves with the others; an error on one of them ends it on all."""
    if ranks() == 1 or _block.get() is not None:
        yield
        return
    with _lost_as_one_error():
        block = _Block(
            everyone=dist.new_group(backend="gloo", timeout=PATIENCE),
            alone=dist.new_group([dist.get_rank()], use_local_synchronization=True),
        )
    token = _block.set(block)
    try:
        yield
        in_step()
    except BaseException as error:
        if not block.over:
            in_step(error)
        raise
    finally:
        _block.reset(token)
        for group in (block.alone, block.everyone):
            dist.destroy_process_group(group)


@contextmanager
def alone() -> Iterator[None]:
    """A block that this rank runs by itself: torch.distributed and Accelerate show it a world of one process."""
    block = _block.get()
    if ranks() == 1 or block is None:
        yield
        return
    world = dist.group.WORLD
    dist.distributed_c10d._update_default_pg(block.alone)
    try:
        with _accelerate_as_new():
            yield
    finally:
        dist.distributed_c10d._update_default_pg(world)


def in_step(error: BaseException | None = None) -> None:
    """Wait for the other ranks; go on if none has failed.

    error   why this rank has
    raises  QuantizationError that names the rank which has; on that rank, what went wrong there
    """
    if ranks() == 1:
        if error is not None:
            raise error
        return
    block = _block.get()
    assert block is not None, "ranks meet inside `together`"
    failed = torch.tensor([int(error is not None)])
    _meet(block, lambda: dist.all_reduce(failed, group=block.everyone))
    if failed.item() == 0:
        return
    told: list[Any] = [None] * ranks()
    _meet(block, lambda: dist.all_gather_object(told, _told(error), group=block.everyone))
    block.over = True
    if error is not None and not isinstance(error, QuantizationError):
        raise error
    raise next(found for found in (told[dist.get_rank()], *told) if found is not None) from error


def by_first(work: Callable[[], Value]) -> Value:
    """What `work` returns on rank 0, on every rank; the others wait. What it raises ends all of them.

    work  runs as if there were no other ranks; its value is pickled for them
    """
    if ranks() == 1:
        return work()
    with together():
        block, sent, error = _block.get(), [b""], None
        assert block is not None
        if is_first():
            try:
                with alone():
                    value = work()
                sent = [_pickled(value)]
            except BaseException as found:  # the others wait for it
                error = found
        in_step(error)
        _meet(block, lambda: dist.broadcast_object_list(sent, group=block.everyone))
        return value if is_first() else pickle.loads(sent[0])


def gathered(value: Value) -> list[Value]:
    """What every rank has, in their order, on every rank."""
    if ranks() == 1:
        return [value]
    with together():
        block = _block.get()
        assert block is not None
        sent = _pickled(value)
        in_step()
        found: list[Any] = [None] * ranks()
        _meet(block, lambda: dist.all_gather_object(found, sent, group=block.everyone))
        return [pickle.loads(one) for one in found]


def merged_over_ranks(
    histograms: Mapping[str, Histogram | ChannelHistogram], batches: int
) -> tuple[dict[str, Histogram | ChannelHistogram], int]:
    """The histograms and the number of batches of all ranks together, on every rank; alone, as they are."""
    if ranks() == 1:
        return dict(histograms), batches
    own = {name: histogram.state() for name, histogram in histograms.items()}
    all_ranks = gathered((own, batches))
    merged: dict[str, Any] = {name: restored(state) for name, state in all_ranks[0][0].items()}
    for states, _ in all_ranks[1:]:
        for name, state in states.items():
            merged[name] = merged[name].merge(restored(state))
    return merged, sum(number for _, number in all_ranks)


def _meet(block: _Block, exchange: Callable[[], object]) -> None:
    """`exchange`, after which no rank waits any more if one of them is gone without a word."""
    try:
        with _lost_as_one_error():
            exchange()
    except QuantizationError:
        block.over = True
        raise


@contextmanager
def _lost_as_one_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and of the store
        raise QuantizationError(
            asked=f"go on with {ranks()} ranks",
            seen=f"rank {dist.get_rank()} lost the connection to another ({reason(error, most=120)})",
            remedy="see what ended that rank; started again with the same folder, a search goes on where it was",
        ) from error


def _told(error: BaseException | None) -> QuantizationError | None:
    """`error` as the other ranks raise it."""
    if error is None:
        return None
    rank = dist.get_rank()
    if isinstance(error, QuantizationError):
        return error.but(seen=f"on rank {rank} {error.seen}")
    return QuantizationError(
        asked=f"go on with {ranks()} ranks",
        seen=f"rank {rank} failed: {type(error).__name__}: {error}",
        remedy="mend what that rank reports in its own traceback",
    )


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:  # of whatever the value is made of
        raise QuantizationError(
            asked=f"send what rank {dist.get_rank()} made to the other {ranks() - 1}",
            seen=f"it cannot be pickled ({type(error).__name__}: {error})",
            remedy="give batches of tensors and plain values",
        ) from error


@contextmanager
def _accelerate_as_new() -> Iterator[None]:
    """What Accelerate knows of this process, and shares among all of its objects, is forgotten, and known again."""
    kept = [(known, dict(known)) for known in _known_to_accelerate()]
    for known, _ in kept:
        known.clear()
    try:
        yield
    finally:
        for known in _known_to_accelerate():  # it may have been imported only now
            known.clear()
        for known, before in kept:
            known.update(before)


def _known_to_accelerate() -> list[dict[str, Any]]:
    module = sys.modules.get("accelerate.state")
    return [] if module is None else [module.PartialState._shared_state, module.AcceleratorState._shared_state]
