"""Quantization-aware training: a short fine-tuning in which weights get used to the rounding (Wu et al. 2020, §5.2).

    finetune(graph, params, train=loader, loss=…, original_epochs=…, original_lr=…) ─▶ Trained(graph, params)

    which is    module = trainable(graph, params);  fit(module, train=loader, …);  trained(graph, params, module)

The schedule is the paper's: a tenth of the original epochs, from a hundredth of the original learning rate down to a
hundredth of that along a cosine; ranges stay where calibration put them. Accelerate runs the loop, on one process or
several, in the precision it is told. Every epoch is on disk before the next starts.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from octavo.arguments import checked, made_folder
from octavo.errors import QuantizationError
from octavo.network.calibrate import Params
from octavo.network.graph import Graph, network_inputs
from octavo.network.origin import TRAINING, Origin, origin_of
from octavo.network.ranks import by_first, is_first
from octavo.network.simulate import simulate
from octavo.recovery.checkpoint import Checkpoint, Epoch, History, best_epoch
from octavo.recovery.objective import Distance, Loss, Objective, check_loss, distance, one_number
from octavo.recovery.schedule import Schedule, paper_schedule
from octavo.recovery.trainable import Ranges, Weights, trainable, trained

MakeOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]  # (parameters, learning rate)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What training made of a network."""

    graph: Graph
    params: Params
    history: History


