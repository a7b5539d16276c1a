"""Sharing: one quantizer for each produced tensor, however many operations read it and whatever moves it on the way.

A read is followed back through operations that do not change values (reshape, transpose, max-pool, slice, zero padding,
concat) to where the tensor is produced. The readers of one produced tensor share a quantizer; the inputs of a concat
share one too, because its output can have only one scale. Who reads one of those inputs alone has a quantizer of its
own; `join.py` decides, when the ranges are known, whether it stays. The way back stops where a reader on the way wants
the float value.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from octavo.network.operations import TAKES_A_PART, preserves_values
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


def shared_reads(reads: Sequence[Read]) -> list[Group]:
    """The reads, grouped by the tensors that they share, in the order of their first read."""
    wanted = {(read.source, read.node): read.scheme for read in reads}
    paths = [list(_edges(read.source, read.node, read.scheme, wanted)) for read in reads]
    parents: dict[_Key, _Key] = {}
    for read, path in zip(reads, paths, strict=True):
        for edge in path:  # what two reads are handed over by one edge is rounded once
            parents[_root(parents, (edge, read.scheme))] = _root(parents, _key(path, read.scheme))
    groups: dict[_Key, list[int]] = {}
    for index, (read, path) in enumerate(zip(reads, paths, strict=True)):
        groups.setdefault(_root(parents, _key(path, read.scheme)), []).append(index)
    return [_group([reads[i] for i in members], [paths[i] for i in members]) for members in groups.values()]


def _group(reads: list[Read], paths: list[list[tuple[Node, Node]]]) -> Group:
    pairs = dict.fromkeys(pair for path in paths for pair in path)
    return Group(
        scheme=reads[0].scheme,
        sources=tuple(dict.fromkeys(source for source, _ in pairs)),
        edges=tuple(Edge(source=source.name, user=user.name) for source, user in pairs),
        sites=tuple(read.site for read in reads),
    )


def _key(path: list[tuple[Node, Node]], scheme: Scheme) -> _Key:
    """What reads must have in common to share a quantizer; tied weights are read by several nodes of one target."""
    return frozenset(str(source.target) if source.op == "get_attr" else source for source, _ in path), scheme


def _root(parents: dict[_Key, _Key], key: _Key) -> _Key:
    while key in parents and parents[key] != key:
        key = parents[key]
    return key


def _edges(
    source: Node, user: Node, scheme: Scheme, wanted: dict[tuple[Node, Node], Scheme]
) -> Iterator[tuple[Node, Node]]:
    """(where the tensor is produced, who reads it there): several for a concat."""
    if not _crossable(source, scheme, wanted):
        yield source, user
        return
    for before in source.all_input_nodes:
        if isinstance(before.meta["val"], Tensor):
            yield from _edges(before, source, scheme, wanted)


def _crossable(node: Node, scheme: Scheme, wanted: dict[tuple[Node, Node], Scheme]) -> bool:
    """Whether everything that reads `node`, directly or moved, wants it quantized by `scheme`."""
    if not preserves_values(node) or _is_part(node):
        return False
    return all(wanted.get((node, user)) == scheme or _crossable(user, scheme, wanted) for user in node.users)


def _is_part(node: Node) -> bool:
    """Whether `node` is one of the parts that a tensor is taken apart into: each has a range of its own.

    Query, key and value of a packed projection are such parts. A slice beside readers of the whole is none.
    """
    if node.target not in TAKES_A_PART:
        return False
    readers = list(node.all_input_nodes[0].users)
    return len(readers) > 1 and all(reader.target in TAKES_A_PART for reader in readers)
