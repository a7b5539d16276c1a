"""What `quantize` takes from the calibration data: an example, a few batches, and statistics that the study keeps."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

from torch import nn

from octavo.errors import QuantizationError
from octavo.network.calibrate import Stats, observe
from octavo.network.digest import digest_of_batch, digest_of_graph
from octavo.network.graph import Graph, network_inputs
from octavo.network.plan import Plan
from octavo.network.ranks import by_first, gathered, is_first
from octavo.recovery.stepwise import samples
from octavo.workflow.kept import pack_stats, unpack_stats
from octavo.workflow.overlap import Reading, noted
from octavo.workflow.study import Study, trial_key

REPAIR_SAMPLES = 64  # of the calibration data, that repairs see: they keep every value of all of them at hand


def first_inputs(model: nn.Module, batches: Iterable[Any]) -> Any:
    """The first batch, without the labels behind the inputs that `model.forward` does not take.

    raises  QuantizationError for no batches, and for one whose last items may be inputs or labels: `forward` takes
            them, but does not need them
    """
    batch = _first(batches)
    if not isinstance(batch, tuple | list):
        return batch
    if batch and isinstance(batch[0], Mapping):
        return batch[0]
    required, taken = _takes(model)
    if len(batch) > required and taken > required and len(batch) > 1:
        raise QuantizationError(
            asked="find the inputs of the network in a batch",
            seen=f"it has {len(batch)} items, and {type(model).__name__}.forward needs {required} and takes "
            f"{'any number' if math.isinf(taken) else taken}: what follows may be an input or a label",
            remedy="pass example=, with what the network is to read of a batch: example=batch[0] for the first item "
            "alone, example=batch[:2] for two; what is behind them is left out",
            site="calibration",
        )
    return tuple(batch[:required] if taken == required and required else batch)


def _first(batches: Iterable[Any]) -> Any:
    for batch in batches:
        return batch
    raise _none()


def _none() -> QuantizationError:
    return QuantizationError(
        asked="calibrate",
        seen="the calibration data is empty",
        remedy="give at least one batch, in a list or a loader that can be read more than once",
    )


def _takes(model: nn.Module) -> tuple[int, float]:
    """How many positional inputs `model.forward` needs, and how many it takes."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    needed = sum(one.default is one.empty for one in positional)
    return needed, math.inf if any(one.kind is one.VAR_POSITIONAL for one in parameters) else len(positional)


def for_repairs(graph: Graph, batches: Iterable[Any]) -> tuple[Any, ...]:
    """The first batches, of REPAIR_SAMPLES samples together or a little more.

    raises  QuantizationError for no batches
    """
    found: list[Any] = []
    total = 0
    for batch in batches:
        found.append(batch)
        total += samples(graph, batch)
        if total >= REPAIR_SAMPLES:
            break
    if not found:
        raise _none()
    return tuple(found)


def _facts(graph: Graph, batches: Iterable[Any]) -> tuple[str, int | None]:
    """What tells calibration data from others without reading all of it: its first batch and its length."""
    first = digest_of_batch(network_inputs(graph, _first(batches)))  # without labels of whatever type
    return first, len(batches) if isinstance(batches, Sized) else None


def statistics(
    folder: Path, plan: Plan, batches: Iterable[Any], reading: Reading, progress: bool
) -> tuple[Stats, bytes | None]:
    """What calibration saw: of the study, if this network saw this data before; else observed, and kept there.

    With it the digests of the samples of all ranks, None if they are not known: see `octavo.workflow.overlap`.
    """
    graph, sites = plan.graph, [site.name for quantizer in plan.quantizers for site in quantizer.sites]
    name = "stats-" + trial_key(model=digest_of_graph(graph), sites=sites, data=gathered(_facts(graph, batches)))

    def stored() -> tuple[bytes | None, bytes | None]:
        with Study(folder) as study:
            return study.blob(name), study.blob(f"samples-{name}")

    data, digests = by_first(stored)
    if data is not None:
        return unpack_stats(data), digests
    watched = noted(reading, graph, batches)
    stats = observe(plan, watched, progress=progress and is_first())
    every = gathered(watched.digests)
    digests = None if None in every else b"".join(one for one in every if one is not None)

    def keep() -> None:
        with Study(folder) as study:
            if digests is not None:
                study.keep(f"samples-{name}", digests)  # before the statistics: whoever finds those finds both
            study.keep(name, pack_stats(stats))

    by_first(keep)
    return stats, digests
