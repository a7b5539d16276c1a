"""`load`: a saved network, checked and made ready for an engine, and called with arrays."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo_serve.cache import place_of, remember, was_checked
from octavo_serve.container import Manifest, path_of, read_container
from octavo_serve.errors import QuantizationError, reading
from octavo_serve.nearness import nearness_db
from octavo_serve.onnx_allowed import check_model, put_tensors
from octavo_serve.onnx_file import read_model, write_model
from octavo_serve.signature import Input, Signature, is_tensor, signature_from
from octavo_serve.tensors import array_of, places

Array = npt.NDArray[Any]
SERVING, TENSORS, SAMPLES = "serve.json", "tensors.safetensors", "samples.safetensors"
# {engine: the model that it reads, where there is one}: ONNX Runtime's is rewritten for it when it is saved.
MODELS = {"openvino": "model.onnx", "onnxruntime": "serve.onnx"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a saved network holds for serving.

    turned   tensors of the model that lie transposed
    kinds    what of it is in integers, which ONNX Runtime has to know: see `optimizers_without`
    samples  for each call that it is checked by {input or output: its name among the samples}
    bars_db  how near every output has to be to the simulation's
    """

    signature: Signature
    turned: frozenset[str]
    kinds: Mapping[str, bool]
    samples: tuple[Mapping[str, str], ...]
    bars_db: tuple[float, ...]


class Served:
    """A network on an engine, called like the model that it was made from. May be called from several threads.

    engine  what runs it
    inputs  what it reads: name, dtype and shape
    run     {input: array} → its arrays in order, unchecked
    """

    def __init__(
        self, run: Callable[[Mapping[str, Array]], Sequence[Array]], signature: Signature, *, engine: str
    ) -> None:
        self.run, self._signature, self.engine = run, signature, engine

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Of the positional arguments first; symbols are sizes that may vary."""
        return self._signature.arrays_in

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model would return for these arrays; for torch's tensors, tensors.

        raises  QuantizationError naming the input that the network cannot be called with
        """
        outputs = self.run(self._signature.flatten(args, kwargs))
        if any(map(_holds_tensors, (*args, *kwargs.values()))):
            import torch  # noqa: PLC0415 (the caller has it)

            return self._signature.unflatten(list(map(torch.from_numpy, outputs)))
        return self._signature.unflatten(outputs)

    def __reduce__(self) -> Any:
        raise QuantizationError(
            asked="copy or pickle a Served",
            seen="it is compiled for this machine, and cannot leave its process",
            remedy="call octavo_serve.load(path) wherever it is to run",
        )


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return any(map(_holds_tensors, value)) if isinstance(value, list | tuple) else is_tensor(value)


def load(
    path: str | PathLike[str],
    *,
    engine: str | None = None,
    check: bool = True,
    threads: int | None = None,
    cache: str | PathLike[str] | None = None,
) -> Served:
    """The network that `octavo.save` wrote, on this machine, without torch: the same bits as `octavo.load` there.

    The file is data, whoever wrote it: see docs/trust.md.

    engine   "openvino" or "onnxruntime"; None is the one that it was saved for
    check    compare it with the simulation on the samples that were saved with it, unless that held before for this
             file, CPU and version of the engine
    threads  that work on one call; None leaves the number to the engine
    cache    a folder where OpenVINO keeps what it compiled, for the next process on this machine
    raises   QuantizationError for a file that is truncated, altered, none of Octavo's, of a newer version or one that
             had no part for serving yet, and for an engine that is not there or computes something else
    """
    where = path_of(path)
    _check_arguments(engine=engine, check=check, threads=threads, cache=cache)
    manifest, files = read_container(where, wanted={SERVING, TENSORS, SAMPLES, *MODELS.values()})
    name = engine or manifest.engine
    _check_servable(where, manifest, files, name)
    with _readable(where, "its contents do not fit together"):
        part = part_from(json.loads(files[SERVING]))
        model = _model(files, part, MODELS[name])
    with _readable(where, f"{name} cannot compile it"):
        run = _on_engine(name, model, part, threads=threads, cache=cache)
    network = Served(run, part.signature, engine=name)
    place = place_of(manifest.digest, name, _version(name))
    if check and part.samples and not was_checked(place):
        with _readable(where, "it cannot be run"):
            _check(network, part, files[SAMPLES])
        remember(place)
    return network


