"""Save and load: a quantized network as one file (or folder) of JSON and safetensors, which runs without its class.

    manifest.json        what it is, and the size and SHA-256 of every other file
    network.json         the graph, the plan and what each tensor is
    tensors.safetensors  integers where a tensor is quantized, float elsewhere; each once, named after its content
    model.onnx           for engines that read ONNX; its weights lie in tensors.safetensors
    samples.safetensors  a few inputs, and what the simulation returns for them: what an engine is checked by
    serve.json           how it is called, for `octavo_serve`, which reads it without torch (docs/serve.md)
    serve.onnx           the model rewritten for ONNX Runtime, for that engine

Any engine can be compiled from it, on any machine: integer weights are unpacked to the same integers as before. Nothing
in it is executed as code. The digests tell accidents, not forgery: they are part of what a forger could write, so what
they hold is checked too (`octavo.saved.trust`).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import onnx
from safetensors.torch import load as load_tensors

from octavo import engines
from octavo.arguments import checked
from octavo.engines.check import Outputs
from octavo.engines.faults import compile_right
from octavo.engines.signature import signature_of
from octavo.errors import QuantizationError
from octavo.machine import versions
from octavo.network.device import on_cpu
from octavo.network.marker import is_marker, quantizer_of
from octavo.network.plan import Plan
from octavo.network.quantized import Network, Quantized, origin_of
from octavo.numerics.affine import QParams, quantize
from octavo.saved.container import Manifest, check_free, read_container, write_container
from octavo.saved.cost import LIMITS, Limits
from octavo.saved.evidence import checked_at, evidence, from_evidence
from octavo.saved.onnx_allowed import check_onnx
from octavo.saved.record import graph_record, tensors_of
from octavo.saved.serving import prepared
from octavo.saved.store import TensorStore, onnx_with_tensors
from octavo.saved.trust import (
    NetworkRecord,
    StoredParams,
    StoredTensor,
    check_evidence,
    check_network,
    network_of,
    plan_record,
    readable,
    unreadable,
)
from octavo_serve.cache import remember, was_checked
from octavo_serve.served import MODELS, SAMPLES, SERVING, TENSORS

NETWORK = "network.json"
ONNX, SERVED_ONNX = MODELS["openvino"], MODELS["onnxruntime"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a saved network holds.

    path      where it was read
    engine    the one that it was saved for
    onnx      its model, for engines that read one
    expected  what the simulation returned for `net.samples` where it was saved, if that was kept
    """

    path: Path
    net: Quantized
    engine: str
    manifest: Manifest
    onnx: onnx.ModelProto | None
    expected: Outputs | None = None


