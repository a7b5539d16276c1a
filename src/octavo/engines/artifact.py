"""Save and load: a quantized network as one file (or folder) of JSON and safetensors, which runs without its class.

    manifest.json        what it is, and the size and SHA-256 of every other file
    network.json         the graph, the plan and what each tensor is
    tensors.safetensors  integers where a tensor is quantized, float elsewhere; each once, named after its content
    model.onnx           for engines that read ONNX; its weights lie in tensors.safetensors
    samples.safetensors  a few inputs, and what the simulation returns for them: what an engine is checked by

Any engine can be compiled from it, on any machine: integer weights are unpacked to the same integers as before. Nothing
in it is executed. The digests tell accidents, not forgery: they are part of what a forger could write.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from octavo import engines
from octavo.arguments import checked
from octavo.engines.check import Outputs
from octavo.engines.container import MANIFEST, Manifest, read_container, write_container
from octavo.engines.evidence import evidence, from_evidence, remember_check, was_checked
from octavo.engines.faults import compile_right
from octavo.engines.store import TensorStore, onnx_with_tensors
from octavo.errors import QuantizationError
from octavo.machine import versions
from octavo.network.calibrate import Params
from octavo.network.graph import Graph
from octavo.network.origin import origin_of
from octavo.network.plan import Plan
from octavo.network.record import GraphRecord, graph_of, graph_record, tensors_of
from octavo.network.samples import CallRecord
from octavo.numerics.affine import QParams, dequantize, quantize

NETWORK, TENSORS, ONNX, SAMPLES = "network.json", "tensors.safetensors", "model.onnx", "samples.safetensors"
READS_ONNX = ("openvino", "onnxruntime")


class StoredTensor(BaseModel):
    """Where a parameter lies: `key` among the tensors; `quantizer` whose integers they are, None if in float."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    quantizer: str | None = None


