"""Quantization-aware training: a short fine-tuning in which weights get used to the rounding (Wu et al. 2020, §5.2).

    finetune(net, train=loader, loss=…, original_epochs=…, original_lr=…) ─▶ Trained(net)

    which is    module = trainable(net);  fit(module, train=loader, …);  trained(net, module)

The schedule is the paper's: a tenth of the original epochs, from a hundredth of the original learning rate down to a
hundredth of that along a cosine; ranges stay where calibration put them. Accelerate runs the loop, on one process or
several, in the precision it is told. Every epoch is on disk before the next starts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.arguments import checked, made_folder
from octavo.errors import QuantizationError
from octavo.files import scratch
from octavo.former import field_of_old
from octavo.machine import versions_of
from octavo.network.digest import digest_of_batch, digest_of_tensors, source_of
from octavo.network.graph import network_inputs
from octavo.network.quantized import TRAINING, Origin, Quantized, origin_of
from octavo.network.ranks import by_first, is_first
from octavo.network.simulate import simulate
from octavo.recovery.accelerated import Feed, MakeOptimizer, accelerated, batches_of, everywhere, prepared
from octavo.recovery.checkpoint import Checkpoint, Epoch, History, best_epoch
from octavo.recovery.objective import Distance, Loss, Objective, check_loss, distance, one_number
from octavo.recovery.schedule import Schedule, paper_schedule
from octavo.recovery.trainable import Ranges, Weights, trainable, trained


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What training made of a network."""

    net: Quantized
    history: History

    graph = field_of_old("Trained.graph", "net.graph")
    params = field_of_old("Trained.params", "net")


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
    net = origin.net
    assert isinstance(net, Quantized)
    schedule = schedule or _derived(original_epochs, original_lr)
    batches_of(train)
    if loss is None and distill is None:
        distill = distance
    if accelerator is not None and not hasattr(accelerator, "prepare"):
        raise QuantizationError(
            asked=f"train with accelerator={accelerator!r}",
            seen="it cannot prepare a module for training",
            remedy="pass an accelerate.Accelerator, or leave it out",
        )
    objective = Objective(net.graph, loss, distill)

    def metric() -> float | None:
        if evaluate is None:
            return None
        return by_first(lambda: one_number(evaluate(simulate(trained(net, module)))))

    with (
        accelerated(accelerator, net.graph.device) as runner,
        prepared(module, optimizer, schedule.learning_rate, runner) as (ready, maker),
        _folder(out) as folder,
    ):
        feed = Feed(train, runner)
        identity = _identity(module, net, train, runner) | {
            "settings": repr((schedule, seed, compile, higher_is_better)),
            "functions": digest_of_batch([source_of(one) for one in (loss, distill, optimizer, evaluate)]),
        }
        run = torch.compile(ready) if compile else ready
        checkpoint = Checkpoint(folder, runner, identity)
        with _bar(schedule.epochs * len(feed), progress and is_first()) as advance:
            history = checkpoint.load()
            if not history:
                history = [Epoch(number=0, loss=None, metric=metric())]
                checkpoint.save(history, best=True)
            advance(history[-1].number * len(feed), "training")
            for number in range(history[-1].number + 1, schedule.epochs + 1):
                torch.manual_seed(seed + number)
                mean = _epoch(number, run, objective, feed, maker, runner, schedule, advance)
                history.append(Epoch(number=number, loss=mean, metric=metric()))
                checkpoint.save(history, best=best_epoch(history, higher_is_better) == number)
        checkpoint.load_best()
    return History(epochs=tuple(history), best=best_epoch(history, higher_is_better))


@checked
def finetune(net: Quantized, *, weights: Weights = "follow", ranges: Ranges = "fixed", **options: Any) -> Trained:
    """Train the network with its rounding in it ("quantization-aware training", §5.2); `net` stays as it is.

    weights, ranges  see `trainable`
    options          see `fit`
    """
    module = trainable(net, weights=weights, ranges=ranges)
    history = fit(module, **options)
    return Trained(net=trained(net, module), history=history)


def _epoch(
    number: int,
    run: Callable[..., Any],
    objective: Objective,
    feed: Feed,
    maker: Any,
    accelerator: Any,
    schedule: Schedule,
    advance: Callable[[int, str], None],
) -> float:
    """One pass over the data: forward, back, and one step of the optimizer for every batch; the mean loss."""
    total, steps = 0.0, len(feed)
    for index, batch in enumerate(feed):
        for group in maker.param_groups:
            group["lr"] = schedule.rate((number - 1) * steps + index, schedule.epochs * steps)
        value = everywhere(lambda batch=batch, index=index: _loss(run, objective, batch, accelerator, number, index))  # type: ignore[misc]
        accelerator.backward(value)
        maker.step()
        maker.zero_grad()
        total += float(value.item())
        advance(1, f"epoch {number} of {schedule.epochs}, loss {total / (index + 1):.4g}")
    return float(accelerator.reduce(torch.tensor(total / steps, device=accelerator.device), "mean").item())


def _loss(run: Callable[..., Any], objective: Objective, batch: Any, accelerator: Any, *at: int) -> Tensor:
    """Of one batch."""
    args, kwargs = network_inputs(objective.graph, batch)
    with accelerator.autocast():
        value = objective(run(*args, **kwargs), batch, args, kwargs)
    check_loss(value, batch=at[1], epoch=at[0])
    return value


def _identity(module: nn.Module, net: Quantized, train: Iterable[Any], accelerator: Any) -> dict[str, str]:
    """What tells one training from another, beside its settings: no checkpoint of another is gone on from."""
    scales = [[name, one.scale, one.zero_point] for name, one in net.values.items()]
    first = network_inputs(net.graph, train[0]) if isinstance(train, Sequence) else None
    return {
        "network": digest_of_batch([str(module), digest_of_tensors(module.state_dict().items())]),
        "parameters": digest_of_batch([repr(net.plan), scales]),
        "data": digest_of_batch([batches_of(train), first]),
        "processes": repr((accelerator.num_processes, accelerator.mixed_precision)),
        "versions": repr(versions_of("octavo", "torch", "accelerate")),
    }


def _origin(module: nn.Module) -> Origin:
    origin = origin_of(module)
    if origin is None or origin.engine != TRAINING:
        raise QuantizationError(
            asked="train with rounding",
            seen="the module has no rounding to train with"
            if origin is None
            else f"it was made for the {origin.engine}",
            remedy="train what octavo.trainable(net) returns",
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


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """`out`, or one of rank 0 that is gone after the block."""
    with ExitStack() as stack:
        found = by_first(lambda: stack.enter_context(scratch()) if out is None else made_folder(out))
        yield found


@contextmanager
def _bar(steps: int, shown: bool) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console  # noqa: PLC0415 (rich is slow to import)
    from rich.progress import (  # noqa: PLC0415 (rich is slow to import)
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("training", total=steps)
        yield lambda count, text: bar.update(task, advance=count, description=text)
