"""One scale for tensors that are read alone here and through a concat there, unless that costs a reader its integers.

A plan gives every reader a quantizer of its own for the tensors that it reads. Engines are fastest where a tensor is
rounded once, so what is known after calibration decides: readers of a common tensor share one quantizer, of the range
of all that they read, but for those whose own step would be less than a third of the shared one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce

from octavo.network.plan import Plan, Quantizer
from octavo.network.target import Target
from octavo.numerics.affine import QParams
from octavo.numerics.histogram import Histogram
from octavo.numerics.scheme import Scheme

COARSEST = 3.0  # steps of its own that a shared step may be: 2 where only the reader's tensors are never negative

Ranges = Callable[[Quantizer, Histogram], QParams]


def joined(
    plan: Plan, values: Mapping[str, QParams], seen: Mapping[str, Histogram], ranges: Ranges
) -> tuple[Plan, dict[str, QParams]]:
    """`plan` and `values` with one quantizer where readers of a common tensor can share it.

    seen    what each quantizer of `plan` saw
    ranges  the scale of a quantizer for what was seen
    """
    quantizers, found = {q.name: q for q in plan.quantizers}, dict(values)
    for family in _families(plan):
        members = list(family)
        while len(members) > 1:
            whole = together(members, _widest(members, plan.target))
            histogram = reduce(Histogram.merge, (seen[member.name] for member in members))
            shared = ranges(whole, histogram)
            fitting = [one for one in members if float(shared.scale) <= COARSEST * float(values[one.name].scale)]
            if len(fitting) == len(members):
                for member in members:
                    del quantizers[member.name], found[member.name]
                quantizers[whole.name], found[whole.name] = whole, shared
                break
            members = fitting
    order = {q.name: number for number, q in enumerate(plan.quantizers)}
    rest = sorted(quantizers.values(), key=lambda q: order[q.name])
    return replace(plan, quantizers=tuple(rest)), {q.name: found[q.name] for q in rest}


def together(members: Sequence[Quantizer], scheme: Scheme) -> Quantizer:
    """One quantizer in the place of all `members`."""
    edges = dict.fromkeys(edge for member in members for edge in member.edges)
    sites = tuple(site for member in members for site in member.sites)
    return replace(members[0], scheme=scheme, edges=tuple(edges), sites=sites)


def _families(plan: Plan) -> Iterator[list[Quantizer]]:
    """The quantizers of activations that have a tensor in common, directly or by others, and could have one scheme."""
    activations = [quantizer for quantizer in plan.quantizers if not quantizer.constant]
    first: dict[tuple[str, Scheme], int] = {}  # {(tensor, scheme): the first that reads it}
    family = list(range(len(activations)))
    for number, quantizer in enumerate(activations):
        asked = _asked_for(quantizer.scheme, plan.target)
        for edge in quantizer.edges:
            other = _root(family, first.setdefault((edge.source, asked), number))
            family[max(other, _root(family, number))] = min(other, _root(family, number))
    families: dict[int, list[Quantizer]] = {}
    for number, quantizer in enumerate(activations):
        families.setdefault(_root(family, number), []).append(quantizer)
    yield from (members for members in families.values() if len(members) > 1)


def _root(family: list[int], number: int) -> int:
    while family[number] != number:
        family[number] = number = family[family[number]]  # halves the way for whoever comes next
    return number


def _asked_for(scheme: Scheme, target: Target) -> Scheme:
    """The scheme before `make_plan` knew that the tensor is never negative."""
    if target.nonnegative is not None and scheme == replace(target.nonnegative, bits=scheme.bits):
        return replace(target.activation, bits=scheme.bits)
    return scheme


def _widest(members: Sequence[Quantizer], target: Target) -> Scheme:
    """The scheme that can hold what any of `members` reads."""
    if len({member.scheme for member in members}) == 1:
        return members[0].scheme
    return _asked_for(members[0].scheme, target)
