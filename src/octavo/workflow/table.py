"""The record of a run as tables on the console: what was lost, what was won."""

from typing import Any

from rich.console import Console
from rich.table import Table

from octavo.workflow.timing import CONTESTANTS


def show(record: dict[str, Any], console: Console) -> None:
    """Print what was lost, what was won, and what stayed in float."""
    quality = _table(f"{record['model']}, calibrated by {record['method']}", "", "float", "int8")
    for row in _quality(record):
        quality.add_row(*row)
    console.print(quality)
    if "latency_ms" in record:
        console.print(speed(record))
    coverage = record["coverage"]
    console.print(f"{coverage['quantized']} of {coverage['total']} compute-heavy operations quantized")
    if told := coverage.get("ran"):
        console.print(f"{told['int8']} of them ran on integers on {told['engine']}")
        for operation in told["in_float"]:
            console.print(f"  {operation['layer']}: float, {operation['kernel']}", markup=False)
    for operation in coverage["kept_float"]:
        console.print(f"  {operation['site']}: float, {operation['reason']}", markup=False)


def _quality(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    metric, size = record["metric"], record["size_mb"]
    samples = f" ({metric['samples']} samples)" if metric["samples"] else ""
    rows = [(f"{metric['name']}{samples}", f"{metric['float']:.4g}", f"{metric['int8']:.4g}")]
    if record.get("agreement") is not None:
        rows.append(("top-1 agreement with float", "100.0 %", f"{record['agreement']:.1f} %"))
    if record.get("sqnr_db") is not None:
        rows.append(("signal to quantization noise", "", f"{record['sqnr_db']:.1f} dB"))
    if size.get("int8") is not None:
        rows.append(("size", f"{size['float']:.1f} MB", f"{size['int8']:.1f} MB"))
    return rows


def speed(record: dict[str, Any]) -> Table:
    """What was timed, and how much faster the integers are."""
    medians, low, high = (record[f"latency_{name}ms"] for name in ("", "p10_", "p90_"))
    table = _table(f"milliseconds for a batch of {record['batch']}", "", "median", "10 % … 90 %", "int8 is faster by")
    for name, label in CONTESTANTS.items():
        if name in medians:
            spread, ratio = f"{low[name]:.1f} … {high[name]:.1f}", medians[name] / medians["int8"]
            table.add_row(label, f"{medians[name]:.1f}", spread, f"{ratio:.2f} ×")
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    return table