@checked
def save(
    net: Quantized,
    path: str | PathLike[str],
    *,
    engine: str = "openvino",
    form: Literal["file", "folder"] = "file",
) -> None:
    """Write `net`, so that `load` runs it on `engine` (or another) without the model's class.

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
    check_free(Path(path), form)
    net = on_cpu(net)
    store = TensorStore()
    samples, shown = evidence(net)
    record = NetworkRecord(
        graph=graph_record(net.graph),
        plan=plan_record(net.plan),
        method=net.method,
        tensors=_store_tensors(net, store),
        params={name: _store_params(found, store) for name, found in net.values.items()},
        notes=net.notes,
        samples=samples,
    )
    files = {NETWORK: record.model_dump_json().encode(), SAMPLES: shown}
    if engines.ENGINES[engine].reads_onnx:
        from octavo.engines.onnx import export_onnx  # noqa: PLC0415 (the exporter takes seconds to import)

        model = export_onnx(net)
        keys = store.add_initializers(model)
        serving = prepared(net, model, engine, store)
        files[TENSORS] = store.serialized()
        files[ONNX] = store.refer(model, keys, files[TENSORS], TENSORS).SerializeToString()
        files |= serving.files(store, files[TENSORS], samples, shown)
    else:
        files[TENSORS] = store.serialized()
    write_container(Path(path), files, form=form, engine=engine, versions=versions())


def _store_tensors(net: Quantized, store: TensorStore) -> dict[str, StoredTensor]:
    """Every tensor of the graph: as integers if all that read it read those of one quantizer."""
    quantizers = _quantizers_of_tensors(net.plan)
    stored = {}
    for name, tensor in tensors_of(net.graph).items():
        quantizer = quantizers.get(name)
        kept = tensor if quantizer is None else quantize(tensor, net.values[quantizer])
        stored[name] = StoredTensor(key=store.add(kept), quantizer=quantizer)
    return stored


def _quantizers_of_tensors(plan: Plan) -> dict[str, str]:
    """{tensor: the one quantizer through which all its readers see it}."""
    constants = {quantizer.name for quantizer in plan.quantizers if quantizer.constant}  # on scales of their own
    seen: dict[str, set[str | None]] = {}
    for node in plan.marked.module.graph.nodes:
        if node.op == "get_attr":
            names = [quantizer_of(user) if is_marker(user) else None for user in node.users]
            readers = {name if name in constants else None for name in names}
            seen.setdefault(str(node.target), set()).update(readers)
    found = {name: next(iter(readers)) for name, readers in seen.items() if len(readers) == 1}
    return {name: quantizer for name, quantizer in found.items() if quantizer is not None}


def _store_params(found: QParams, store: TensorStore) -> StoredParams:
    return StoredParams(scale=store.add(found.scale), zero_point=store.add(found.zero_point))


@checked
def load(
    path: str | PathLike[str],
    *,
    engine: str | None = None,
    check: bool = True,
    operators: Collection[str] = (),
    limits: Limits = LIMITS,
    **options: Any,
) -> Network:
    """The network that `save` wrote, compiled for this machine and called like the user's model.

    The file is data, whoever wrote it: see docs/trust.md.

    engine     None is the one that it was saved for
    check      compare it with the simulation on the samples that were saved with it, unless that held before for this
               file, CPU and version of the engine; see `octavo.compile`
    operators  further ones that it may call ("torchvision.nms.default", or a namespace), if you trust it and them
    limits     what one call on its samples may take; raise them for a large network that you trust
    options    of that engine's compile function
    raises     QuantizationError for a file that is truncated, altered, none of Octavo's, or of a newer version, for one
               that does not fit together or asks for more than `limits`, and for an engine that computes something else
    """
    return compiled(read(path, operators=operators, limits=limits), engine=engine, check=check, **options)


def compiled(artifact: Artifact, *, engine: str | None = None, check: bool = True, **options: Any) -> Network:
    """`load`, of what is read already."""
    engine = engine or artifact.engine
    net, digest = artifact.net, artifact.manifest.digest
    if engine in engines.ENGINES and engines.ENGINES[engine].reads_onnx and artifact.onnx is not None:
        options["network"] = artifact.onnx
    if not check or was_checked(checked_at(digest, engine, options)):
        with readable(artifact.path, f"{engine} cannot compile it"):
            return engines.compile(net, engine=engine, **options)
    with readable(artifact.path, "it cannot be run"):
        expected = check_evidence(net, artifact.expected)
    with readable(artifact.path, f"{engine} cannot compile it"):
        network = compile_right(net, engine=engine, expected=expected, **options)
    origin = origin_of(network)
    if origin is not None and origin.net is net:  # nothing had to be left in float
        remember(checked_at(digest, engine, options))
    return network


def read(path: str | PathLike[str], *, operators: Collection[str] = (), limits: Limits = LIMITS) -> Artifact:
    """What `save` wrote: to compile it, to inspect it, to compare it. Quantized weights are float again, rounded.

    Nothing is run, and nothing is allocated that is larger than `limits` or a few times the file.
    operators, limits, raises  as in `load`
    """
    manifest, files = read_container(Path(path))
    with readable(path):
        if not {NETWORK, TENSORS} <= files.keys() <= {NETWORK, TENSORS, ONNX, SAMPLES, SERVING, SERVED_ONNX}:
            raise unreadable(path, f"it holds {', '.join(files)[:200]}")
        record = NetworkRecord.model_validate_json(files[NETWORK])
        tensors = load_tensors(files[TENSORS])
        net = network_of(record, tensors, operators=operators, limits=limits)
        samples, expected = from_evidence(record.samples, files[SAMPLES]) if SAMPLES in files else ((), None)
        net = replace(net, samples=samples)
        check_network(net, limits)
        model = None
        if ONNX in files:
            model = onnx.load_model_from_string(files[ONNX])
            signature = signature_of(net.graph)
            inputs = signature.flatten(net.graph.example_args, net.graph.example_kwargs)
            check_onnx(model, inputs, signature.tensors, limits)
            model = onnx_with_tensors(model, files[TENSORS])
    return Artifact(
        path=Path(path),
        net=net,
        engine=manifest.engine,
        manifest=manifest,
        onnx=model,
        expected=expected,
    )