def sgd(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum 0.9, which the paper fine-tunes vision networks with."""
    return torch.optim.SGD(parameters, rate, momentum=0.9)


@checked
def fit(
    module: nn.Module,
    *,
    train: Iterable[Any],
    loss: Loss | None = None,
    original_epochs: float | None = None,
    original_lr: float | None = None,
    schedule: Schedule | None = None,
    optimizer: MakeOptimizer = sgd,
    distill: Distance | None = None,
    evaluate: Callable[[Callable[..., Any]], float] | None = None,
    higher_is_better: bool = True,
    accelerator: Any = None,
    compile: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train what `trainable` returned, in place, and leave it as it was after its best epoch.

    train        batches in the form of `capture`'s example, with whatever `loss` reads behind the inputs; read once an
                 epoch. Each process takes its share: a DataLoader through Accelerate, other lists batch by batch
    loss         (outputs, batch) → scalar; None trains towards the float network alone, by `distill`
    schedule     what is not the paper's; else `original_epochs` and `original_lr` of the float training give it
    distill      (outputs, the float network's outputs) → scalar, added to `loss`; `distance` or `divergence`
    evaluate     (network) → number, after every epoch, on the simulation; without it the epoch of least loss is kept
    accelerator  accelerate.Accelerator for devices, processes and mixed precision; by default for the graph's device
    compile      train code that torch.compile made
    seed         of the order of a shuffled loader, together with the epoch
    out          folder for checkpoints; the same folder resumes after the last whole epoch. None keeps nothing
    raises       QuantizationError for another module, no batches, no schedule, a loss that is NaN or infinite, and if
                 accelerate is not installed
    """
    origin = _origin(module)
    graph, params = origin.graph, origin.params
    assert params is not None
    schedule = schedule or _derived(original_epochs, original_lr)
    _batches_of(train)
    if loss is None and distill is None:
        distill = distance
    if accelerator is not None and not hasattr(accelerator, "prepare"):
        raise QuantizationError(
            asked=f"train with accelerator={accelerator!r}",
            seen="it cannot prepare a module for training",
            remedy="pass an accelerate.Accelerator, or leave it out",
        )
    accelerator = accelerator or _accelerate().Accelerator(cpu=_device(graph).type == "cpu")
    loader = accelerator.prepare(train) if isinstance(train, DataLoader) else _Share(train, accelerator)
    objective, steps = Objective(graph, loss, distill), len(loader)

    def metric() -> float | None:
        if evaluate is None:
            return None
        return by_first(lambda: one_number(evaluate(simulate(*trained(graph, params, module)))))

    with (
        _prepared(module, optimizer, schedule.learning_rate, accelerator) as (ready, maker),
        _folder(out) as folder,
        _bar(schedule.epochs * steps, progress and is_first()) as advance,
    ):
        run = torch.compile(ready) if compile else ready
        checkpoint = Checkpoint(folder, accelerator)
        history = checkpoint.load()
        if not history:
            history = [Epoch(number=0, loss=None, metric=metric())]
            checkpoint.save(history, best=True)
        advance(history[-1].number * steps, "training")
        for number in range(history[-1].number + 1, schedule.epochs + 1):
            torch.manual_seed(seed + number)
            total = 0.0
            for index, batch in enumerate(loader):
                for group in maker.param_groups:
                    group["lr"] = schedule.rate((number - 1) * steps + index, schedule.epochs * steps)
                total += _step(run, objective, batch, maker, accelerator, number, index)
                advance(1, f"epoch {number} of {schedule.epochs}, loss {total / (index + 1):.4g}")
            mean = accelerator.reduce(torch.tensor(total / steps, device=accelerator.device), "mean").item()
            history.append(Epoch(number=number, loss=mean, metric=metric()))
            checkpoint.save(history, best=best_epoch(history, higher_is_better) == number)
        checkpoint.load_best()
    return History(epochs=tuple(history), best=best_epoch(history, higher_is_better))


@checked
def finetune(
    graph: Graph, params: Params, *, weights: Weights = "follow", ranges: Ranges = "fixed", **options: Any
) -> Trained:
    """Train `graph` with the rounding of `params` in it; both stay as they are.

    weights, ranges  see `trainable`
    options          see `fit`
    """
    module = trainable(graph, params, weights=weights, ranges=ranges)
    history = fit(module, **options)
    graph, params = trained(graph, params, module)
    return Trained(graph=graph, params=params, history=history)


def _step(run: Callable[..., Any], objective: Objective, batch: Any, maker: Any, accelerator: Any, *at: int) -> float:
    """One batch forward, back, and one step of the optimizer; its loss."""
    args, kwargs = network_inputs(objective.graph, batch)
    with accelerator.autocast():
        value = objective(run(*args, **kwargs), batch, args, kwargs)
    check_loss(value, batch=at[1], epoch=at[0])
    accelerator.backward(value)
    maker.step()
    maker.zero_grad()
    return float(value.item())


class _Share:
    """The batches of this process among several, on its device: every one of them takes equally many."""

    def __init__(self, batches: Iterable[Any], accelerator: Any) -> None:
        self.batches, self.accelerator = batches, accelerator

    def __len__(self) -> int:
        return max(1, _batches_of(self.batches) // int(self.accelerator.num_processes))

    def __iter__(self) -> Iterator[Any]:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        for batch in itertools.islice(self.batches, rank, len(self) * ranks, ranks):
            yield tree_map(self._moved, batch)

    def _moved(self, leaf: Any) -> Any:
        movable = isinstance(leaf, Tensor) and not leaf.is_meta  # the network's inputs are checked where it is run
        return leaf.to(self.accelerator.device) if movable else leaf


def _origin(module: nn.Module) -> Origin:
    origin = origin_of(module)
    if origin is None or origin.engine != TRAINING:
        raise QuantizationError(
            asked="train with rounding",
            seen="the module has no rounding to train with"
            if origin is None
            else f"it was made for the {origin.engine}",
            remedy="train what octavo.trainable(graph, params) returns",
        )
    return origin


def _derived(original_epochs: float | None, original_lr: float | None) -> Schedule:
    if original_epochs is None or original_lr is None:
        raise QuantizationError(
            asked="train with rounding",
            seen="there is no schedule",
            remedy="give original_epochs and original_lr of the float training, or schedule=Schedule(…)",
        )
    return paper_schedule(original_epochs, original_lr)


def _batches_of(train: Iterable[Any]) -> int:
    if not isinstance(train, Sized) or len(train) == 0:
        raise QuantizationError(
            asked="train with rounding",
            seen="the training data is empty"
            if isinstance(train, Sized)
            else "the training data does not know its length",
            remedy="give a list of batches or a DataLoader with at least one of them",
        )
    return len(train)


def _accelerate() -> ModuleType:
    try:
        import accelerate  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise QuantizationError(
            asked="train with rounding", seen="accelerate is not installed", remedy='pip install "octavo[train]"'
        ) from error
    return cast(ModuleType, accelerate)


def _device(graph: Graph) -> torch.device:
    return next((p.device for p in graph.module.parameters()), torch.device("cpu"))


@contextmanager
def _prepared(module: nn.Module, optimizer: MakeOptimizer, rate: float, accelerator: Any) -> Iterator[tuple[Any, Any]]:
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


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is None:
        shared = by_first(lambda: tempfile.mkdtemp(prefix="octavo-"))
        try:
            yield Path(shared)
        finally:
            shutil.rmtree(shared, ignore_errors=True)
    else:
        yield made_folder(out)


@contextmanager
def _bar(steps: int, shown: bool) -> Iterator[Callable[[int, str], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("training", total=steps)
        yield lambda count, text: bar.update(task, advance=count, description=text)
