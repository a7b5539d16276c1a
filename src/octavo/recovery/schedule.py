"""How long and how fast a fine-tuning trains: the paper's rule (Wu et al. 2020, §5.2)."""

import math
from dataclasses import dataclass

from octavo.arguments import check_fields
from octavo.errors import QuantizationError

EPOCHS, LEARNING_RATE, LAST = 0.1, 0.01, 0.01  # of the original epochs; of its rate; of the first rate


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train: from `learning_rate` along a cosine to `last` times it.

    raises  QuantizationError for fewer than no epochs, and rates that are negative or no numbers
    """

    epochs: int
    learning_rate: float
    last: float = LAST

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("epochs", "learning_rate", "last"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise QuantizationError(
                    asked=f"train with {name}={value:g}",
                    seen="it is negative or no number",
                    remedy="give zero or more",
                    site=name,
                )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step number `step` of `steps`."""
        way = step / max(steps - 1, 1)
        return self.learning_rate * (self.last + (1 - self.last) * (1 + math.cos(math.pi * way)) / 2)


def paper_schedule(original_epochs: float, original_lr: float) -> Schedule:
    """What the paper derives from how the float network was trained; at least one epoch."""
    return Schedule(epochs=max(1, round(EPOCHS * original_epochs)), learning_rate=LEARNING_RATE * original_lr)
