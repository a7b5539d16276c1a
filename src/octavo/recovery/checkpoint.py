"""The epochs of a training, and the state after them on disk."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises where it is told to load weights only
from typing import Any

from safetensors import SafetensorError

from octavo.errors import QuantizationError, reason
from octavo.files import replaced
from octavo.network.ranks import by_first, in_step

HISTORY, IDENTITY = "history.json", "of.json"


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
    """Every epoch on disk: `last` to resume from, `best` to return, each replaced whole.

    identity  {"network": digest, …} of all that determines the training: no other is resumed from this folder
    raises    QuantizationError, in its methods, for a folder of another training, one that is damaged, and a full disk
    """

    def __init__(self, folder: Path, accelerator: Any, identity: Mapping[str, str]) -> None:
        self.folder, self.accelerator, self.identity = folder, accelerator, dict(identity)

    def load(self) -> list[Epoch]:
        """The epochs so far; the state of training is as after the last of them."""
        epochs = by_first(self._epochs)
        if epochs:
            self._load_state("last")
        return epochs

    def save(self, history: list[Epoch], *, best: bool) -> None:
        """Keep the state of training, and which epochs led to it."""
        with ExitStack() as stack:
            part = by_first(lambda: stack.enter_context(replaced(self.folder / "last")))
            with _as_one_error(self.folder, "keep", "see that the folder can be written and has room"):
                self.accelerator.save_state(str(part))
            in_step()

            def finish() -> None:
                (part / HISTORY).write_text(json.dumps([asdict(epoch) for epoch in history]))
                (part / IDENTITY).write_text(json.dumps(self.identity))
                if best:
                    with replaced(self.folder / "best") as copy:
                        shutil.copytree(part, copy)
                stack.close()

            by_first(finish)

    def load_best(self) -> None:
        """The state of training is as after the best epoch."""
        self._load_state("best")

    def _load_state(self, name: str) -> None:
        with _as_one_error(self.folder, "resume", "remove the folder, and train again"):
            self.accelerator.load_state(str(self.folder / name))
        in_step()

    def _epochs(self) -> list[Epoch]:
        last = self.folder / "last"
        if not last.exists():
            return []
        with _as_one_error(self.folder, "resume", "remove the folder, and train again"):
            found = json.loads((last / IDENTITY).read_text())
            epochs = [Epoch(**epoch) for epoch in json.loads((last / HISTORY).read_text())]
        others = [name for name, own in self.identity.items() if found.get(name) != own]
        if others:
            raise QuantizationError(
                asked="resume a training",
                seen=f"what is kept there was trained with other {' and '.join(others)}",
                remedy="give the arguments that it was started with, or train in another folder",
                site=str(self.folder),
            )
        return epochs


_OF_FILES = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError, UnpicklingError, SafetensorError,
)  # fmt: skip


@contextmanager
def _as_one_error(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Whatever Accelerate, torch and safetensors raise about files, as one error."""
    try:
        yield
    except _OF_FILES as error:
        raise QuantizationError(
            asked=f"{what} the state of a training", seen=reason(error), remedy=remedy, site=str(folder)
        ) from error
