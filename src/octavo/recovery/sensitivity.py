"""Which layers lose the most: quantize one at a time, all else in float (Wu et al. 2020, §5.1).

`exact` measures it, and recomputes for each layer only what follows it. `fast` estimates all layers at once from one
forward and one backward pass a batch.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from octavo.arguments import checked
from octavo.errors import QuantizationError, naming
from octavo.measure import real, sqnr_db
from octavo.network.graph import Graph
from octavo.network.quantized import Quantized
from octavo.recovery.stepwise import (
    PlannedNode,
    Values,
    call,
    last_readers,
    operations,
    outputs,
    rerun,
    rounded_call,
    sample_axes,
    samples,
    values_of,
)

OutputLoss = Callable[[Any, Any, Any], float]  # (the float network's output, output, batch) → higher is worse


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What quantizing one layer loses, and the time at stake.

    loss        how far the outputs move when only this layer is quantized; higher is more sensitive
    latency_ms  measured time of the layer's operation in float in eager PyTorch, the median over batches
    """

    layer: str
    loss: float
    latency_ms: float


def output_noise(reference: Any, output: Any, batch: Any) -> float:
    """Σ (reference − output)² / Σ reference² over all outputs: 1 / SQNR. Needs no labels; 0 if nothing moved."""
    return float(10.0 ** (-sqnr_db(reference, output) / 10))


@checked
def exact(
    net: Quantized, batches: Iterable[Any], loss: OutputLoss = output_noise, *, progress: bool = False
) -> tuple[Sensitivity, ...]:
    """The loss of every layer of `params.plan` when it alone is quantized, the most sensitive first.

    batches   in the form of `capture`'s example, or with labels that only `loss` reads. All values of one batch are in
              memory at a time
    loss      of a batch; the mean over batches is weighted by their samples
    progress  show a progress bar with the time left
    raises    QuantizationError for no batches, and for a loss that is NaN, naming the layer
    """
    from rich.progress import Progress  # noqa: PLC0415 (rich is slow to import)

    layers, last_reader, tally = operations(net), last_readers(net.graph), _Tally()
    total = len(batches) * len(layers) if isinstance(batches, Sized) else None
    with torch.no_grad(), Progress(disable=not progress) as bar:
        task = bar.add_task("sensitivity", total=total)
        for batch in batches:
            values = values_of(net.graph, batch)
            reference = outputs(net.graph, values)
            for operation in layers:
                result, seconds = rounded_call(operation, values)
                output = outputs(net.graph, rerun(operation.node, result, values, last_reader))
                tally.add(operation.layer, _loss_of(operation.layer, loss, reference, output, batch), seconds)
                bar.advance(task)
            tally.samples.append(samples(net.graph, batch))
    return tally.sensitivities()


@checked
def fast(net: Quantized, batches: Iterable[Any], *, probes: int = 1, seed: int = 0) -> tuple[Sensitivity, ...]:
    """An estimate of `exact` with `output_noise`, of all layers at once; the most sensitive first.

    Let δ be what rounding its inputs changes in the layer's own output and J the derivative of the network's outputs
    to it: the outputs move by J·δ, to first order. For v ~ N(0, 1) on the outputs, vᵀJ is the gradient that a backward
    pass brings to the layer, and

        E[((vᵀJ)·δ)²] = |J·δ|²          summed over samples, then divided by Σ reference²

    batches  as in `exact`. Where a layer's output has no axis of the size of the batch, its samples are summed before
             the square: the same expectation, but the relative error of one sample
    probes   backward passes a batch, each with its own v; the relative error falls as √(2 / (samples · probes))
    returns  loss 0 for a layer that no gradient reaches
    raises   QuantizationError for no batches, and for a loss that is NaN, naming the layer
    """
    layers = {operation.node: operation for operation in operations(net)}
    source, tally = torch.Generator().manual_seed(seed), _Tally()
    for batch in batches:
        errors, leaves = _run_with_errors(net.graph, layers, batch)
        signal = sum(leaf.detach().double().square().sum().item() for leaf in leaves)
        noise = dict.fromkeys(errors, 0.0)
        for probe in range(probes):
            _backward(leaves, source, last=probe == probes - 1)
            for layer, error in errors.items():
                noise[layer] += error.take() / probes
        for layer, error in errors.items():
            tally.add(layer, _not_nan(layer, _ratio(noise[layer], signal)), error.seconds)
        tally.samples.append(samples(net.graph, batch))
    return tally.sensitivities()


