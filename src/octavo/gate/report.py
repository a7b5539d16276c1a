"""Where a check is written: the JSON record, the card, the console. What was there before goes first."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from octavo.errors import QuantizationError
from octavo.exits import Exit
from octavo.files import check_no_folder, said_of, write
from octavo.gate.card import card, failed
from octavo.gate.record import Check, Failed, json_text
from octavo.gate.table import show

STDOUT = "-"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The places.

    json_out  a path, or "-" for standard output; people then read the standard error
    """

    json_out: str | None
    card_out: Path | None

    @property
    def console(self) -> Console:
        """Where people read."""
        return Console(stderr=self.json_out == STDOUT)

    def clear(self) -> None:
        """Remove what a check of before left: should this one be interrupted, nobody reads that for its outcome."""
        named = [None if self.json_out in (None, STDOUT) else Path(str(self.json_out)), self.card_out]
        for path in (path for path in named if path is not None):
            check_no_folder(path)
            with said_of(path):
                path.unlink(missing_ok=True)

    def found(self, found: Check) -> Exit:
        """Print and write `found`; the code to end by."""
        show(found, self.console)
        self._write(found, card(found))
        return Exit(found.exit_code)

    def failed(self, error: QuantizationError) -> None:
        """Write an error in place of the record and the card."""
        found = Failed.of(error)
        self._write(found, failed(found))

    def _write(self, found: Check | Failed, text: str) -> None:
        if self.json_out == STDOUT:
            print(json_text(found), end="")
        elif self.json_out is not None:
            write(Path(self.json_out), json_text(found))
        if self.card_out is not None:
            write(self.card_out, text)
