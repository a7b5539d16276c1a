"""The record of a check as Markdown: for the page of a model, or a pull request.

Names of files, layers and outputs are others' text: they stand in backticks, in which nothing is markup.
"""

from collections.abc import Iterable, Sequence

from octavo.engines.ran import per_cent
from octavo.gate.names import quoted
from octavo.gate.record import Check, Failed, Ran, Side

MARKS = {"met": "✅", "not met": "❌", "could not tell": "❔"}


def card(found: Check) -> str:
    """The whole card."""
    parts = [
        f"## {MARKS[found.verdict]} int8 check: {found.verdict}",
        found.reason,
        _table(("", "float", "int8"), _sides(found)),
        _scored(found),
        _in_float(found),
        _outputs(found),
        _samples(found),
        _classes(found),
        "\n".join(f"- {note}" for note in found.notes),
        f"<sub>Octavo {found.versions.get('octavo', '')}, `octavo check`, exit code {found.exit_code}; "
        f"{quoted(str(found.machine.get('cpu', 'unknown CPU')))}, {found.machine.get('cores')} cores</sub>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def failed(found: Failed) -> str:
    """The card of a check that could not be made: so that no former one is taken for it."""
    where = f"{found.site}: " if found.site else ""
    said = f"{where}asked to {found.asked}, but {found.seen}; {found.remedy}."
    kept = "".join(one if one.isprintable() else " " for one in said).replace("`", "ˋ")
    return f"## ⚠️ int8 check: could not be made\n\n```text\n{kept}\n```\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    listed = [tuple(row) for row in rows]
    if not listed:
        return ""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *listed]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sides(found: Check) -> list[tuple[str, str, str]]:
    both = found.float_network, found.int8_network
    rows = [
        ("network", *(quoted(side.name, 30) for side in both)),
        ("run by", *(quoted(side.runtime, 30) for side in both)),
        ("on integers", *(integers(side.ran) for side in both)),
        ("size", *(megabytes(side) for side in both)),
    ]
    if found.score is not None:
        scores = (f"{score:.5g}" for score in (found.score.float_score, found.score.int8_score))
        rows.insert(0, (f"**{found.score.measure}**", *scores))
    if found.latency is not None:
        times = found.latency.float_times, found.latency.int8_times
        shown = (f"{one.median_ms:.3g} ms ({one.p10_ms:.3g} … {one.p90_ms:.3g})" for one in times)
        rows.append((f"a call, batch {found.latency.batch}", *shown))
    return [(row[0], row[1], row[2]) for row in rows]


def integers(ran: Ran) -> str:
    """What ran on integers, in few words."""
    if ran.products is None:
        return "unknown"
    if not ran.products:
        return "no products"
    share = ran.share_of_multiplications
    return f"{ran.on_integers} of {ran.products}" + ("" if share is None else f", {per_cent(share)} of the work")


def megabytes(side: Side) -> str:
    """The size of one network."""
    return "–" if side.size_mb is None else f"{side.size_mb:.3g} MB"


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


def _outputs(found: Check) -> str:
    rows = [
        (
            quoted(one.name),
            "identical" if one.identical else "–" if one.sqnr_db is None else f"{one.sqnr_db:.1f} dB",
            "–" if one.agreement is None else f"{one.agreement:.2f} %",
            f"{one.largest_error:.3g}",
        )
        for one in found.outputs
    ]
    return _table(("output", "SQNR", "same decision", "largest error"), rows)


def _samples(found: Check) -> str:
    rows = [
        (
            str(one.sample),
            f"{one.float_score:.4g}",
            f"{one.int8_score:.4g}",
            "–" if one.sqnr_db is None else f"{one.sqnr_db:.1f} dB",
            "–" if one.label is None else f"{one.label}: {one.float_class} → {one.int8_class}",
        )
        for one in found.worst_samples[:5]
    ]
    return _table(("worst samples", "float", "int8", "SQNR", "label: chosen"), rows)


def _classes(found: Check) -> str:
    rows = [
        (str(one.label), str(one.samples), f"{one.float_recall:.1f} %", f"{one.int8_recall:.1f} %")
        for one in found.worst_classes[:5]
    ]
    return _table(("worst classes", "samples", "float", "int8"), rows)
