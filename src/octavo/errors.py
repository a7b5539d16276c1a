"""The one error a user sees: what was asked, what was seen, what to do."""

from functools import partial
from typing import Any


class QuantizationError(Exception):
    """Raised for every input Octavo cannot work with.

    The message reads `site: asked; seen; remedy`, so that it can be acted on without reading the source.
    """

    def __init__(self, *, asked: str, seen: str, remedy: str, site: str | None = None) -> None:
        self.asked, self.seen, self.remedy, self.site = asked, seen, remedy, site
        where = f"{site}: " if site else ""
        super().__init__(f"{where}asked to {asked}, but {seen}; {remedy}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), asked=self.asked, seen=self.seen, remedy=self.remedy, site=self.site), ()
