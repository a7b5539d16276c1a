"""The record of a check as Markdown: for the page of a model, or a pull request.

Names of files, layers and outputs are others' text: they stand in backticks, in which nothing is markup.
"""

from octavo.exits import printable
from octavo.gate.names import quoted
from octavo.gate.record import Check, Failed
from octavo.gate.rows import Name, Table, tables

MARKS = {"met": "✅", "not met": "❌", "could not tell": "❔"}


def card(found: Check) -> str:
    """The whole card."""
    sides, *others = map(_markdown, tables(found))
    parts = [
        f"## {MARKS[found.verdict]} int8 check: {found.verdict}",
        found.reason,
        sides,
        _scored(found),
        _in_float(found),
        *others,
        "\n".join(f"- {note}" for note in found.notes),
        f"<sub>Octavo {found.versions.get('octavo', '')}, `octavo check`, exit code {found.exit_code}; "
        f"{quoted(str(found.machine.get('cpu', 'unknown CPU')))}, {found.machine.get('cores')} cores</sub>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def failed(found: Failed) -> str:
    """The card of a check that could not be made: so that no former one is taken for it."""
    where = f"{found.site}: " if found.site else ""
    said = f"{where}asked to {found.asked}, but {found.seen}; {found.remedy}."
    kept = printable(said).replace("`", "ˋ")
    return f"## ⚠️ int8 check: could not be made\n\n```text\n{kept}\n```\n"


def _markdown(table: Table) -> str:
    rows = [
        tuple(quoted(cell.text, cell.most) if isinstance(cell, Name) else cell for cell in row) for row in table.rows
    ]
    lines = [table.headings, ("---", *["---:"] * (len(table.headings) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _scored(found: Check) -> str:
    if found.score is None:
        return ""
    faster = "" if found.latency is None else f" A call is {found.latency.int8_is_faster_by:.3g} × as fast."
    samples = f"{found.data.samples} samples of {quoted(found.data.source)}"
    return f"Judged by {found.score.measure}: {found.score.why}. {samples}.{faster}"


def _in_float(found: Check) -> str:
    ran = found.int8_network.ran
    if not ran.on_integers or not ran.in_float:
        return ""
    listed = ", ".join(f"{quoted(one.layer)} ({quoted(one.kernel)})" for one in ran.in_float)
    more = (ran.products or 0) - ran.on_integers - len(ran.in_float)
    return f"In float: {listed}{f', and {more} more' if more > 0 else ''}."