def _check_arguments(**given: Any) -> None:
    threads = given["threads"]
    fits = {
        "engine": (isinstance(given["engine"], str | None), "name of an engine", 'pass "openvino" or "onnxruntime"'),
        "check": (isinstance(given["check"], bool), "truth value", "pass True or False"),
        "threads": (
            threads is None or (type(threads) is int and threads > 0),
            "number of threads",
            "pass 1 or more, or None",
        ),
        "cache": (isinstance(given["cache"], str | PathLike | None), "path", "pass that of a folder, or None"),
    }
    for name, (fit, kind, remedy) in fits.items():
        if not fit:
            asked = f"serve a saved network with {name}={given[name]!r}"
            raise QuantizationError(asked=asked, seen=f"it is no {kind}", remedy=remedy)


def _check_servable(path: Path, manifest: Manifest, files: Mapping[str, bytes], engine: str) -> None:
    asked, site = f"serve a saved network on {engine!r}", str(path)
    if engine not in MODELS:
        remedy = "save it for one of those, or load it with torch: octavo.load"
        raise QuantizationError(asked=asked, seen=f"without torch run {', '.join(MODELS)}", remedy=remedy, site=site)
    if not {SERVING, TENSORS, MODELS[engine]} <= files.keys():
        old = manifest.schema_version < 3
        seen = "it was saved by an older version" if old else f"it was saved for {manifest.engine!r}"
        remedy = f'load it with torch and save it again: octavo.save(…, engine="{engine}")'
        raise QuantizationError(asked=asked, seen=f"{seen}, without what {engine} needs", remedy=remedy, site=site)
    if find_spec(engine) is None:
        raise QuantizationError(asked=asked, seen=f"{engine} is not installed", remedy=f"pip install {engine}")


def part_from(record: Mapping[str, Any]) -> Part:
    """What serve.json says. Whatever does not fit raises one of Python's errors, or QuantizationError."""
    return Part(
        signature=signature_from(record),
        turned=frozenset(record["turned"]),
        kinds={name: bool(record["kinds"][name]) for name in ("quantized", "signed")},
        samples=tuple(map(dict, record["samples"])),
        bars_db=tuple(map(float, record["bars_db"])),
    )


def _model(files: Mapping[str, bytes], part: Part, name: str) -> bytes:
    """The ONNX model, checked and with its tensors."""
    model = read_model(files[name])
    inputs = {leaf.name: (leaf.dtype, len(leaf.shape)) for leaf in part.signature.arrays_in}
    check_model(model, inputs, part.signature.arrays_out)
    put_tensors(model, files[TENSORS], TENSORS, part.turned)
    return write_model(model)


def _on_engine(
    name: str, model: bytes, part: Part, *, threads: int | None, cache: str | PathLike[str] | None
) -> Callable[[Mapping[str, Array]], Sequence[Array]]:
    if name == "openvino":
        from octavo_serve import openvino  # noqa: PLC0415 (one engine is enough)

        return openvino.served(model, threads=threads, cache=cache)
    from octavo_serve import onnxruntime  # noqa: PLC0415

    without = onnxruntime.optimizers_without(**part.kinds)
    return onnxruntime.served(model, part.signature.arrays_out, without=without, threads=threads)


def _check(network: Served, part: Part, file: bytes) -> None:
    """Raise QuantizationError if the engine is farther from the simulation than rounding explains."""
    known, outputs = places(file), part.signature.arrays_out
    wanted, found = [], []
    for names in part.samples:
        arrays = {name: array_of(file, known[key]) for name, key in names.items()}
        wanted.append([arrays.pop(name) for name in outputs])
        found.append([np.asarray(output) for output in network.run(arrays)])
    for near, bar in zip(
        map(nearness_db, zip(*wanted, strict=True), zip(*found, strict=True)), part.bars_db, strict=True
    ):
        if not near >= bar:
            raise QuantizationError(
                asked=f"serve a saved network on {network.engine}",
                seen=f"on the samples that were saved with it, it is {near:.1f} dB from the simulation, where rounding "
                f"accounts for {bar:.1f} dB",
                remedy="load it with torch, where octavo.load leaves in float what an engine computes wrongly",
            )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _readable(path: Path, seen: str) -> Any:
    """Whatever goes wrong with what a file holds, as one error that names the file."""
    remedy = "save it again; manifest.json says which version of Octavo wrote it"
    return reading(asked="load a saved network", seen=seen, remedy=remedy, site=str(path))
