"""One scale for tensors that are read alone here and through a concat there, unless that costs a reader its integers.

A plan gives every reader a quantizer of its own for the tensors that it reads. Engines are fastest where a tensor is
rounded once, so what is known after calibration decides: readers of a common tensor share one quantizer, of the range
of all that they read, but for those whose own step would be less than a third of the shared one. So do a reader that
could have a scale for each channel, a depthwise convolution, and one that cannot, if that loses it less than a bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce

from torch.fx import Node

from octavo.network.marker import renamed, sources
from octavo.network.plan import Plan, Quantizer
from octavo.network.target import Target
from octavo.numerics.affine import QParams
from octavo.numerics.channels import ChannelHistogram
from octavo.numerics.histogram import Histogram
from octavo.numerics.scheme import Scheme

APART = 2.0  # steps of the channels, in the mean square, that one step for all may be: one bit
COARSEST = 3.0  # steps of its own that a shared step may be: 2 where only the reader's tensors are never negative

Seen = Histogram | ChannelHistogram
Ranges = Callable[[Quantizer, Seen], QParams]


def joined(
    plan: Plan, values: Mapping[str, QParams], seen: Mapping[str, Seen], ranges: Ranges
) -> tuple[Plan, dict[str, QParams]]:
    """`plan` and `values` with one quantizer where readers of a common tensor can share it.

    seen    what each quantizer of `plan` saw
    ranges  the scale of a quantizer for what was seen
    """
    quantizers, found = {q.name: q for q in plan.quantizers}, dict(values)
    names: dict[str, str] = {}
    rounded = {name: set(nodes) for name, nodes in sources(plan.marked).items()}

    def unite(members: Sequence[Quantizer], whole: Quantizer, scale: QParams) -> None:
        for member in members:
            del quantizers[member.name], found[member.name]
            names[member.name] = whole.name
        quantizers[whole.name], found[whole.name] = whole, scale
        rounded[whole.name] = {source for member in members for source in rounded[member.name]}

    for family in _families(plan, rounded):
        members = list(family)
        while len(members) > 1:
            whole = together(members, _widest(members, plan.target))
            histogram = reduce(Histogram.merge, (one for m in members if isinstance(one := seen[m.name], Histogram)))
            shared = ranges(whole, histogram)
            fitting = [one for one in members if float(shared.scale) <= COARSEST * float(values[one.name].scale)]
            if len(fitting) == len(members):
                unite(members, whole, shared)
                break
            members = fitting
    one_scale = list(plan.coverage.per_tensor)
    for whole, channels in _pairs(list(quantizers.values()), rounded, plan.target):
        steps = found[whole.name].scale.double() / found[channels.name].scale.double()
        if float(steps.square().mean()) <= APART**2:
            both = [quantizers[whole.name], channels]  # it may have taken in others already
            unite(both, together(both, whole.scheme), found[whole.name])
            one_scale += [site.layer for site in channels.sites]
    order = {q.name: number for number, q in enumerate(plan.quantizers)}
    rest = sorted(quantizers.values(), key=lambda q: order[q.name])
    coverage = replace(plan.coverage, per_tensor=tuple(one_scale))
    plan = replace(plan, marked=renamed(plan.marked, names), quantizers=tuple(rest), coverage=coverage)
    return plan, {q.name: found[q.name] for q in rest}


def together(members: Sequence[Quantizer], scheme: Scheme) -> Quantizer:
    """One quantizer in the place of all `members`."""
    return replace(members[0], scheme=scheme, sites=tuple(site for member in members for site in member.sites))


def _families(plan: Plan, rounded: Mapping[str, set[Node]]) -> Iterator[list[Quantizer]]:
    """The quantizers of activations that have a tensor in common, directly or by others, and could have one scheme."""
    activations = [q for q in plan.quantizers if not q.constant and q.scheme.axis is None and not q.scheme.rows]
    first: dict[tuple[Node, Scheme], int] = {}  # {(tensor, scheme): the first that reads it}
    family = list(range(len(activations)))
    for number, quantizer in enumerate(activations):
        asked = _asked_for(quantizer.scheme, plan.target)
        for source in rounded[quantizer.name]:
            other = _root(family, first.setdefault((source, asked), number))
            family[max(other, _root(family, number))] = min(other, _root(family, number))
    families: dict[int, list[Quantizer]] = {}
    for number, quantizer in enumerate(activations):
        families.setdefault(_root(family, number), []).append(quantizer)
    yield from (members for members in families.values() if len(members) > 1)


def _pairs(
    quantizers: Sequence[Quantizer], rounded: Mapping[str, set[Node]], target: Target
) -> Iterator[tuple[Quantizer, Quantizer]]:
    """(one with a scale for the tensor, one with a scale for each channel) that round the same, and could be one."""
    activations = [one for one in quantizers if not one.constant and not one.scheme.rows]
    for channels in (one for one in activations if one.scheme.axis is not None):
        asked = replace(channels.scheme, axis=None)
        for whole in activations:
            one = _asked_for(whole.scheme, target) == _asked_for(asked, target)
            if one and rounded[channels.name] <= rounded[whole.name]:
                yield whole, channels
                break


def _root(family: list[int], number: int) -> int:
    while family[number] != number:
        family[number] = number = family[family[number]]  # halves the way for whoever comes next
    return number


def _asked_for(scheme: Scheme, target: Target) -> Scheme:
    """The scheme before `make_plan` knew that the tensor is never negative."""
    if target.nonnegative is not None and scheme == replace(target.nonnegative, bits=scheme.bits):
        return replace(target.convolution or target.activation, bits=scheme.bits)
    return scheme


def _widest(members: Sequence[Quantizer], target: Target) -> Scheme:
    """The scheme that can hold what any of `members` reads."""
    if len({member.scheme for member in members}) == 1:
        return members[0].scheme
    return _asked_for(members[0].scheme, target)
