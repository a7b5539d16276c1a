"""What is remembered on this machine: that a file was right on an engine here. `octavo` keeps its own beside it."""

import json
import os
import platform
from contextlib import suppress
from hashlib import sha256
from pathlib import Path


def was_checked(place: Path | None) -> bool:
    """Whether the check of that name held here before."""
    return place is not None and place.is_file()


def remember(place: Path | None) -> None:
    """Note that it did. A cache that cannot be written is no error: the next process checks again."""
    if place is None:
        return
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def place_of(digest: str, engine: str, version: str) -> Path | None:
    """Where it is noted that the file with this digest was right on this version of an engine, on this CPU.

    None where there is no such place.
    """
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))} or lines)
    facts = json.dumps([digest, engine, version, kind])
    cache = cache_folder()
    return None if cache is None else cache / "served" / sha256(facts.encode()).hexdigest()


def cache_folder() -> Path | None:
    """$OCTAVO_CACHE, or octavo/ in the user's cache folder; None for a user without a home, as in some containers."""
    named, home = os.environ.get("OCTAVO_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named) if named else Path(home or Path.home() / ".cache") / "octavo"
    except RuntimeError:
        return None
