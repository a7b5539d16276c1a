"""The epochs of a training, and the state after them on disk."""

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training data: its mean loss, and the metric after it (None without `evaluate`).

    Number 0 is before any training, and has no loss.
    """

    number: int
    loss: float | None
    metric: float | None


@dataclass(frozen=True, kw_only=True)
class History:
    """Every epoch, and the number of the one that was kept: the best, not the last."""

    epochs: tuple[Epoch, ...]
    best: int


def best_epoch(history: list[Epoch], higher_is_better: bool) -> int:
    """The number of the best epoch: by the metric, else by the loss; of equals the first."""
    if all(epoch.metric is None for epoch in history):
        return min(history, key=lambda epoch: math.inf if epoch.loss is None else epoch.loss).number
    sign = 1 if higher_is_better else -1
    return max(history, key=lambda epoch: -math.inf if epoch.metric is None else sign * epoch.metric).number


class Checkpoint:
    """Every epoch on disk: `last` to resume from, `best` to return, each replaced whole."""

    def __init__(self, folder: Path, accelerator: Any) -> None:
        self.folder, self.accelerator = folder, accelerator

    def load(self) -> list[Epoch]:
        """The epochs so far; the state of training is as after the last of them."""
        record = self.folder / "last" / "history.json"
        if not record.exists() and (self.folder / "last-old").exists():  # killed between the two renames
            record = self.folder / "last-old" / "history.json"
        if not record.exists():
            return []
        self.accelerator.load_state(str(record.parent))
        return [Epoch(**epoch) for epoch in json.loads(record.read_text())]

    def save(self, history: list[Epoch], *, best: bool) -> None:
        """Keep the state of training, and which epochs led to it."""
        self.accelerator.wait_for_everyone()
        part = self.folder / "part"
        self.accelerator.save_state(str(part))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (part / "history.json").write_text(json.dumps([asdict(epoch) for epoch in history]))
            if best:
                _replace(shutil.copytree(part, self.folder / "part-best", dirs_exist_ok=True), self.folder / "best")
            _replace(part, self.folder / "last")
        self.accelerator.wait_for_everyone()

    def load_best(self) -> None:
        """The state of training is as after the best epoch."""
        self.accelerator.load_state(str(self.folder / "best"))
        self.accelerator.wait_for_everyone()


def _replace(new: Path, old: Path) -> None:
    """Put the folder `new` in the place of `old`; killed in between, one of them is there."""
    aside = old.with_name(old.name + "-old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)
