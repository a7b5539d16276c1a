"""Sharing: one quantizer for each produced tensor, however many operations read it and whatever moves it on the way.

A read is followed back through operations that do not change values (reshape, transpose, max-pool, slice, zero padding,
concat) to where the tensor is produced. The readers of one produced tensor share a quantizer; the inputs of a concat
share one too, because its output can have only one scale. Who reads one of those inputs alone has a quantizer of its
own; `join.py` decides, when the ranges are known, whether it stays. The way back stops where a reader on the way wants
the float value.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.fx import Node

from octavo.network.operations import TAKES_A_PART, Operand, keeps_axis, preserves_values
from octavo.numerics.scheme import Scheme

_Key = tuple[object, Scheme]
_Path = tuple[tuple[Node, Node], ...]  # (where a tensor is produced, who reads it there)


def shared(reads: Sequence[tuple[Operand, Scheme]]) -> list[tuple[list[int], _Path]]:
    """[(reads that share a scale, by number; where the tensors are produced that they read, and who reads them there)].

    In the order of their first read.
    """
    wanted = {(operand.source, operand.node): scheme for operand, scheme in reads}
    nodes = list(reads[0][0].node.graph.nodes) if reads else []
    crossed = {scheme: _crossed(nodes, scheme, wanted) for scheme in {scheme for _, scheme in reads}}
    paths = [crossed[scheme].get(operand.source, ((operand.source, operand.node),)) for operand, scheme in reads]
    parents: dict[_Key, _Key] = {}
    for (_, scheme), path in zip(reads, paths, strict=True):
        for pair in path:  # what two reads are handed over together is rounded once
            parents[_root(parents, (pair, scheme))] = _root(parents, _key(path, scheme))
    groups: dict[_Key, list[int]] = {}
    for number, ((_, scheme), path) in enumerate(zip(reads, paths, strict=True)):
        groups.setdefault(_root(parents, _key(path, scheme)), []).append(number)
    return [(own, tuple(dict.fromkeys(pair for number in own for pair in paths[number]))) for own in groups.values()]


def _key(path: _Path, scheme: Scheme) -> _Key:
    """What reads must have in common to share a quantizer; tied weights are read by several nodes of one target."""
    return frozenset(str(source.target) if source.op == "get_attr" else source for source, _ in path), scheme


def _root(parents: dict[_Key, _Key], key: _Key) -> _Key:
    while parents.setdefault(key, key) != key:
        parents[key] = key = parents[parents[key]]  # halves the way for whoever comes next
    return key


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
