"""Where a check is written: the JSON record, the card, the console. What was there before goes first."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
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

    @property
    def paths(self) -> list[Path]:
        """The files that are written."""
        named = [None if self.json_out in (None, STDOUT) else Path(str(self.json_out)), self.card_out]
        return [path for path in named if path is not None]

    def clear(self) -> None:
        """Remove what a check of before left: should this one be interrupted, nobody reads that for its outcome."""
        for path in self.paths:
            check_no_folder(path)
            with said_of(path):
                path.unlink(missing_ok=True)

    def check_apart(self, read: Iterable[object]) -> None:
        """Raise QuantizationError if it would be written over a file that the check reads, or over itself."""
        own = [path.resolve() for path in self.paths]
        files = (str(one) for one in read if one is not None)
        inputs = {Path(file.rpartition(":")[0] if ".py:" in file else file).resolve() for file in files}
        reason = "the check reads that file" if inputs & set(own) else "the record and the card are both to be there"
        if inputs & set(own) or len(set(own)) < len(own):
            path = next((path for path in own if path in inputs), own[0])
            raise QuantizationError(asked=f"write {path.name}", seen=reason, remedy="name another file", site=str(path))

    @contextmanager
    def printing(self) -> Iterator[None]:
        """While Python files of the user run: what they print is not for the standard output, if the record is."""
        with redirect_stdout(sys.stderr) if self.json_out == STDOUT else nullcontext():
            yield

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