class StoredParams(BaseModel):
    """Where the scale and zero-point of a quantizer lie."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: str
    zero_point: str


class NetworkRecord(BaseModel):
    """A quantized network without its tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    graph: GraphRecord
    plan: Plan
    method: str
    tensors: dict[str, StoredTensor]
    params: dict[str, StoredParams]
    notes: tuple[str, ...] = ()
    samples: list[CallRecord] = []


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a saved network holds.

    engine    the one that it was saved for
    onnx      its model, for engines that read one
    expected  what the simulation returned for `params.samples` where it was saved, if that was kept
    """

    graph: Graph
    params: Params
    engine: str
    manifest: Manifest
    onnx: onnx.ModelProto | None
    expected: Outputs | None = None


@checked
def save(
    graph: Graph,
    params: Params,
    path: str | PathLike[str],
    *,
    engine: str = "openvino",
    form: Literal["file", "folder"] = "file",
) -> None:
    """Write `graph`, quantized by `params`, so that `load` runs it on `engine` (or another) without the model's class.

    The network that is loaded multiplies the same integers; it holds no float weight that is quantized everywhere.
    path    an artifact that lies there is replaced, whole or not at all; anything else is not touched
    form    "file" is a zip of what "folder" holds
    raises  QuantizationError for a network that cannot be written, an unknown engine, or a path that is taken
    """
    if engine not in engines.ENGINES:
        raise QuantizationError(
            asked=f"save for the engine {engine!r}",
            seen=f"the known engines are {', '.join(engines.ENGINES)}",
            remedy="choose one of them",
        )
    store = TensorStore()
    samples, shown = evidence(graph, params)
    record = NetworkRecord(
        graph=graph_record(graph),
        plan=params.plan,
        method=params.method,
        tensors=_store_tensors(graph, params, store),
        params={name: _store_params(found, store) for name, found in params.values.items()},
        notes=params.notes,
        samples=samples,
    )
    files = {NETWORK: record.model_dump_json().encode(), SAMPLES: shown}
    if engine in READS_ONNX:
        from octavo.engines.onnx import export_onnx  # noqa: PLC0415 (the exporter takes seconds to import)

        model = export_onnx(graph, params)
        keys = store.add_initializers(model)
        files[TENSORS] = store.serialized()
        files[ONNX] = store.refer(model, keys, files[TENSORS], TENSORS).SerializeToString()
    else:
        files[TENSORS] = store.serialized()
    write_container(Path(path), files, form=form, engine=engine, versions=versions())


def _store_tensors(graph: Graph, params: Params, store: TensorStore) -> dict[str, StoredTensor]:
    """Every tensor of the graph: as integers if all that read it read those of one quantizer."""
    quantizers = _quantizers_of_tensors(graph, params.plan)
    stored = {}
    for name, tensor in tensors_of(graph).items():
        quantizer = quantizers.get(name)
        kept = tensor if quantizer is None else quantize(tensor, params.values[quantizer])
        stored[name] = StoredTensor(key=store.add(kept), quantizer=quantizer)
    return stored


def _quantizers_of_tensors(graph: Graph, plan: Plan) -> dict[str, str]:
    """{tensor: the one quantizer through which all its readers see it}."""
    of_edge = {(edge.source, edge.user): q.name for q in plan.quantizers if q.constant for edge in q.edges}
    seen: dict[str, set[str | None]] = {}
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            readers = {of_edge.get((node.name, user.name)) for user in node.users}
            seen.setdefault(str(node.target), set()).update(readers)
    found = {name: next(iter(readers)) for name, readers in seen.items() if len(readers) == 1}
    return {name: quantizer for name, quantizer in found.items() if quantizer is not None}


def _store_params(found: QParams, store: TensorStore) -> StoredParams:
    return StoredParams(scale=store.add(found.scale), zero_point=store.add(found.zero_point))


@checked
def load(
    path: str | PathLike[str], *, engine: str | None = None, check: bool = True, **options: Any
) -> "engines.Compiled":
    """The network that `save` wrote, compiled for this machine and called like the user's model.

    engine   None is the one that it was saved for
    check    compare it with what the simulation returned where it was saved, unless that held before for this file, CPU
             and version of the engine; see `octavo.compile`
    options  of that engine's compile function
    raises   QuantizationError for a file that is truncated, altered, none of Octavo's, or of a newer version, and for
             an engine that computes something else
    """
    return compiled(read(path), engine=engine, check=check, **options)


def compiled(
    artifact: Artifact, *, engine: str | None = None, check: bool = True, **options: Any
) -> "engines.Compiled":
    """`load`, of what is read already."""
    engine = engine or artifact.engine
    graph, params = artifact.graph, artifact.params
    if engine in READS_ONNX and artifact.onnx is not None:
        options["network"] = artifact.onnx
    if not check or was_checked(artifact.manifest.digest, engine, options):
        return engines.compile(graph, params, engine=engine, **options)
    network = compile_right(graph, params, engine=engine, expected=artifact.expected, **options)
    origin = origin_of(network)
    if origin is not None and origin.params is params:  # nothing had to be left in float
        remember_check(artifact.manifest.digest, engine, options)
    return network


def read(path: str | PathLike[str]) -> Artifact:
    """What `save` wrote: to compile it, to inspect it, to compare it. Quantized weights are float again, rounded."""
    manifest, files = read_container(Path(path))
    with _named(path):
        record = NetworkRecord.model_validate_json(files[NETWORK])
        tensors = load_tensors(files[TENSORS])
        schemes = {quantizer.name: quantizer.scheme for quantizer in record.plan.quantizers}
        values = {
            name: QParams(scale=tensors[at.scale], zero_point=tensors[at.zero_point], scheme=schemes[name])
            for name, at in record.params.items()
        }
        real = {name: _real(at, tensors, values) for name, at in record.tensors.items()}
        model = onnx.load_model_from_string(files[ONNX]) if ONNX in files else None
        samples, expected = from_evidence(record.samples, files[SAMPLES]) if SAMPLES in files else ((), None)
        return Artifact(
            graph=graph_of(record.graph, real),
            params=Params(plan=record.plan, values=values, method=record.method, notes=record.notes, samples=samples),
            engine=manifest.engine,
            manifest=manifest,
            onnx=None if model is None else onnx_with_tensors(model, files[TENSORS]),
            expected=expected,
        )


def _real(at: StoredTensor, tensors: dict[str, torch.Tensor], values: dict[str, QParams]) -> torch.Tensor:
    stored = tensors[at.key]
    return stored if at.quantizer is None else dequantize(stored, values[at.quantizer])


@contextmanager
def _named(path: str | PathLike[str]) -> Iterator[None]:
    """What is wrong inside an artifact, as one error that names it."""
    try:
        yield
    except (ValidationError, SafetensorError, KeyError, AssertionError, TypeError) as error:
        raise QuantizationError(
            asked="load a saved network",
            seen=f"its contents do not fit together ({type(error).__name__}: {str(error).splitlines()[0][:120]})",
            remedy=f"save it again; {MANIFEST} says which version of Octavo wrote it",
            site=str(path),
        ) from error
