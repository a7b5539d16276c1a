"""The record of a check as tables of text: what the console and the card show, each in its own way.

A `Name` is somebody else's text; whoever shows it sees to it that nothing in it is markup.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from octavo.engines.ran import per_cent
from octavo.gate.names import WIDEST
from octavo.gate.record import Check, Ran, Side

SHOWN = 5  # samples, and classes


@dataclass(frozen=True)
class Name:
    """Somebody else's text, and how many characters of it are shown."""

    text: str
    most: int = WIDEST


Cell = str | Name
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first column is that of what they are about."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]


def tables(found: Check) -> Iterable[Table]:
    """Those that have a row."""
    every = (
        Table(("", "float", "int8"), tuple(_sides(found))),
        Table(("output", "SQNR", "same decision", "largest error"), tuple(_outputs(found))),
        Table(("worst samples", "float", "int8", "SQNR", "label: chosen"), tuple(_samples(found))),
        Table(("worst classes", "samples", "float", "int8"), tuple(_classes(found))),
    )
    return (table for table in every if table.rows)


def _sides(found: Check) -> Iterable[Row]:
    both = found.float_network, found.int8_network
    if found.score is not None:
        scores = (f"{score:.5g}" for score in (found.score.float_score, found.score.int8_score))
        yield found.score.measure, *scores
    yield "network", *(Name(side.name) for side in both)
    yield "run by", *(Name(side.runtime) for side in both)
    yield "on integers", *(_integers(side.ran) for side in both)
    yield "size", *(_megabytes(side) for side in both)
    if found.latency is not None:
        times = found.latency.float_times, found.latency.int8_times
        shown = (f"{one.median_ms:.3g} ms ({one.p10_ms:.3g} … {one.p90_ms:.3g})" for one in times)
        yield f"a call, batch {found.latency.batch}", *shown


def _integers(ran: Ran) -> str:
    """What ran on integers, in few words."""
    if ran.products is None:
        return "unknown"
    if not ran.products:
        return "no products"
    share = ran.share_of_multiplications
    return f"{ran.on_integers} of {ran.products}" + ("" if share is None else f", {per_cent(share)} of the work")


def _megabytes(side: Side) -> str:
    return "–" if side.size_mb is None else f"{side.size_mb:.3g} MB"


def _outputs(found: Check) -> Iterable[Row]:
    for one in found.outputs:
        noise = "identical" if one.identical else _in_decibels(one.sqnr_db)
        same = "–" if one.agreement is None else f"{one.agreement:.2f} %"
        yield Name(one.name), noise, same, f"{one.largest_error:.3g}"


def _in_decibels(number: float | None) -> str:
    return "–" if number is None else f"{number:.1f} dB"


def _samples(found: Check) -> Iterable[Row]:
    for one in found.worst_samples[:SHOWN]:
        chosen = "–" if one.label is None else f"{one.label}: {one.float_class} → {one.int8_class}"
        scores = f"{one.float_score:.4g}", f"{one.int8_score:.4g}"
        yield str(one.sample), *scores, _in_decibels(one.sqnr_db), chosen


def _classes(found: Check) -> Iterable[Row]:
    for one in found.worst_classes[:SHOWN]:
        yield str(one.label), str(one.samples), f"{one.float_recall:.1f} %", f"{one.int8_recall:.1f} %"
