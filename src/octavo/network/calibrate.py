"""Calibration: run the data once, keep histograms, and choose scales from them by any method, at any time (§3.4)."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from octavo.arguments import checked
from octavo.errors import QuantizationError, naming
from octavo.network.bias import with_room_for_biases
from octavo.network.channels import ranges_of_channels
from octavo.network.edit import attribute
from octavo.network.export import without_autocast
from octavo.network.graph import Graph, network_inputs
from octavo.network.join import joined
from octavo.network.lobe import WHY, with_lobe
from octavo.network.marker import Rounded, sources
from octavo.network.plan import Plan, Quantizer
from octavo.network.quantized import Quantized
from octavo.network.ranks import by_first, merged_over_ranks, together
from octavo.network.samples import Call, Samples
from octavo.numerics.affine import QParams, params_from_range, params_from_tensor, params_of_rows
from octavo.numerics.channels import ChannelHistogram
from octavo.numerics.histogram import Histogram
from octavo.numerics.ranges import Range, RangeMethod, max_range, method
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True, eq=False)  # equal to any mapping with the same histograms
class Stats(Mapping[str, Histogram | ChannelHistogram]):
    """What calibration saw: {quantizer: histogram, or those of its channels}, and a few of the inputs themselves.

    samples  the arguments of a few calls, some samples together: see `octavo.network.samples`
    """

    histograms: Mapping[str, Histogram | ChannelHistogram]
    samples: tuple[Call, ...] = ()

    def __getitem__(self, name: str) -> Histogram | ChannelHistogram:
        return self.histograms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.histograms)

    def __len__(self) -> int:
        return len(self.histograms)

    def __reduce__(self) -> tuple[Any, ...]:
        """With a plain dict: read-only views cannot be pickled."""
        return Stats, (dict(self.histograms), self.samples)


@checked
def observe(plan: Plan, batches: Iterable[Any], *, progress: bool = False) -> Stats:
    """{quantizer: histogram of every value it saw}, and a few inputs: one pass over `batches` serves every method.

    Under torch.distributed every rank observes its own share, and all return the histograms of the whole: bit for bit
    those of one process, because counts are integers.

    batches   inputs in the form of `capture`'s example; what the network does not read (labels) is ignored
    progress  show a progress bar with the time left
    raises    QuantizationError for no batches, and for NaN or infinity, naming the site and the batch; on every rank
    """
    histograms = {
        quantizer.name: _nothing_seen(quantizer.scheme) for quantizer in plan.quantizers if not quantizer.constant
    }

    def count(name: str, x: Tensor) -> Tensor:
        if name in histograms:
            histograms[name].update(x, site=name)
        return x

    from rich.progress import track  # noqa: PLC0415 (rich is slow to import)

    watched, samples = Rounded(plan.marked.module, count), Samples(plan.graph)
    total = len(batches) if isinstance(batches, Sized) else None
    seen = 0
    with together():
        with torch.inference_mode(), without_autocast():
            for batch in track(batches, "calibrating", total=total, disable=not progress):
                _run(plan.graph, watched, batch, seen, samples)
                seen += 1
        histograms, seen = merged_over_ranks(histograms, seen)
        if seen == 0:
            raise QuantizationError(
                asked="calibrate",
                seen="the calibration data is empty",
                remedy="give at least one batch (an iterator that was used up gives none: pass a list or a loader)",
            )
        return Stats(MappingProxyType(histograms), by_first(lambda: tuple(samples.calls)))


def _nothing_seen(scheme: Scheme) -> Histogram | ChannelHistogram:
    """To count in. Rows need no statistics, but NaN and infinity are found here."""
    return Histogram() if scheme.axis is None or scheme.rows else ChannelHistogram(scheme.axis)


def _run(graph: Graph, watched: Rounded, batch: Any, number: int, samples: Samples) -> None:
    try:
        args, kwargs = network_inputs(graph, batch)
        samples.show(args, kwargs)
        args, kwargs = tree_map(
            lambda leaf: leaf.to(graph.device) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
        )
        watched(*args, **kwargs)
    except QuantizationError as error:
        raise error.but(seen=f"in batch {number} (counted from 0) {error.seen}") from error


@checked
def choose_params(
    plan: Plan, stats: Mapping[str, Histogram | ChannelHistogram], by: RangeMethod | str = max_range
) -> Quantized:
    """Scales for every quantizer: activations by the method `by`, weights by their exact maximum (§3.4, §4.1).

    The plan of what comes back has fewer quantizers, where a tensor that is read alone and through a concat can have
    one scale for both.

    The range of a GELU and its like ends earlier where that loses less than its part below zero (§5.3, GELU10; see
    `octavo.network.lobe`): `Quantized.notes` says where.

    by      a function of a histogram and a scheme, or the name of one: "max", "entropy", "99.99", "mse"
    raises  QuantizationError if `stats` has no histogram for a quantizer or an empty one, and for a weight or range
            that its scheme cannot represent
    """
    choose = method(by) if isinstance(by, str) else by
    rounded, nodes = sources(plan.marked), {node.name: node for node in plan.graph.module.graph.nodes}
    read = {site.name: rounded[quantizer.name] for quantizer in plan.quantizers for site in quantizer.sites}
    notes: dict[str, str] = {}

    def of_one(quantizer: Quantizer, histogram: Histogram) -> Range:
        """The range of a tensor, or of one of its channels."""
        scheme = replace(quantizer.scheme, axis=None)
        low, high = choose(histogram, scheme)
        found = with_lobe([one for site in quantizer.sites for one in read[site.name]], histogram, scheme, (low, high))
        if found != (low, high):
            notes.setdefault(quantizer.name, f"{quantizer.name}: range ends at {found[1]:.3g}, not {high:.3g}: {WHY}")
        return found

    def ranges(quantizer: Quantizer, seen: Histogram | ChannelHistogram) -> QParams:
        if isinstance(seen, ChannelHistogram):
            return params_from_range(*ranges_of_channels(quantizer, nodes, seen, of_one), quantizer.scheme)
        return params_from_range(*of_one(quantizer, seen), quantizer.scheme)

    values = {}
    for quantizer in plan.quantizers:
        with naming(quantizer.name):
            if quantizer.constant:
                weight = attribute(plan.graph.module, rounded[quantizer.name][0])
                values[quantizer.name] = params_from_tensor(weight.detach(), quantizer.scheme)
            elif quantizer.scheme.rows:
                values[quantizer.name] = params_of_rows(quantizer.scheme)
            else:
                values[quantizer.name] = ranges(quantizer, _seen(stats, quantizer.name))
    plan, values = joined(plan, values, stats, ranges)
    values = with_room_for_biases(plan, values)
    return Quantized(
        plan=plan,
        values=MappingProxyType(values),
        method=getattr(choose, "__name__", str(choose)),
        notes=tuple(note for name, note in notes.items() if name in values),
        samples=stats.samples if isinstance(stats, Stats) else (),
        by=None if getattr(choose, "__module__", "") == method.__module__ else choose,
    )


def method_of(net: Quantized) -> RangeMethod | str:
    """What chose the scales of `net`, to choose others by it.

    raises  QuantizationError for a function of the user's own that was left behind when they were saved or pickled
    """
    if net.by is not None:
        return net.by
    try:
        return method(net.method)
    except QuantizationError as error:
        raise QuantizationError(
            asked="choose scales again by the method of these parameters",
            seen=f"{net.method!r} is a function of your own, which was not saved with them",
            remedy="choose_params(plan, stats, that function) makes parameters that have it",
        ) from error


def _seen(stats: Mapping[str, Histogram | ChannelHistogram], name: str) -> Histogram | ChannelHistogram:
    histogram = stats.get(name)
    if histogram is None or histogram.count == 0:
        raise QuantizationError(
            asked="choose a range",
            seen="the statistics hold no value of this site",
            remedy="observe with this plan, on data that reaches this part of the network",
            site=name,
        )
    return histogram
