"""What `quantize` takes from the calibration data: an example, a few batches, and statistics that the study keeps."""

import inspect
from collections.abc import Iterable, Mapping, Sequence, Sized
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
from octavo.workflow.study import Study, pack_stats, trial_key, unpack_stats

REPAIR_SAMPLES = 64  # of the calibration data, that repairs see: they keep every value of all of them at hand


def first_inputs(model: nn.Module, batches: Iterable[Any]) -> Any:
    """The first batch, without the labels behind the inputs that `model.forward` does not take.

    raises  QuantizationError for no batches
    """
    batch = _first(batches)
    if not isinstance(batch, tuple | list):
        return batch
    if batch and isinstance(batch[0], Mapping):
        return batch[0]
    signature = inspect.signature(model.forward)
    fitting = [count for count in range(len(batch), 0, -1) if _fits(signature, batch[:count])]
    return tuple(batch[: fitting[0]] if fitting else batch)


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


def _fits(signature: inspect.Signature, args: Sequence[Any]) -> bool:
    try:
        signature.bind(*args)
    except TypeError:
        return False
    return True


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


def statistics(folder: Path, graph: Graph, plan: Plan, batches: Iterable[Any], progress: bool) -> Stats:
    """What calibration saw: of the study, if this network saw this data before; else observed, and kept there."""
    sites = [site.name for quantizer in plan.quantizers for site in quantizer.sites]
    name = "stats-" + trial_key(model=digest_of_graph(graph), sites=sites, data=gathered(_facts(graph, batches)))

    def stored() -> bytes | None:
        with Study(folder) as study:
            return study.blob(name)

    data = by_first(stored)
    if data is not None:
        return unpack_stats(data)
    stats = observe(graph, plan, batches, progress=progress and is_first())

    def keep() -> None:
        with Study(folder) as study:
            study.keep(name, pack_stats(stats))

    by_first(keep)
    return stats
