"""Sharing: one quantizer for each produced tensor, however many operations read it and whatever moves it on the way.

A read is followed back through operations that do not change values (reshape, transpose, max-pool, slice, zero padding,
concat) to where the tensor is produced. The readers of one produced tensor share a quantizer; the inputs of a concat
share one too, because its output can have only one scale. Who reads one of those inputs alone has a quantizer of its
own; `join.py` decides, when the ranges are known, whether it stays. The way back stops where a reader on the way wants
the float value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from octavo.network.operations import TAKES_A_PART, keeps_axis, preserves_values
from octavo.network.rule import Site
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Edge:
    """`user` reads the quantized value of `source`: names of graph nodes."""

    source: str
    user: str


@dataclass(frozen=True, kw_only=True)
class Read:
    """`node` reads `source`, quantized by `scheme`, at `site`."""

    site: Site
    node: Node
    source: Node
    scheme: Scheme


@dataclass(frozen=True, kw_only=True)
class Group:
    """Reads that share one scale: the tensors they read, where those are produced, and the edges to redirect."""

    scheme: Scheme
    sources: tuple[Node, ...]
    edges: tuple[Edge, ...]
    sites: tuple[Site, ...]


_Key = tuple[object, Scheme]
_Path = tuple[tuple[Node, Node], ...]  # (where a tensor is produced, who reads it there)


def shared_reads(reads: Sequence[Read]) -> list[Group]:
    """The reads, grouped by the tensors that they share, in the order of their first read."""
    wanted = {(read.source, read.node): read.scheme for read in reads}
    crossed = {scheme: _crossed(_nodes(reads), scheme, wanted) for scheme in {read.scheme for read in reads}}
    paths = [crossed[read.scheme].get(read.source, ((read.source, read.node),)) for read in reads]
    parents: dict[_Key, _Key] = {}
    for read, path in zip(reads, paths, strict=True):
        for edge in path:  # what two reads are handed over by one edge is rounded once
            parents[_root(parents, (edge, read.scheme))] = _root(parents, _key(path, read.scheme))
    groups: dict[_Key, list[int]] = {}
    for index, (read, path) in enumerate(zip(reads, paths, strict=True)):
        groups.setdefault(_root(parents, _key(path, read.scheme)), []).append(index)
    return [_group([reads[i] for i in members], [paths[i] for i in members]) for members in groups.values()]


def _group(reads: list[Read], paths: list[_Path]) -> Group:
    pairs = dict.fromkeys(pair for path in paths for pair in path)
    return Group(
        scheme=reads[0].scheme,
        sources=tuple(dict.fromkeys(source for source, _ in pairs)),
        edges=tuple(Edge(source=source.name, user=user.name) for source, user in pairs),
        sites=tuple(read.site for read in reads),
    )


def _key(path: _Path, scheme: Scheme) -> _Key:
    """What reads must have in common to share a quantizer; tied weights are read by several nodes of one target."""
    return frozenset(str(source.target) if source.op == "get_attr" else source for source, _ in path), scheme


def _root(parents: dict[_Key, _Key], key: _Key) -> _Key:
    while parents.setdefault(key, key) != key:
        parents[key] = key = parents[parents[key]]  # halves the way for whoever comes next
    return key


def _nodes(reads: Sequence[Read]) -> list[Node]:
    return list(reads[0].node.graph.nodes) if reads else []


def _crossed(nodes: Sequence[Node], scheme: Scheme, wanted: Mapping[tuple[Node, Node], Scheme]) -> dict[Node, _Path]:
    """{node that quantization by `scheme` moves across: where its values are produced, and who reads them there}.

    Once backwards for the nodes of which every reader, direct or behind what moves it, wants `scheme`; once forwards
    for their producers: several for a concat.
    """
    crossable: set[Node] = set()
    for node in reversed(nodes):
        if (
            preserves_values(node)
            and not _is_part(node)
            and not scheme.rows  # what is moved has other rows
            and (scheme.axis is None or keeps_axis(node, scheme.axis))
            and all(wanted.get((node, user)) == scheme or user in crossable for user in node.users)
        ):
            crossable.add(node)
    found: dict[Node, _Path] = {}
    for node in nodes:
        if node in crossable:
            before = [source for source in node.all_input_nodes if isinstance(source.meta["val"], Tensor)]
            pairs = dict.fromkeys(pair for source in before for pair in found.get(source, ((source, node),)))
            found[node] = tuple(pairs)
    return found


def _is_part(node: Node) -> bool:
    """Whether `node` is one of the parts that a tensor is taken apart into: each has a range of its own.

    Query, key and value of a packed projection are such parts. A slice beside readers of the whole is none.
    """
    if node.target not in TAKES_A_PART:
        return False
    readers = list(node.all_input_nodes[0].users)
    return len(readers) > 1 and all(reader.target in TAKES_A_PART for reader in readers)
