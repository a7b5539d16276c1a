"""The record of a check on the console: tables that fit 100 columns."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from octavo.gate.names import short
from octavo.gate.record import Check
from octavo.gate.rows import Name, Table as Rows, tables

COLOURS = {"met": "green", "not met": "red", "could not tell": "yellow"}
WIDTH = 100


def show(found: Check, console: Console) -> None:
    """Print what was found, and the verdict last."""
    width = min(WIDTH, console.width)
    for rows in tables(found):
        console.print(_table(rows), width=width)
    for layer in found.int8_network.ran.in_float if found.int8_network.ran.on_integers else ():
        console.print(Text(f"in float: {short(layer.layer, 60)} ({short(layer.kernel, 24)})"), width=width)
    for note in found.notes:
        console.print(Text(note), width=width)
    console.print(Text(found.verdict, style=f"bold {COLOURS[found.verdict]}"), Text(found.reason), width=width)


def _table(rows: Rows) -> Table:
    table = Table()
    for number, heading in enumerate(rows.headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows.rows:
        table.add_row(*(Text(short(cell.text, cell.most)) if isinstance(cell, Name) else cell for cell in row))
    return table
