"""A saved network, read as what it is: a file from elsewhere, in which anything may stand.

    JSON ─▶ records (names that are names, counts with bounds) ─▶ graph (operators that are allowed, with arguments that
    fit their schemas) ─▶ shapes and cost, without computing ─▶ plan and parameters that fit the graph ─▶ run it

Each step relies on those before it alone. docs/trust.md says what this promises.
"""

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from os import PathLike

from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from octavo.engines.check import Outputs, agreement, moved, simulated
from octavo.engines.signature import signature_of
from octavo.errors import QuantizationError, reading, refused
from octavo.network.edit import is_floating
from octavo.network.graph import Graph, check_graph
from octavo.network.marker import Mark, marks, sources
from octavo.network.plan import Coverage, Plan, Quantizer, planned
from octavo.network.quantized import Quantized
from octavo.network.rule import Rule, Site
from octavo.network.samples import calls_of
from octavo.network.target import Target
from octavo.numerics.affine import QParams, dequantize
from octavo.numerics.scheme import Scheme
from octavo.saved.calls import CallRecord
from octavo.saved.cost import RAISE, Limits, check_cost
from octavo.saved.record import GraphRecord, InputRecord, graph_from

_REMEDY = "save it again; manifest.json says which version of Octavo wrote it"
GROWTH, SMALL = 8, 2**26  # float weights may take this many times their file, or this many bytes


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


class EdgeRecord(BaseModel):
    """`user` reads the quantized value of `source`: names of graph nodes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    user: str


class QuantizerRecord(BaseModel):
    """A quantizer, and where it stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    scheme: Scheme
    constant: bool
    edges: tuple[EdgeRecord, ...]
    sites: tuple[Site, ...]


class PlanRecord(BaseModel):
    """A plan without its graph."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Target
    rules: tuple[Rule, ...]
    quantizers: tuple[QuantizerRecord, ...]
    coverage: Coverage


def plan_record(plan: Plan) -> PlanRecord:
    """`plan` as data."""
    edges: dict[str, list[EdgeRecord]] = {}
    for mark in marks(plan.marked):
        edges.setdefault(mark.name, []).append(EdgeRecord(source=mark.source, user=mark.user))
    quantizers = tuple(
        QuantizerRecord(
            name=one.name, scheme=one.scheme, constant=one.constant, edges=tuple(edges[one.name]), sites=one.sites
        )
        for one in plan.quantizers
    )
    return PlanRecord(target=plan.target, rules=plan.rules, quantizers=quantizers, coverage=plan.coverage)


class NetworkRecord(BaseModel):
    """A quantized network without its tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    graph: GraphRecord
    plan: PlanRecord
    method: str
    tensors: dict[str, StoredTensor]
    params: dict[str, StoredParams]
    notes: tuple[str, ...] = ()
    samples: list[CallRecord] = []


def network_of(
    record: NetworkRecord, tensors: Mapping[str, Tensor], *, operators: Collection[str], limits: Limits
) -> Quantized:
    """The network; quantized weights are float again.

    raises  QuantizationError for what `graph_from` refuses, and for tensors or examples that take more than is allowed
    """
    schemes = {quantizer.name: quantizer.scheme for quantizer in record.plan.quantizers}
    if len(schemes) < len(record.plan.quantizers):
        raise refused("plan", "two quantizers of it have one name")
    values = {
        name: QParams(scale=tensors[at.scale], zero_point=tensors[at.zero_point], scheme=schemes[name])
        for name, at in record.params.items()
    }
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    unpacked = sum(4 * tensors[at.key].numel() for at in record.tensors.values())
    if unpacked > max(GROWTH * stored, SMALL):
        raise refused(
            "tensors", f"its parameters take {unpacked / 1e6:.0f} MB, {stored / 1e6:.0f} MB of which it holds"
        )
    real = {name: _real(at, tensors, values) for name, at in record.tensors.items()}
    example = sum(map(_bytes_of_example, record.graph.example))
    if example > limits.bytes:
        raise refused("example", f"its example takes {example / 1e6:.3g} MB", RAISE)
    graph = graph_from(record.graph, real, operators=operators)
    check_graph(graph)
    plan = _plan(record.plan, graph)
    known = {quantizer.name for quantizer in plan.quantizers}  # what a product of a tensor with itself had twice is one
    values = {name: found for name, found in values.items() if name in known}
    return Quantized(plan=plan, values=values, method=record.method, notes=record.notes)


