"""Every number reported about a network: is it still right, how far off, how large and how fast."""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

from octavo.arguments import checked
from octavo.errors import QuantizationError
from octavo.numerics.decibels import decibels

PAUSE_S = 0.02  # before a turn; the threads of an OpenMP or TBB pool have gone to sleep by then
Metric = Callable[[Tensor, Tensor], float]  # (all predictions, numbers of samples that may repeat) → metric of those


@dataclass(frozen=True, kw_only=True)
class Interval:
    """How much is lost, score(reference) − score(other), and between which bounds it lies with this confidence."""

    drop: float
    low: float
    high: float
    confidence: float
    samples: int


def mean_score(scores: Tensor, index: Tensor) -> float:
    """The mean of per-sample scores [N] over the samples in `index`."""
    return scores[index].double().mean().item()


@checked
def paired_interval(
    reference: Tensor,
    other: Tensor,
    score: Metric = mean_score,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The drop from `reference` to `other` and its paired bootstrap interval (Efron & Tibshirani 1993, §13).

    Both networks are scored on the same resample of the samples, so what makes a sample hard for both cancels.

    reference, other  [N, ...] per-sample scores or predictions of the same N samples
    score             metric of a resample; higher is better; the mean of per-sample scores by default
    returns           equal predictions give [0, 0]: no sample tells the two apart, which bounds nothing beyond these
                      samples; one sample gives [−inf, inf]
    raises            QuantizationError for no samples, different numbers of samples, or a score that is NaN
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise QuantizationError(
            asked=f"find an interval with confidence={confidence} from resamples={resamples}",
            seen="a confidence lies between 0 and 1, and there has to be a resample",
            remedy="leave them as they are by default",
        )
    samples = _same_samples(reference, other)
    drop = _drop(score, reference, other, torch.arange(samples))
    if samples == 1:
        return Interval(drop=drop, low=-math.inf, high=math.inf, confidence=confidence, samples=1)
    source = torch.Generator().manual_seed(seed)
    drops = [
        _drop(score, reference, other, torch.randint(samples, (samples,), generator=source)) for _ in range(resamples)
    ]
    tail = (1 - confidence) / 2
    low, high = torch.tensor(drops, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return Interval(drop=drop, low=low, high=high, confidence=confidence, samples=samples)


def _same_samples(reference: Tensor, other: Tensor) -> int:
    if not reference.ndim or not other.ndim or len(reference) != len(other) or len(reference) == 0:
        raise QuantizationError(
            asked="compare two networks sample by sample",
            seen=f"there are {_samples(reference)} of one and {_samples(other)} of the other",
            remedy="score both on the same samples, at least one",
        )
    return len(reference)


def _samples(scores: Tensor) -> str:
    return f"{len(scores)} samples" if scores.ndim else "no axis of samples"


def _drop(score: Metric, reference: Tensor, other: Tensor, index: Tensor) -> float:
    scores: tuple[Any, Any] = score(reference, index), score(other, index)
    if not all(isinstance(one, Real) and not math.isnan(one) for one in scores):
        raise QuantizationError(
            asked="compare two networks sample by sample",
            seen=f"the score of one of them is NaN, or no number: {scores[0]!r} and {scores[1]!r}",
            remedy="look for NaN in its predictions, and let score return a float for all samples",
        )
    return float(scores[0] - scores[1])


@checked
def sqnr_db(reference: Any, other: Any) -> float:
    """Signal to quantization noise in decibels, 10·log₁₀(Σ reference² / Σ (reference − other)²), over all outputs.

    reference, other  tensors, or tuples, lists and dicts of tensors, of the same structure and shapes
    returns           inf for identical outputs (also if all are zero), −inf for an error where the signal is zero
    raises            QuantizationError for outputs of different structure or shape, empty ones, and NaN or infinity
    """
    signal = noise = 0.0
    for want, have in leaf_pairs(reference, other):
        signal += want.square().sum().item()
        noise += (want - have).square().sum().item()
    if not math.isfinite(signal + noise):
        raise QuantizationError(
            asked="measure the quantization noise",
            seen="an output holds NaN or infinity",
            remedy="look for a division by zero or an overflow in the network",
        )
    return decibels(signal, noise)


def leaf_pairs(reference: Any, other: Any) -> list[tuple[Tensor, Tensor]]:
    """The outputs of two networks, tensor by tensor, in float64.

    raises  QuantizationError for outputs of different structure or shape, and empty ones
    """
    wanted, found = _leaves(reference), _leaves(other)
    shapes = [[list(leaf.shape) for leaf in leaves] for leaves in (wanted, found)]
    if (
        tree_structure(reference) != tree_structure(other)
        or shapes[0] != shapes[1]
        or not any(map(torch.numel, wanted))
    ):
        raise QuantizationError(
            asked="compare the outputs of two networks",
            seen=f"they have the shapes {shapes[0]} and {shapes[1]}",
            remedy="give the outputs of two networks, of one structure, for the same and not empty input",
        )
    return list(zip(wanted, found, strict=True))


def _leaves(outputs: Any) -> list[Tensor]:
    return [real(leaf, "compare the outputs of two networks") for leaf in tree_leaves(outputs)]


def real(value: Any, asked: str) -> Tensor:
    """`value`, a number or numbers in whatever form, as a tensor in float64 on the CPU.

    raises  QuantizationError for what is no number, or a complex one
    """
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise QuantizationError(
            asked=asked,
            seen=f"a {type(value).__name__} is no number, and no list, array or tensor of numbers",
            remedy="give numbers, or tensors of them",
        ) from error
    if tensor.is_complex() or tensor.is_meta:
        raise QuantizationError(
            asked=asked,
            seen="numbers are complex" if tensor.is_complex() else "a tensor on the meta device holds no values",
            remedy="give real numbers, .abs() of complex ones for example",
        )
    return (tensor.to_dense() if tensor.layout is not torch.strided else tensor).cpu().double()


@checked
def agreement(reference: Tensor, other: Tensor) -> float:
    """Percentage of rows in which the largest entry of [N, ..., classes] stands in the same place.

    raises  QuantizationError for no rows, different shapes, or NaN
    """
    if reference.shape != other.shape or reference.ndim == 0 or reference.numel() == 0:
        raise QuantizationError(
            asked="measure how often two networks agree",
            seen=f"their predictions have shapes {list(reference.shape)} and {list(other.shape)}",
            remedy="give predictions [N, ..., classes] of both for the same samples",
        )
    reference, other = (real(one, "measure how often two networks agree") for one in (reference, other))
    if reference.isnan().any() or other.isnan().any():
        raise QuantizationError(
            asked="measure how often two networks agree",
            seen="a prediction is NaN",
            remedy="look for a division by zero or an overflow in the network",
        )
    return 100.0 * (reference.argmax(dim=-1) == other.argmax(dim=-1)).double().mean().item()


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds a call takes: the median, and between which values eight of ten calls lie."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds: int


class Latencies(dict[str, Latency]):
    """{contestant: Latency}, timed together."""

    def ratio(self, a: str, b: str) -> float:
        """How many times as long as `b` `a` takes, by the medians."""
        return self[a].median_ms / self[b].median_ms


@checked
def latency_ms(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int = 30, warmup: int = 3, seed: int = 0
) -> Latencies:
    """Wall-clock time of each callable, interleaved: every round gives all of them one turn, in random order.

    So a machine that slows down, slows down for all. A turn is a pause, a call that is not timed, and one that is: idle
    threads of the contestant before wait busily for a while, and took half of two cores from the next one.
    A callable that starts work on a GPU must wait for it to finish.

    raises  QuantizationError for no contestants or fewer than one round
    """
    if not contestants or rounds < 1 or warmup < 0:
        raise QuantizationError(
            asked="time callables",
            seen=f"there are {len(contestants)} of them and {rounds} rounds, with warmup={warmup}",
            remedy="give at least one callable and one round",
        )
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order, shuffle = list(contestants), random.Random(seed)
    for number in range(warmup + rounds):
        shuffle.shuffle(order)
        for name in order:
            time.sleep(PAUSE_S)
            contestants[name]()
            elapsed = _seconds(contestants[name])
            if number >= warmup:
                times[name].append(elapsed * 1000)
    return Latencies({name: _latency(values) for name, values in times.items()})


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _latency(times: list[float]) -> Latency:
    p10, median, p90 = torch.tensor(times).double().quantile(torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
    return Latency(median_ms=median, p10_ms=p10, p90_ms=p90, rounds=len(times))


@checked
def size_mb(what: nn.Module | Path) -> float:
    """Megabytes (10⁶ bytes): a module's parameters and buffers, each counted once; a file; or all files in a folder."""
    if isinstance(what, nn.Module):
        return sum(tensor.nbytes for tensor in [*what.parameters(), *what.buffers()]) / 1e6
    if not what.exists():
        raise QuantizationError(
            asked="measure a size", seen="there is nothing at this path", remedy="check it", site=str(what)
        )
    files = [file for file in what.rglob("*") if file.is_file()] if what.is_dir() else [what]
    return sum(file.stat().st_size for file in files) / 1e6
