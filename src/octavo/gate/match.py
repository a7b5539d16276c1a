"""Which array goes in where, and which output is compared with which: by name, or else in order."""

from collections.abc import Sequence

from octavo.errors import QuantizationError
from octavo.gate.network import Array, Arrays, Opened, Port, shaped


def placed(network: Opened, arrays: Arrays) -> dict[str, Array]:
    """`arrays` under the names of the inputs of `network`: by name, or else in order, if they fit.

    raises  QuantizationError naming the inputs and the arrays, if they do not
    """
    if network.inputs is None:
        return dict(arrays)
    by_name = _by_name(network.inputs, arrays)
    if by_name:
        for port in by_name:
            if reason := port.misfit(arrays[port.name]):
                raise _misfit(network, arrays, f"its input {port.name} does not fit: {reason}")
        return {port.name: arrays[port.name] for port in by_name}
    in_order = _in_order(network.inputs, arrays)
    if in_order is None:
        raise _misfit(network, arrays, "they fit neither by name nor in order")
    return in_order


def _by_name(ports: Sequence[Port], arrays: Arrays) -> list[Port]:
    """The inputs that have an array of their name; none if one is missing."""
    found = [port for port in ports if port.name in arrays]
    return found if all(port.name in arrays for port in ports if port.needed) else []


def _in_order(ports: Sequence[Port], arrays: Arrays) -> dict[str, Array] | None:
    """The arrays in the order of the inputs, if there are as many, all fit, and no name says otherwise."""
    names = [port.name for port in ports]
    needed = sum(port.needed for port in ports)
    if not needed <= len(arrays) <= len(ports):
        return None
    pairs = list(zip(ports, arrays.items(), strict=False))
    for port, (name, array) in pairs:
        if port.misfit(array) or (name in names and name != port.name):
            return None
    return {port.name: array for port, (_, array) in pairs}


def _misfit(network: Opened, arrays: Arrays, seen: str) -> QuantizationError:
    given = ", ".join(f"{name} {array.dtype} {shaped(array.shape)}" for name, array in arrays.items())
    wanted = ", ".join(map(str, network.inputs or ()))
    return QuantizationError(
        asked=f"run {network.name} on {given}",
        seen=seen,
        remedy=f"name the arrays after its inputs, in their dtypes, with the samples along the first axis: {wanted}",
    )


def paired_outputs(reference: Sequence[str], other: Sequence[str]) -> dict[str, str]:
    """{output of the float network: that of the int8 one}: by name where the names are the same, or else in order.

    raises  QuantizationError for another number of outputs
    """
    if set(reference) == set(other):
        return {name: name for name in reference}
    if len(reference) != len(other):
        raise QuantizationError(
            asked="compare the outputs of two networks",
            seen=f"the float one returns {', '.join(reference)} and the int8 one {', '.join(other)}",
            remedy="check networks that return the same outputs",
        )
    return dict(zip(reference, other, strict=True))