def _plan(stated: PlanRecord, graph: Graph) -> Plan:
    """The plan; QuantizationError if it names nodes that `graph` does not have, or that do not read what it says."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    for one in stated.quantizers:
        seen = next(filter(None, (_misread(nodes, edge) for edge in one.edges)), None)
        if not one.edges or not one.sites:
            seen = "it rounds nothing"
        elif seen is None and one.constant != all(nodes[edge.source].op == "get_attr" for edge in one.edges):
            seen = f"what it rounds is {'not' if one.constant else 'nothing but'} parameters"
        if seen is not None:
            raise refused(one.name, seen)
    found = [Mark(one.name, edge.source, edge.user) for one in stated.quantizers for edge in one.edges]
    quantizers = tuple(
        Quantizer(name=one.name, scheme=one.scheme, constant=one.constant, sites=one.sites) for one in stated.quantizers
    )
    return planned(graph, found, stated.target, stated.rules, quantizers, stated.coverage)


def _real(at: StoredTensor, tensors: Mapping[str, Tensor], values: Mapping[str, QParams]) -> Tensor:
    stored = tensors[at.key]
    return stored if at.quantizer is None else dequantize(stored, values[at.quantizer])


def _bytes_of_example(record: InputRecord) -> float:
    return 8.0 * math.prod(record.shape) if record.shape is not None else 0.0


def check_network(net: Quantized, limits: Limits) -> None:
    """Raise QuantizationError if the operations do not fit together, the parameters do not fit them, or a call on the
    example or on one of the samples takes more than `limits`.
    """
    check_cost(net.graph.module, tree_leaves((net.graph.example_args, net.graph.example_kwargs)), limits, recorded=True)
    _check_scales(net)
    signature = signature_of(net.graph)
    for args, kwargs in net.samples:
        signature.flatten(args, kwargs)
        check_cost(net.graph.module, tree_leaves((args, kwargs)), limits, recorded=False)


def _misread(nodes: Mapping[str, Node], edge: EdgeRecord) -> str | None:
    missing = {edge.source, edge.user} - nodes.keys()
    if missing:
        return f"the graph has no {min(missing)!r}"
    if nodes[edge.source] not in nodes[edge.user].all_input_nodes:
        return f"{edge.user!r} does not read {edge.source!r} in the graph"
    return None if is_floating(nodes[edge.source]) else f"{edge.source!r} is no floating-point tensor in the graph"


def _check_scales(net: Quantized) -> None:
    """A scale for every channel that there is, no more and no fewer."""
    rounded = sources(net.plan.marked)
    for quantizer in net.plan.quantizers:
        for source in rounded[quantizer.name]:
            shape, scheme = source.meta["val"].shape, quantizer.scheme
            wanted = [] if scheme.rows else [int(size) for size in scheme.scale_shape(shape)]
            found = list(net.values[quantizer.name].scale.shape)
            if wanted != found:
                raise refused(quantizer.name, f"it has scales {found}, where {source.name} needs {wanted}")


def check_evidence(net: Quantized, stated: Outputs | None) -> Outputs:
    """What the simulation returns here for the samples of `net`.

    stated  what the file says that it returned where the network was saved
    raises  QuantizationError if that is another network's
    """
    calls = calls_of(net.graph, net.samples)
    found = simulated(net, calls)
    if stated is None:
        return found
    same = [[leaf.shape for leaf in leaves] for leaves in stated] == [
        [leaf.shape for leaf in leaves] for leaves in found
    ]
    seen = agreement(found, stated, lambda: moved(net, calls, 2**-10)) if same else None
    if seen is None or not seen.holds:
        how = seen or "of other shapes"
        raise refused(
            "samples.safetensors",
            f"the outputs that it states for its samples are not its own: they are {how}",
            "the file was altered; save the network again",
        )
    return found


def readable(path: str | PathLike[str], what: str = "its contents do not fit together") -> AbstractContextManager[None]:
    """Whatever goes wrong with what a file holds, as one error that names the file."""
    return reading(asked="load a saved network", seen=what, remedy=_REMEDY, site=str(path))


def unreadable(path: str | PathLike[str], seen: str) -> QuantizationError:
    """That the file at `path` is no network that was saved."""
    return QuantizationError(
        asked="load a saved network",
        seen=seen,
        remedy=_REMEDY,
        site=str(path),
    )
