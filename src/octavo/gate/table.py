"""The record of a check on the console: tables that fit 100 columns."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from octavo.gate.card import integers, megabytes
from octavo.gate.names import short
from octavo.gate.record import Check

COLOURS = {"met": "green", "not met": "red", "could not tell": "yellow"}
WIDTH = 100


def show(found: Check, console: Console) -> None:
    """Print what was found, and the verdict last."""
    width = min(WIDTH, console.width)
    for table in (_sides(found), _outputs(found), _samples(found), _classes(found)):
        if table.row_count:
            console.print(table, width=width)
    for layer in found.int8_network.ran.in_float if found.int8_network.ran.on_integers else ():
        console.print(Text(f"in float: {short(layer.layer, 60)} ({short(layer.kernel, 24)})"), width=width)
    for note in found.notes:
        console.print(Text(note), width=width)
    console.print(Text(found.verdict, style=f"bold {COLOURS[found.verdict]}"), Text(found.reason), width=width)


def _sides(found: Check) -> Table:
    table = _table("", "float", "int8")
    both = found.float_network, found.int8_network
    if found.score is not None:
        scores = (f"{score:.5g}" for score in (found.score.float_score, found.score.int8_score))
        table.add_row(found.score.measure, *scores)
    table.add_row("network", *(Text(short(side.name)) for side in both))
    table.add_row("run by", *(Text(short(side.runtime)) for side in both))
    table.add_row("on integers", *(integers(side.ran) for side in both))
    table.add_row("size", *(megabytes(side) for side in both))
    if found.latency is not None:
        times = found.latency.float_times, found.latency.int8_times
        shown = (f"{one.median_ms:.3g} ms ({one.p10_ms:.3g} … {one.p90_ms:.3g})" for one in times)
        table.add_row(f"a call, batch {found.latency.batch}", *shown)
    return table


def _outputs(found: Check) -> Table:
    table = _table("output", "SQNR", "same decision", "largest error")
    for one in found.outputs:
        noise = "identical" if one.identical else "–" if one.sqnr_db is None else f"{one.sqnr_db:.1f} dB"
        same = "–" if one.agreement is None else f"{one.agreement:.2f} %"
        table.add_row(Text(short(one.name)), noise, same, f"{one.largest_error:.3g}")
    return table


def _samples(found: Check) -> Table:
    table = _table("worst samples", "float", "int8", "SQNR", "label: chosen")
    for one in found.worst_samples[:5]:
        noise = "–" if one.sqnr_db is None else f"{one.sqnr_db:.1f} dB"
        chosen = "–" if one.label is None else f"{one.label}: {one.float_class} → {one.int8_class}"
        table.add_row(str(one.sample), f"{one.float_score:.4g}", f"{one.int8_score:.4g}", noise, chosen)
    return table


def _classes(found: Check) -> Table:
    table = _table("worst classes", "samples", "float", "int8")
    for one in found.worst_classes[:5]:
        table.add_row(str(one.label), str(one.samples), f"{one.float_recall:.1f} %", f"{one.int8_recall:.1f} %")
    return table


def _table(*headings: str) -> Table:
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table
