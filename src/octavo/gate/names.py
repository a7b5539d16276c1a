"""Names that others chose, fit to be shown: on a terminal, in Markdown, in a table of 100 columns.

Sentences hold such names in backticks; what is between them is shown as it is, and nothing else is from a file.
"""

from octavo.exits import printable

WIDEST = 34  # characters of a name: tables of three columns fit


def short(text: str, most: int = WIDEST) -> str:
    """A name that fits, its beginning and its end, without characters that steer a terminal."""
    kept = printable(text)
    half = (most - 1) // 2
    return kept if len(kept) <= most else f"{kept[:half]}…{kept[-half:]}"


def quoted(text: str, most: int = WIDEST) -> str:
    """A name in backticks, in which Markdown reads no markup; in a table, too."""
    return f"`{short(text, most).replace('`', 'ˋ').replace('|', '¦')}`"
