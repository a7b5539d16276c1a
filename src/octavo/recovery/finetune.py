"""Quantization-aware training: a short fine-tuning in which weights get used to the rounding (Wu et al. 2020, §5.2).

    finetune(graph, params, train=loader, loss=…, original_epochs=…, original_lr=…) ─▶ Trained(graph, params)

    which is    module = trainable(graph, params);  fit(module, train=loader, …);  trained(graph, params, module)

The schedule is the paper's: a tenth of the original epochs, from a hundredth of the original learning rate down to a
hundredth of that along a cosine; ranges stay where calibration put them. Accelerate runs the loop, on one process or
several, in the precision it is told. Every epoch is on disk before the next starts.
"""

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from octavo.errors import QuantizationError
from octavo.network.calibrate import Params
from octavo.network.graph import Graph, network_inputs
from octavo.network.origin import TRAINING, Origin, origin_of
from octavo.network.ranks import by_first, is_first
from octavo.network.simulate import simulate
from octavo.recovery.trainable import Ranges, Weights, trainable, trained

EPOCHS, LEARNING_RATE, LAST = 0.1, 0.01, 0.01  # of the original epochs; of its rate; of the first rate (§5.2)

Loss = Callable[[Any, Any], Tensor]  # (what the network returns, the batch) → a scalar
MakeOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]  # (parameters, learning rate)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train: from `learning_rate` along a cosine to `last` times it."""

    epochs: int
    learning_rate: float
    last: float = LAST

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step number `step` of `steps`."""
        way = step / max(steps - 1, 1)
        return self.learning_rate * (self.last + (1 - self.last) * (1 + math.cos(math.pi * way)) / 2)


def paper_schedule(original_epochs: float, original_lr: float) -> Schedule:
    """What the paper derives from how the float network was trained; at least one epoch."""
    return Schedule(epochs=max(1, round(EPOCHS * original_epochs)), learning_rate=LEARNING_RATE * original_lr)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training data: its mean loss, and the metric after it (None without `evaluate`).

    Number 0 is before any training, and has no loss.
    """

    number: int
    loss: float | None
    metric: float | None


@dataclass(frozen=True, kw_only=True)
class History:
    """Every epoch, and the number of the one that was kept: the best, not the last."""

    epochs: tuple[Epoch, ...]
    best: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What training made of a network."""

    graph: Graph
    params: Params
    history: History


def sgd(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum 0.9, which the paper fine-tunes vision networks with."""
    return torch.optim.SGD(parameters, rate, momentum=0.9)


def distance(outputs: Any, wanted: Any) -> Tensor:
    """How far a network is from its float original: squared error over the original's mean square, tensor by tensor."""
    pairs = [(y, t) for y, t in zip(tree_leaves(outputs), tree_leaves(wanted), strict=True) if t.is_floating_point()]
    return torch.stack(
        [F.mse_loss(y.float(), t.float()) / t.float().square().mean().clamp(min=1e-12) for y, t in pairs]
    ).sum()


def divergence(outputs: Any, wanted: Any) -> Tensor:
    """Kullback-Leibler divergence of logits [N, ..., classes] from those of the float original (Hinton et al. 2015)."""
    y, t = (tree_leaves(x)[0].float().flatten(0, -2).log_softmax(-1) for x in (outputs, wanted))
    return F.kl_div(y, t, log_target=True, reduction="batchmean")