@checked
def rank_correlation(a: Sequence[Sensitivity], b: Sequence[Sensitivity]) -> float:
    """Spearman's ρ between the losses of the same layers, in [−1, 1]; equal losses share their mean rank.

    returns  0 if all losses of one are equal: they rank nothing
    raises   QuantizationError if the layers differ, or there are fewer than two
    """
    x, y = ({row.layer: row.loss for row in rows} for rows in (a, b))
    if x.keys() != y.keys() or len(x) < 2:
        raise QuantizationError(
            asked="correlate two rankings of layers",
            seen=f"one ranks {len(x)} layers, the other {len(y)}, and {len(x.keys() & y.keys())} are in both",
            remedy="compare sensitivities of one plan that has at least two layers",
        )
    first, second = (_centred_ranks(torch.tensor([losses[layer] for layer in x])) for losses in (x, y))
    norm = float(first.norm() * second.norm())
    return float(first @ second) / norm if norm > 0 else 0.0


def _centred_ranks(x: Tensor) -> Tensor:
    """[N] float64: ranks of x [N] less their mean."""
    below, above = ((x[None, :] < x[:, None]), (x[None, :] > x[:, None]))
    return (below.sum(dim=1) - above.sum(dim=1)).double() / 2


@dataclass(frozen=True, kw_only=True)
class _Tally:
    """Losses and times of every layer, one entry a batch; layers in data-flow order."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    samples: list[int] = field(default_factory=list)

    def add(self, layer: str, loss: float, seconds: float) -> None:
        self.losses.setdefault(layer, []).append(loss)
        self.seconds.setdefault(layer, []).append(seconds)

    def sensitivities(self) -> tuple[Sensitivity, ...]:
        if not self.samples:
            raise QuantizationError(
                asked="measure the sensitivity of every layer",
                seen="there are no batches",
                remedy="give at least one batch (an iterator that was used up gives none: pass a list or a loader)",
            )
        rows = [
            Sensitivity(
                layer=layer,
                loss=statistics.fmean(losses, self.samples),
                latency_ms=1000 * statistics.median(self.seconds[layer]),
            )
            for layer, losses in self.losses.items()
        ]
        return tuple(sorted(rows, key=lambda row: -row.loss))


class _LocalError:
    """What rounding changes in a layer's own outputs, and its products with the gradients of a backward pass."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._products: list[Tensor] = []

    def watch(self, output: Tensor, error: Tensor, axis: int | None) -> None:
        """Let every backward pass take gradient · error, for each entry along `axis` or for all together."""

        def multiply(gradient: Tensor) -> None:
            pair = [x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1) for x in (gradient, error)]
            self._products.append(torch.einsum("nk,nk->n", *pair).double())

        output.requires_grad_().register_hook(multiply)  # type: ignore[no-untyped-call]

    def take(self) -> float:
        """Σ over samples of (gradient · error)² in the last backward pass; 0 if it did not come here."""
        products, self._products = self._products, []
        return float(torch.stack(products).sum(dim=0).square().sum()) if products else 0.0


def _run_with_errors(
    graph: Graph, layers: Mapping[Node, PlannedNode], batch: Any
) -> tuple[dict[str, _LocalError], list[Tensor]]:
    """({layer: its error}, the floating-point outputs of the float network, through which gradients can go back)."""
    errors: dict[str, _LocalError] = {}

    def watched(node: Node, values: Values) -> Any:
        result = call(node, values)
        if node in layers:
            with torch.no_grad():
                rounded, seconds = rounded_call(layers[node], values)
            errors[layers[node].layer] = error = _LocalError(seconds)
            axes = sample_axes(graph, node)
            for true, false, axis in zip(tree_leaves(result), tree_leaves(rounded), axes, strict=True):
                error.watch(true, false.sub_(true.detach()), None if None in axes else axis)
        return result

    with torch.enable_grad():
        leaves = tree_leaves(outputs(graph, values_of(graph, batch, watched)))
    return errors, [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _backward(leaves: Sequence[Tensor], source: torch.Generator, *, last: bool) -> None:
    """Send a random normal vector back from the outputs."""
    reached = [leaf for leaf in leaves if leaf.requires_grad]
    probes = [torch.randn(leaf.shape, generator=source, dtype=leaf.dtype).to(leaf.device) for leaf in reached]
    if reached:
        torch.autograd.backward(reached, probes, retain_graph=not last)


def _loss_of(layer: str, loss: OutputLoss, *arguments: Any) -> float:
    with naming(layer):
        return _not_nan(layer, loss(*arguments))


def _not_nan(layer: str, loss: float) -> float:
    found = real(loss, "measure what quantizing this layer alone loses, by what loss returned")
    if found.numel() != 1 or math.isnan(found.item()):
        raise QuantizationError(
            asked="measure what quantizing this layer alone loses",
            seen="the loss is NaN" if found.numel() == 1 else f"loss returned {found.numel()} numbers",
            remedy="look for NaN in the inputs, and for a division by zero in the network or the loss",
            site=layer,
        )
    return found.item()


def _ratio(noise: float, signal: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal != 0 else math.inf
