"""The one error a user sees: what was asked, what was seen, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def reading(*, asked: str, seen: str, remedy: str, site: str | None = None) -> Iterator[None]:
    """Read data from elsewhere: whatever its bytes make a parser raise, it is the data that is wrong."""
    try:
        yield
    except QuantizationError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {' '.join(lines[:3])[:200]}"
        raise QuantizationError(asked=asked, seen=f"{seen} ({reason})", remedy=remedy, site=site) from error


def refused(
    site: str | None, seen: str, remedy: str = "do not use this file; octavo.save wrote another one"
) -> QuantizationError:
    """That a saved network holds at `site` what `octavo.save` never writes."""
    site = None if site is None else site[:100]
    return QuantizationError(asked="load a saved network", seen=seen[:300], remedy=remedy, site=site)
