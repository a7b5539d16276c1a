"""How Accelerate runs a training: on which processes and devices, and which batches each of them gets."""

import atexit
import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from octavo.errors import QuantizationError
from octavo.network.ranks import gathered, in_step, ranks, together

Value = TypeVar("Value")
MakeOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]  # (parameters, learning rate)


@contextmanager
def accelerated(given: Any, device: torch.device) -> Iterator[Any]:
    """The Accelerator `given`, or one for `device`; a block that all of its processes leave together.

    If it starts torch.distributed, that goes on until the process exits: torchrun does not let one start it again.
    raises  QuantizationError if Accelerate is not installed, or `given` waits for ranks that do something else
    """
    started_before = _started()
    accelerator = given or _accelerate().Accelerator(cpu=device.type == "cpu")
    if accelerator.num_processes > ranks():
        raise QuantizationError(
            asked=f"train on {accelerator.num_processes} processes",
            seen="this is rank 0 of a search, and the others wait for what it finds",
            remedy="leave out accelerator: each training of a search runs on one process",
        )
    if _started() and not started_before:
        atexit.register(_end)
    with together():
        yield accelerator


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def _end() -> None:
    if _started():
        dist.destroy_process_group()


@contextmanager
def prepared(module: nn.Module, optimizer: MakeOptimizer, rate: float, accelerator: Any) -> Iterator[tuple[Any, Any]]:
    """The module and its optimizer as Accelerate runs them; it leaves nothing of its own on the module.

    In mixed precision its `forward` would go on computing in 16 bits, and no longer be the simulation.
    """
    own = set(vars(module))
    made = optimizer([p for p in module.parameters() if p.requires_grad], rate)
    if not isinstance(made, torch.optim.Optimizer):
        raise QuantizationError(
            asked="train with rounding",
            seen=f"optimizer returned a {type(made).__name__}",
            remedy="let optimizer(parameters, rate) return a torch.optim.Optimizer",
        )
    try:
        yield accelerator.prepare(module, made)
    finally:
        for name in set(vars(module)) - own:
            delattr(module, name)


class Feed:
    """The batches of this process among several, on its device: every one of them takes equally many, `len`, an epoch.

    raises  QuantizationError for data without batches or length, and in an epoch that gives fewer than that
    """

    def __init__(self, train: Iterable[Any], accelerator: Any) -> None:
        counts = gathered(batches_of(train))
        if len(set(counts)) > 1:
            raise QuantizationError(
                asked=f"train on {len(counts)} ranks",
                seen=f"their data have {', '.join(map(str, counts))} batches",
                remedy="give every rank the same batches; each takes its share of them",
            )
        shared = isinstance(train, DataLoader)
        self._batches = accelerator.prepare(train) if shared else _Share(train, accelerator)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        source = iter(self._batches)
        for number in range(len(self)):
            yield everywhere(lambda number=number: self._next(source, number))  # type: ignore[misc]

    def _next(self, source: Iterator[Any], number: int) -> Any:
        for batch in source:
            return batch
        raise QuantizationError(
            asked="train with rounding",
            seen=f"the training data gave {number} batches in an epoch, and says that it has {len(self)}",
            remedy="give a list of batches or a DataLoader: every epoch reads them again",
        )


def everywhere(work: Callable[[], Value]) -> Value:
    """What `work` returns on this rank, once it has succeeded on all: what follows waits for the others."""
    try:
        value = work()
    except BaseException as error:
        in_step(error)
        raise
    in_step()
    return value


class _Share:
    """Every process's part of a list: batch by batch in turn."""

    def __init__(self, batches: Iterable[Any], accelerator: Any) -> None:
        self.batches, self.accelerator = batches, accelerator

    def __len__(self) -> int:
        return max(1, batches_of(self.batches) // int(self.accelerator.num_processes))

    def __iter__(self) -> Iterator[Any]:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        for batch in itertools.islice(self.batches, rank, len(self) * ranks, ranks):
            yield tree_map(self._moved, batch)

    def _moved(self, leaf: Any) -> Any:
        movable = isinstance(leaf, Tensor) and not leaf.is_meta  # the network's inputs are checked where it is run
        return leaf.to(self.accelerator.device) if movable else leaf


def batches_of(train: Iterable[Any]) -> int:
    """How many there are.

    raises  QuantizationError if there are none, or one cannot know before they are read
    """
    try:
        count = len(train) if isinstance(train, Sized) else None
    except TypeError:  # of a DataLoader of what has no length
        count = None
    if not count:
        raise QuantizationError(
            asked="train with rounding",
            seen="the training data does not know its length" if count is None else "the training data is empty",
            remedy="give a list of batches or a DataLoader with at least one of them",
        )
    return count


def _accelerate() -> Any:
    try:
        import accelerate  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise QuantizationError(
            asked="train with rounding", seen="accelerate is not installed", remedy='pip install "octavo[train]"'
        ) from error
    return accelerate
