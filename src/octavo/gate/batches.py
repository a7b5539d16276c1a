"""Samples through a network, some at a time, and its outputs sample by sample."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from octavo.errors import QuantizationError
from octavo.gate.match import placed
from octavo.gate.network import Array, Arrays, Opened

Rows = Array | list[Array]  # one entry a sample; a list where they have different shapes


def chunks(groups: Sequence[Arrays], size: int) -> Iterator[tuple[slice, dict[str, Array]]]:
    """(the numbers of the samples, their arrays), at most `size` at a time and of one group."""
    start = 0
    for group in groups:
        count = count_of(group)
        for first in range(0, count, size):
            chunk = {name: array[first : first + size] for name, array in group.items()}
            yield slice(start + first, start + min(count, first + size)), chunk
        start += count


def count_of(arrays: Arrays) -> int:
    """How many samples there are."""
    return len(next(iter(arrays.values())))


def outputs_of(network: Opened, arrays: Arrays) -> dict[str, Rows]:
    """What `network` returns for each sample of `arrays`, which are named as in the data.

    A network that takes a fixed number of samples is called with so many, the last time with one of them repeated. One
    whose outputs do not have the samples along their first axis is called with one at a time.
    """
    given, count = placed(network, arrays), count_of(arrays)
    fixed = network.fixed_batch
    if fixed is None:
        whole = network.call(given)
        loose = {name for name, output in whole.items() if not _has_rows(output, count)}
        if count == 1 or not loose:
            return {name: _rows(output, count) for name, output in whole.items()}
        parts = [_called(network, given, place, 1, loose) for place in range(count)]
    else:
        parts = [_called(network, given, place, fixed) for place in range(0, count, fixed)]
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _called(network: Opened, given: Arrays, start: int, size: int, loose: Collection[str] = ()) -> dict[str, Rows]:
    """The outputs of a call with `size` samples from `start` on.

    loose  outputs whose first axis is not that of the samples
    """
    count = min(size, count_of(given) - start)
    filled = {name: _filled(np.asarray(array[start : start + count]), size) for name, array in given.items()}
    found = network.call(filled)
    wrong = [name for name, output in found.items() if size > 1 and not _has_rows(output, size)]
    if wrong:
        raise QuantizationError(
            asked=f"run {network.name} on {size} samples, the number that it takes",
            seen=f"its output {wrong[0]} has the shape {list(found[wrong[0]].shape)}",
            remedy="check a file whose outputs have the samples along their first axis",
            site=wrong[0],
        )
    return {name: output[None] if name in loose else _rows(output, size)[:count] for name, output in found.items()}


def _filled(array: Array, size: int) -> Array:
    """`array` with its last sample repeated up to `size` of them."""
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _has_rows(output: Array, count: int) -> bool:
    return output.ndim > 0 and len(output) == count


def _rows(output: Array, count: int) -> Array:
    """The output of `count` samples with them along its first axis; of one, whatever shape it has."""
    return output if _has_rows(output, count) else output[None]


def _joined(parts: Sequence[Rows]) -> Rows:
    shapes = {part.shape[1:] for part in parts if isinstance(part, np.ndarray)}
    if len(shapes) == 1:
        return np.concatenate([np.asarray(part) for part in parts])
    return [row for part in parts for row in part]
