"""Sizes that depend on the inputs, as data: an integer, the name of a symbol, or [function, argument, …]."""

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import count
from typing import Any

from octavo_serve.errors import QuantizationError, refused

# More than any network has.
LARGEST = 2**40  # the number that a size is, and every number on the way to it
PARTS, DEPTH, POWER = 200, 30, 8  # symbols, numbers and functions in its expression; how deep; exponents


def size_of(record: Any, symbols: Mapping[str, int]) -> int:
    """The whole number that a size is, with these `symbols`.

    raises  QuantizationError for what no network has; KeyError for a symbol that is not known
    """
    found = _number(record, symbols, count(), 0)
    if found.denominator != 1:
        raise _absurd(f"it is {found}")
    return int(found)


def check_size(record: Any, depth: int = 0) -> None:
    """Raise QuantizationError for what is neither a number from 0 on, a symbol nor made of functions of those."""
    if isinstance(record, str) or (type(record) is int and (record >= 0 or depth)):
        return
    known = isinstance(record, list) and len(record) > 1 and isinstance(record[0], str) and record[0] in _FUNCTIONS
    if not known or depth > DEPTH:
        raise _absurd("it is made of what are no functions of sizes")
    for argument in record[1:]:
        check_size(argument, depth + 1)


def _number(record: Any, symbols: Mapping[str, int], parts: Iterator[int], depth: int) -> Fraction:
    if next(parts) >= PARTS or depth > DEPTH:
        raise _absurd(f"its expression has more than {PARTS} parts, or {DEPTH} within one another")
    if isinstance(record, int):
        return bounded(record)
    if isinstance(record, str):
        return Fraction(symbols[record])
    if not (isinstance(record, list) and record and isinstance(record[0], str) and record[0] in _FUNCTIONS):
        raise _absurd("it is made of what are no functions of sizes")
    name, *arguments = record
    numbers = [_number(argument, symbols, parts, depth + 1) for argument in arguments]
    try:
        return bounded(_FUNCTIONS[name](*numbers))
    except ZeroDivisionError as error:
        raise _absurd("it divides by zero") from error
    except (TypeError, ValueError) as error:
        raise _absurd(f"{name} is not computed from {len(numbers)} numbers") from error


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or not -POWER <= exponent <= POWER:
        raise _absurd(f"it is a power with exponent {exponent}")
    return Fraction(base ** int(exponent))


def _floor(of: Fraction, by: Fraction) -> Fraction:
    return Fraction(of // by)


_FUNCTIONS: dict[str, Callable[..., Fraction]] = {  # as torch and sympy call them
    "Rational": lambda p, q: p / q,
    "Add": lambda *terms: sum(terms, Fraction(0)),
    "Mul": lambda *factors: math.prod(factors, start=Fraction(1)),
    "Pow": _power,
    "PowByNatural": _power,
    "Max": lambda *sizes: max(sizes),
    "Min": lambda *sizes: min(sizes),
    "FloorDiv": _floor,
    "CleanDiv": _floor,
    "CeilDiv": lambda of, by: Fraction(-(-of // by)),
    "Mod": lambda of, by: of % by,
    "PythonMod": lambda of, by: of % by,
    "ModularIndexing": lambda of, by, modulus: (of // by) % modulus,
}


def bounded(number: Fraction | int) -> Fraction:
    """`number`, if a size can be it; else QuantizationError."""
    if not -LARGEST <= number <= LARGEST:
        raise _absurd(f"it is beyond {LARGEST:.0e}")
    return Fraction(number)


def _absurd(seen: str) -> QuantizationError:
    return refused(None, f"a size in it is none that a network has: {seen}")
