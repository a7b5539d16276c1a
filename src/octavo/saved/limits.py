"""What a saved network may take. Without torch: `octavo.load` may not need it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a saved network may take for one call on its samples.

    bytes            of all tensors that are needed at one time, parameters not counted
    multiplications  in all products and convolutions
    """

    bytes: float = 2.0**30
    multiplications: float = 1e12


LIMITS = Limits()
RAISE = "if you trust this file, pass limits=octavo.Limits(bytes=…, multiplications=…)"
