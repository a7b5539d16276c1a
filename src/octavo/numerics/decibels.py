"""Ratios of powers, as every comparison of two executions gives them."""

import math


def decibels(signal: float, noise: float) -> float:
    """10·log₁₀(signal / noise) of two powers; inf without noise, −inf for noise where there is no signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
