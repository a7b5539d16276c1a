"""Which scheme a site gets, the rule's or the target's for its kind; along which axes there may be several scales."""

from collections.abc import Container
from dataclasses import replace

from torch.fx import Node

from octavo.errors import QuantizationError
from octavo.network.edit import is_constant
from octavo.network.operations import OUTPUT, Operand, is_factor, lone_channels
from octavo.network.rule import Rule, Site
from octavo.network.target import Target
from octavo.numerics.scheme import Scheme


def scheme_of(site: Site, operand: Operand, rule: Rule, target: Target, convolved: Container[Node]) -> Scheme:
    """What the rule says, or else the target.

    convolved  the tensors that a convolution reads
    raises     QuantizationError for an axis along which there cannot be several scales
    """
    scheme = rule.scheme or _own(site, operand, target, convolved)
    if rule.bits is not None:
        scheme = replace(scheme, bits=rule.bits)
    if scheme.rows:
        return _by_rows(site, operand, scheme)
    if operand.axis is None:
        return scheme if scheme.axis is None else _along_free_axis(site, operand, scheme)
    if scheme.axis is None or scheme.block is not None or scheme.axis == operand.axis:
        return scheme
    if scheme.axis == 0:
        return replace(scheme, axis=operand.axis)
    raise QuantizationError(
        asked=f"quantize the weight along axis {scheme.axis}",
        seen=f"the output channels of {site.operation} weights lie along axis {operand.axis}",
        remedy="use axis=0, which stands for the output channel everywhere",
        site=site.name,
    )


def _along_free_axis(site: Site, operand: Operand, scheme: Scheme) -> Scheme:
    """`scheme` with its axis counted from the front; QuantizationError where the sum runs along that axis."""
    shape, free = operand.source.meta["val"].shape, sorted(operand.free)
    axis = scheme.axis + len(shape) if scheme.axis is not None and scheme.axis < 0 else scheme.axis
    seen = None
    if axis not in operand.free:
        seen = f"the integer sum of this {site.operation} runs along it, and a scale that varies inside is no factor"
    elif not isinstance(shape[axis], int):
        seen = "its size is only known when the network runs"
    elif scheme.block is not None:
        seen = f"the scheme has blocks of {scheme.block}, which only weights have"
    elif (
        not scheme.symmetric
        and site.role != OUTPUT
        and not any(is_constant(factor) for factor in operand.node.args[:2])
    ):
        seen = "its zero-points would meet sums that are only known when the network runs"
    if seen is None:
        return replace(scheme, axis=axis)
    where = "axis " + " or ".join(str(at) for at in free if isinstance(shape[at], int)) if free else "no axis"
    raise QuantizationError(
        asked=f"quantize the {site.role} {list(shape)} along axis {scheme.axis}",
        seen=seen,
        remedy=f"use a scheme without axis; scales may vary along {where} here",
        site=site.name,
    )


def _by_rows(site: Site, operand: Operand, scheme: Scheme) -> Scheme:
    """`scheme` with the axis of the rows that the sum runs along; QuantizationError where there are none."""
    rank = operand.source.meta["val"].ndim
    along = operand.along
    if along is not None and scheme.axis in (None, along, along + rank):
        return replace(scheme, axis=along)
    if operand.axis is not None:
        seen = "it is a constant, whose range is known before the network runs"
    elif along is None:
        seen = f"a sum of this {site.operation} does not run along one row alone"
    else:
        seen = f"the sum of this {site.operation} runs along axis {along}, not along axis {scheme.axis}"
    raise QuantizationError(
        asked=f"quantize the {site.role} by rows",
        seen=seen,
        remedy="give rows to the inputs of linears and matmuls, without an axis: Rule(operation=…, role=…, scheme=…)",
        site=site.name,
    )


def _own(site: Site, operand: Operand, target: Target, convolved: Container[Node]) -> Scheme:
    if operand.axis is not None:
        return target.weight
    if target.rows and operand.along is not None:
        bits = (target.factor or target.activation if is_factor(site.operation, site.role) else target.activation).bits
        return Scheme(bits=bits, rows=True, axis=operand.along)
    if is_factor(site.operation, site.role):
        return target.factor or target.activation
    # What is added to something is rounded as the convolution beside it rounds it: once.
    added = site.operation == "add" and operand.source in convolved
    scheme = (target.convolution if added or is_convolved(site) else None) or target.activation
    return replace(scheme, axis=lone_channels(operand) if target.channels else None)


def is_convolved(site: Site) -> bool:
    """Whether a convolution reads it as its input."""
    return site.role == "input" and site.operation.startswith("conv")


def is_own(scheme: Scheme, target: Target) -> bool:
    """Whether `scheme` is the target's own for activations (a rule's own scheme is never second-guessed)."""
    if scheme.rows:
        return target.rows
    own = [replace(one, bits=scheme.bits, axis=scheme.axis) for one in (target.activation, target.convolution) if one]
    return scheme in own
