"""Networks as files, and files as data: what is written, and what is checked before it is a network again."""

from octavo.saved import portable  # noqa: F401  (it teaches pickle what a graph is)
