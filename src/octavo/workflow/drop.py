"""How a drop is said: "1%", 0.01 and "0.3 points" mean the same in Python, in a recipe and on the command line."""

import re

from octavo.errors import QuantizationError

LARGE = 0.2  # a bare number in text from here up may be meant in the metric's own unit, as it was of old

_SAID = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+))(?:e([-+]?\d{1,4}))?\s*(%|points?)?\s*", re.IGNORECASE)


def drop_of(said: str | float, relative: bool | None = None) -> tuple[float, bool]:
    """(the drop, whether it is a share of the float score, else in the metric's own unit).

    said      "1%" is a share of the float score; "0.3 points" are in the metric's own unit, whatever that is; a bare
              number, in text or not, is a share, so 0.01 is 1 %, unless `relative` is False
    relative  whether a bare number is a share; None where nothing was said of it
    raises    QuantizationError for any other text, for a unit that `relative` contradicts, and for a bare number in
              text that is LARGE: hardly a share, and of old the command line had it in the metric's own unit
    """
    if not isinstance(said, str):
        return float(said), relative is not False
    match = _SAID.fullmatch(said)
    if match is None:
        raise _no_drop(
            said,
            "it is neither a share nor points",
            'write "1%" (of the float score) or "0.3 points" (in the metric\'s own unit)',
        )
    digits, exponent, unit = match[1], int(match[2] or 0), (match[3] or "").lower()
    number = float(f"{digits}e{exponent}")
    if unit:
        share = unit == "%"
        if relative is not None and relative != share:
            raise _no_drop(said, f"relative={relative} says something else", "leave relative= out")
        return float(f"{digits}e{exponent - 2}") if share else number, share  # 0.7 / 100 is not 0.007
    if relative is None and number >= LARGE:
        raise _no_drop(
            said,
            f"a bare number is a share of the float score, {100 * number:g} %; of old it was in the metric's own unit",
            f'write "{100 * number:g}%" or "{number:g} points", whichever is meant',
        )
    return number, relative is not False


def _no_drop(said: str, seen: str, remedy: str) -> QuantizationError:
    return QuantizationError(asked=f"allow a drop of {said[:80]!r}", seen=seen, remedy=remedy, site="max_drop")


def in_words(drop: float, *, relative: bool) -> str:
    """As a person would say it: "1 % of the float score", "0.3 points, in the metric's own unit"."""
    if relative:
        return f"{100 * drop:g} % of the float score"
    return f"{drop:g} point{'' if drop == 1 else 's'}, in the metric's own unit"
