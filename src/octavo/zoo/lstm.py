"""A recurrent keyword spotter: one LSTM of 344 units, and a classifier on its last step (Zhang et al. 2017, §3.3)."""

from typing import cast

from torch import Tensor, nn

from octavo.zoo.sources import data_folder, load_weights
from octavo.zoo.speech_commands import BATCH, split
from octavo.zoo.task import Batches, Task, top1


class KeywordLSTM(nn.Module):
    """[N, 49, 10] → [N, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(10, 344, batch_first=True)
        self.head = nn.Linear(344, 12)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x)
        return cast(Tensor, self.head(hidden[:, -1]))


def build() -> nn.Module:
    return load_weights(KeywordLSTM(), data_folder("speech_commands") / "lstm.safetensors")


def make_task() -> Task:
    """Every tenth test utterance calibrates (465 without twins), the other 4401 are scored."""
    calibration, scored, classes = split()
    return Task(
        name="lstm",
        metric="top-1 %",
        build=build,
        example=calibration[:2],
        calibration=lambda: list(Batches(calibration, BATCH)),
        inputs=lambda: Batches(scored, BATCH),
        targets=classes,
        measure=top1,
    )
