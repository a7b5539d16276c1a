"""Where a check is written: the JSON record, the card, the console. An error takes the place of a former one, too."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from octavo.errors import QuantizationError
from octavo.exits import Exit
from octavo.files import write
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