def fit(
    module: nn.Module,
    *,
    train: Iterable[Any],
    loss: Loss | None = None,
    original_epochs: float | None = None,
    original_lr: float | None = None,
    schedule: Schedule | None = None,
    optimizer: MakeOptimizer = sgd,
    distill: Callable[[Any, Any], Tensor] | None = None,
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
    accelerator = accelerator or _accelerate().Accelerator(cpu=_device(graph).type == "cpu")
    ready, maker = accelerator.prepare(
        module, optimizer([p for p in module.parameters() if p.requires_grad], schedule.learning_rate)
    )
    loader = accelerator.prepare(train) if isinstance(train, DataLoader) else _Share(train, accelerator)
    objective, steps = _Objective(graph, loss, distill), len(loader)
    run = torch.compile(ready) if compile else ready

    def metric() -> float | None:
        return (
            None if evaluate is None else by_first(lambda: float(evaluate(simulate(*trained(graph, params, module)))))
        )

    with _folder(out) as folder, _bar(schedule.epochs * steps, progress and is_first()) as advance:
        checkpoint = _Checkpoint(folder, accelerator)
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
            checkpoint.save(history, best=_best(history, higher_is_better) == number)
        checkpoint.load_best()
    return History(epochs=tuple(history), best=_best(history, higher_is_better))


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


def _step(
    run: Callable[..., Any], objective: "_Objective", batch: Any, maker: Any, accelerator: Any, *at: int
) -> float:
    """One batch forward, back, and one step of the optimizer; its loss."""
    args, kwargs = network_inputs(objective.graph, batch)
    with accelerator.autocast():
        value = objective(run(*args, **kwargs), batch, args, kwargs)
    if not torch.isfinite(value):
        raise QuantizationError(
            asked="train with rounding",
            seen=f"the loss of batch {at[1]} in epoch {at[0]} is {value.item()}",
            remedy="lower the learning rate, or look for NaN in the data and for a loss that overflows",
        )
    accelerator.backward(value)
    maker.step()
    maker.zero_grad()
    return float(value.item())


class _Objective:
    """What training makes small: the user's loss, the distance to the float network, or both."""

    def __init__(self, graph: Graph, loss: Loss | None, distill: Callable[[Any, Any], Tensor] | None) -> None:
        self.graph, self.loss, self.distill = graph, loss, distill

    def __call__(self, outputs: Any, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        terms = [] if self.loss is None else [self.loss(outputs, batch)]
        if self.distill is not None:
            with torch.no_grad():
                wanted = self.graph(*args, **kwargs)
            terms.append(self.distill(outputs, wanted))
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


class _Share:
    """The batches of this process among several, on its device: every one of them takes equally many."""

    def __init__(self, batches: Iterable[Any], accelerator: Any) -> None:
        self.batches, self.accelerator = batches, accelerator

    def __len__(self) -> int:
        return max(1, _batches_of(self.batches) // int(self.accelerator.num_processes))

    def __iter__(self) -> Iterator[Any]:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        for batch in itertools.islice(self.batches, rank, len(self) * ranks, ranks):
            yield tree_map(lambda x: x.to(self.accelerator.device) if isinstance(x, Tensor) else x, batch)


class _Checkpoint:
    """Every epoch on disk: `last` to resume from, `best` to return, each replaced whole."""

    def __init__(self, folder: Path, accelerator: Any) -> None:
        self.folder, self.accelerator = folder, accelerator

    def load(self) -> list[Epoch]:
        """The epochs so far; the state of training is as after the last of them."""
        record = self.folder / "last" / "history.json"
        if not record.exists() and (self.folder / "last-old").exists():  # killed between the two renames
            record = self.folder / "last-old" / "history.json"
        if not record.exists():
            return []
        self.accelerator.load_state(str(record.parent))
        return [Epoch(**epoch) for epoch in json.loads(record.read_text())]

    def save(self, history: list[Epoch], *, best: bool) -> None:
        """Keep the state of training, and which epochs led to it."""
        self.accelerator.wait_for_everyone()
        part = self.folder / "part"
        self.accelerator.save_state(str(part))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (part / "history.json").write_text(json.dumps([asdict(epoch) for epoch in history]))
            if best:
                _replace(shutil.copytree(part, self.folder / "part-best", dirs_exist_ok=True), self.folder / "best")
            _replace(part, self.folder / "last")
        self.accelerator.wait_for_everyone()

    def load_best(self) -> None:
        """The state of training is as after the best epoch."""
        self.accelerator.load_state(str(self.folder / "best"))
        self.accelerator.wait_for_everyone()


def _replace(new: Path, old: Path) -> None:
    """Put the folder `new` in the place of `old`; killed in between, one of them is there."""
    aside = old.with_name(old.name + "-old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def _best(history: list[Epoch], higher_is_better: bool) -> int:
    """The number of the best epoch: by the metric, else by the loss; of equals the first."""
    if all(epoch.metric is None for epoch in history):
        return min(history, key=lambda epoch: math.inf if epoch.loss is None else epoch.loss).number
    sign = 1 if higher_is_better else -1
    return max(history, key=lambda epoch: -math.inf if epoch.metric is None else sign * epoch.metric).number


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
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is None:
        shared = by_first(lambda: tempfile.mkdtemp(prefix="octavo-"))
        yield Path(shared)
        shutil.rmtree(shared, ignore_errors=True)
    else:
        Path(out).mkdir(parents=True, exist_ok=True)
        yield Path(out)


@contextmanager
def _bar(steps: int, shown: bool) -> Iterator[Callable[[int, str], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("training", total=steps)
        yield lambda count, text: bar.update(task, advance=count, description=text)
