"""Silence: what torch logs, warns of and prints where nothing is wrong, or where its failure is an error of ours."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Torch deprecates a class that its own description of a network's inputs still holds.
OWN_DEPRECATION = (".*LeafSpec", FutureWarning)


@contextmanager
def quiet(
    *loggers: str, level: int = logging.ERROR, ignored: Sequence[tuple[str, type[Warning]]] = ((".*", Warning),)
) -> Iterator[None]:
    """Without what these loggers say below `level`, and without the `ignored` warnings: (pattern, category).

    They are as they were after the block.
    """
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            for pattern, category in ignored:
                warnings.filterwarnings("ignore", pattern, category)
            yield
    finally:
        for logger, former in zip(found, levels, strict=True):
            logger.setLevel(former)
