"""The part of a saved network that `octavo_serve` reads: how it is called, and what each engine has to be told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx
from torch import Tensor
from torch.utils._pytree import tree_flatten

from octavo import engines
from octavo.engines.check import LEAST_DB, SLACK_DB, Outputs, enough, moved, nearness
from octavo.engines.signature import Constant, Signature, signature_of
from octavo.errors import QuantizationError
from octavo.network.bounds import Indices, largest
from octavo.network.edit import tree_info
from octavo.network.quantized import Quantized
from octavo.network.samples import calls_of
from octavo.saved.calls import CallRecord
from octavo.saved.evidence import from_evidence
from octavo.saved.sizes import Json, Symbols, size_record
from octavo.saved.store import TensorStore
from octavo.saved.structure import structure_of
from octavo_serve.served import MODELS, SERVING, TENSORS
from octavo_serve.signature import DTYPES


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What is written for serving.

    model   rewritten for the engine; None for one that reads the model as it is, and repairs it in memory
    keys    {initializer of `model`: key of its tensor}
    turned  those of them whose tensor lies transposed
    kinds   what is in integers, which ONNX Runtime has to know
    """

    net: Quantized
    engine: str
    model: onnx.ModelProto | None
    keys: Mapping[str, str]
    turned: frozenset[str]
    kinds: Mapping[str, bool]

    def files(
        self, store: TensorStore, tensors: bytes, calls: Sequence[CallRecord], samples: bytes
    ) -> dict[str, bytes]:
        """{name: data} of the files for serving; none for a network that cannot be called with arrays.

        store    as it was written, to `tensors`
        calls    how the network is called with what lies in `samples`
        """
        signature = signature_of(self.net.graph)
        record = call_record(self.net, signature)
        if record is None:
            return {}
        names, bars = _evidence(self.net, signature, calls, samples, engines.ENGINES[self.engine].near_tie)
        record |= {"samples": names, "bars_db": bars, "turned": sorted(self.turned), "kinds": dict(self.kinds)}
        found = {SERVING: json.dumps(record).encode()}
        if self.model is not None:
            model = store.refer(self.model, dict(self.keys), tensors, TENSORS)
            found[MODELS[self.engine]] = model.SerializeToString()
        return found


def prepared(net: Quantized, model: onnx.ModelProto, engine: str, store: TensorStore) -> Serving:
    """What `engine` is handed when `net` is served; tensors that `model` does not have are added to `store`."""
    make = partial(Serving, net=net, engine=engine)
    if engine != "onnxruntime":
        return make(model=None, keys={}, turned=frozenset(), kinds={"quantized": True, "signed": True})
    from octavo.engines.onnxruntime_model import is_quantized, rewritten, signed_activations  # noqa: PLC0415 (onnx)

    kinds = {"quantized": is_quantized(model), "signed": signed_activations(model)}
    own = onnx.ModelProto()
    own.CopyFrom(rewritten(model))
    _drop_unread(own)
    turned: set[str] = set()
    keys = store.add_initializers(own, turned)
    return make(model=own, keys=keys, turned=frozenset(turned), kinds=kinds)


def _drop_unread(model: onnx.ModelProto) -> None:
    """Without constants that nothing reads any more."""
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def call_record(net: Quantized, signature: Signature) -> dict[str, Json] | None:
    """How `net` is called, as `octavo_serve.signature` reads it; None if arrays or JSON have no word for it."""
    graph = net.graph
    info, symbols, rows = tree_info(graph.module), Symbols(), Indices(graph.module).rows
    nodes = graph.module.graph.find_nodes(op="placeholder")
    given, _ = tree_flatten((graph.example_args, graph.example_kwargs))
    leaves: list[Json] = []
    for node, value in zip(nodes, given, strict=True):
        val, name = node.meta["val"], str(node.target)
        if isinstance(val, Tensor):
            shape = [size_record(size, symbols) for size in val.shape]
            dtype = str(val.dtype).removeprefix("torch.")
            leaves.append({"name": name, "dtype": dtype, "shape": shape, "rows": rows.get(name)})
        else:
            leaves.append({"name": name, "value": value})
    returned = [leaf if isinstance(leaf, str) else {"value": leaf.value} for leaf in signature.outputs]
    try:
        record = {
            "arguments": list(info.orig_args),
            "inputs": structure_of(info.in_spec).model_dump(mode="json"),
            "leaves": leaves,
            "most": {symbols.known(symbol): most for symbol, most in largest(graph.module).items()},
            "outputs": structure_of(signature.spec).model_dump(mode="json"),
            "returned": returned,
        }
        json.dumps(record)
    except (QuantizationError, TypeError, ValueError):
        return None
    return record if all(leaf.get("dtype", "bool") in DTYPES for leaf in leaves) else None


def _evidence(
    net: Quantized, signature: Signature, calls: Sequence[CallRecord], samples: bytes, near_tie: float
) -> tuple[list[dict[str, str]], list[float]]:
    """(For each call {input or output: its name in `samples`}, how near to the simulation every output has to be).

    Nothing where the outputs were too large to be kept.
    """
    given = calls_of(net.graph, net.samples)
    expected = from_evidence(list(calls), samples)[1] if len(calls) == len(given) else None
    if expected is None:
        return [], []
    tensors = [leaf for leaf in signature.outputs if not isinstance(leaf, Constant)]
    places = {name: tensors.index(name) for name in signature.tensors}
    names = []
    for number, (args, kwargs) in enumerate(given):
        at = {id(leaf): place for place, leaf in enumerate(tree_flatten((args, kwargs))[0])}
        inputs = net.graph.inputs.check(args, kwargs)
        own = {name: f"input.{number}.{at[id(tensor)]}" for name, tensor in inputs.items()}
        names.append(own | {name: f"output.{number}.{place}" for name, place in places.items()})
    bars = _bars_db(net, expected, near_tie)
    return names, [bars[place] for place in places.values()]


def _bars_db(net: Quantized, expected: Outputs, near_tie: float) -> list[float]:
    """How near an engine has to be to the simulation, output by output: what `check.agreement` asks for at most."""
    bars = [enough(leaf) for leaf in expected[0]]
    for draw in moved(net, calls_of(net.graph, net.samples), near_tie):
        near = nearness(expected, draw)
        bars = [min(bar, max(one - SLACK_DB, LEAST_DB)) for bar, one in zip(bars, near, strict=True)]
    return bars
