"""The samples that both networks see: arrays by the names of inputs, the first axis being that of the samples.

    file.npz     arrays by input name, and optionally `labels`
    folder       a file for each input, NAME.npy, and optionally labels.npy
    recipe.py    the batches of its calibration(), and its evaluate() as the metric
    a mapping    of arrays, as in an .npz file (from Python)

Files of arrays are data: nothing in them is unpickled. A recipe is executed.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from octavo.errors import QuantizationError, reading
from octavo.gate.network import Array, Arrays, shaped
from octavo.gate.python import array_of, read_recipe
from octavo.network.graph import call_arguments
from octavo.workflow.calibration import first_inputs
from octavo.workflow.goal import Evaluate

LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What both networks are run on.

    source    where it came from, in words
    groups    arrays by the name of an input; more than one group where shapes differ between batches
    labels    [samples, …] classes, if there are any
    """

    source: str
    groups: tuple[Arrays, ...]
    labels: Array | None = None

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(len(next(iter(group.values()))) for group in self.groups)

    def shapes(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """{input: (dtype, shape with None for an axis whose size varies)}."""
        first = self.groups[0]
        return {name: (str(array.dtype), self._shape(name)) for name, array in first.items()}

    def _shape(self, name: str) -> tuple[int | None, ...]:
        shapes = [group[name].shape for group in self.groups]
        rest = zip(*(shape[1:] for shape in shapes), strict=True)
        return (self.count, *(sizes[0] if len(set(sizes)) == 1 else None for sizes in rest))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a recipe says of a network.

    source  the name of the recipe
    """

    source: str
    evaluate: Evaluate
    higher_is_better: bool = True


def read_samples(data: Any) -> Samples:
    """The samples in `data`, see above.

    raises  QuantizationError for no samples, arrays of different numbers of them, and what is no array of numbers
    """
    if isinstance(data, Mapping):
        return _samples(dict(data), "arrays")
    path = Path(data)
    if not path.exists():
        raise _refused(path, "there is nothing at this path", "pass an .npz file, a folder of .npy files, or a recipe")
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        return _samples({file.stem: _loaded(file) for file in files}, path.name)
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise _refused(path, "it is none of those known", "pass an .npz file, a folder of .npy files, or a recipe")
    return read(path)


def metric_of(path: Path) -> Metric:
    """The metric of the recipe `path`; which way it is better is read from its options()."""
    recipe = read_recipe(path)
    with reading(asked=f"read {path.name}", seen="its options() failed", remedy="run it by itself", site=str(path)):
        better = bool(recipe.options().get("higher_is_better", True))
    return Metric(source=path.name, evaluate=recipe.evaluate, higher_is_better=better)


def _npz(path: Path) -> Samples:
    with reading(
        asked=f"read {path.name}", seen="it is no .npz file", remedy="write it by numpy.savez", site=str(path)
    ):
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise TypeError("it is a single array")
        names = list(found.files)
    return _samples({name: _member(found, name, path) for name in names}, path.name)


def _member(found: Any, name: str, path: Path) -> Array:
    with reading(asked=f"read {path.name}", seen=f"its array {name[:100]!r} cannot be read", remedy="write it again"):
        return np.asarray(found[name])


def _loaded(path: Path) -> Array:
    with reading(asked=f"read {path.name}", seen="it is no array", remedy="write it by numpy.save", site=str(path)):
        return np.asarray(np.load(path, allow_pickle=False, mmap_mode="r"))


def _from_recipe(path: Path) -> Samples:
    recipe = read_recipe(path)
    with reading(asked=f"read {path.name}", seen="its code failed", remedy="run it by itself", site=str(path)):
        batches = list(recipe.calibration())
        model = recipe.model()
        example = recipe.example() if recipe.example else first_inputs(model, batches)
    groups = tuple(_group(batch, example, model) for batch in batches)
    for group in groups:
        _check(group, path.name)
    return Samples(source=f"calibration() of {path.name}", groups=groups)


def _group(batch: Any, example: Any, model: nn.Module) -> dict[str, Array]:
    """The arrays of a batch under the names of what `forward` takes, without labels behind them."""
    args, kwargs = call_arguments(example)
    if not args and isinstance(batch, tuple | list):
        batch = batch[0]
    own, named = call_arguments(batch)
    given = dict(zip(parameters(model), own[: len(args)], strict=False)) | {key: named[key] for key in kwargs}
    return {name: array_of(value) for name, value in given.items() if isinstance(value, Tensor)}


def parameters(model: nn.Module) -> list[str]:
    """The names of what `model.forward` takes."""
    return list(inspect.signature(model.forward).parameters)


def _samples(arrays: dict[str, Any], source: str) -> Samples:
    found = {str(name): _array(str(name), value) for name, value in arrays.items()}
    labels = found.pop(LABELS, None)
    _check(found, source)
    count = len(next(iter(found.values())))
    if labels is not None:
        _check_labels(labels, count, source)
    return Samples(source=source, groups=(found,), labels=labels)


def _array(name: str, value: Any) -> Array:
    with reading(asked=f"read the samples to check on, {name[:100]}", seen="it is no array", remedy="give an array"):
        return array_of(value) if isinstance(value, Tensor) else np.asarray(value)


def _check(arrays: Arrays, source: str) -> None:
    wrong = next((name for name, array in arrays.items() if array.dtype.kind not in "fiub" or array.ndim == 0), None)
    if wrong is not None:
        described = f"{arrays[wrong].dtype} {shaped(arrays[wrong].shape)}"
        raise _refused(
            source, f"{wrong[:100]} is {described}", "give arrays of numbers, samples along their first axis"
        )
    counts = {name: len(array) for name, array in arrays.items()}
    if not counts or 0 in counts.values():
        raise _refused(source, "there are no samples in it", "give at least one; some hundreds tell more")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {name[:60]}" for name, count in counts.items())
        raise _refused(source, f"there are {listed}", "give as many samples of every input, along the first axis")


def _check_labels(labels: Array, count: int, source: str) -> None:
    if labels.dtype.kind not in "iu":
        raise _refused(source, f"labels is {labels.dtype}", "give numbers of classes: labels.astype('int64')")
    if labels.ndim == 0 or len(labels) != count:
        seen = f"there are {len(labels) if labels.ndim else 'no'} labels for {count} samples"
        raise _refused(source, seen, "give a label for every sample, or none")


def _refused(site: object, seen: str, remedy: str) -> QuantizationError:
    return QuantizationError(asked="read the samples to check on", seen=seen, remedy=remedy, site=str(site))


READERS: Mapping[str, Callable[[Path], Samples]] = {".npz": _npz, ".py": _from_recipe}
