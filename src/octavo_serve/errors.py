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

    def but(self, *, seen: str | None = None, site: str | None = None) -> "QuantizationError":
        """The same error with more seen of it, or with the site where it happened."""
        return type(self)(asked=self.asked, seen=seen or self.seen, remedy=self.remedy, site=site or self.site)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), asked=self.asked, seen=self.seen, remedy=self.remedy, site=self.site), ()


@contextmanager
def naming(site: str) -> Iterator[None]:
    """Give errors of what knows no names, as numerics, the name of the place where they happen."""
    try:
        yield
    except QuantizationError as error:
        raise error.but(site=error.site or site) from error


def reason(error: BaseException | str, *, lines: int = 1, most: int = 200) -> str:
    """What an error of others says, in its first lines; its class, if it says nothing."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(said[:lines])[:most] or type(error).__name__


@contextmanager
def reading(*, asked: str, seen: str, remedy: str, site: str | None = None) -> Iterator[None]:
    """Read data from elsewhere: whatever its bytes make a parser raise, it is the data that is wrong."""
    try:
        yield
    except QuantizationError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {reason(error, lines=3)}"
        raise QuantizationError(asked=asked, seen=f"{seen} ({why})", remedy=remedy, site=site) from error


def refused(
    site: str | None, seen: str, remedy: str = "do not use this file; octavo.save wrote another one"
) -> QuantizationError:
    """That a saved network holds at `site` what `octavo.save` never writes."""
    site = None if site is None else site[:100]
    return QuantizationError(asked="load a saved network", seen=seen[:300], remedy=remedy, site=site)
