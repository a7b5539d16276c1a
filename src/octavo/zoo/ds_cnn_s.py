"""DS-CNN-S, the small depthwise-separable network for keyword spotting (Zhang et al. 2017, "Hello Edge", §3.4)."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from octavo.zoo.sources import data_folder, load_weights
from octavo.zoo.speech_commands import BATCH, split
from octavo.zoo.task import Batches, Task, top1

CHANNELS = 64
EPSILON = 1e-3  # TensorFlow's, with which it was trained; torch's own is 1e-5


class Stem(nn.Module):
    """[N, 1, 49, 10] → [N, 64, 25, 5]. TensorFlow's SAME padding (kernel 10×4, stride 2): one row more below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, CHANNELS, (10, 4), stride=2)
        self.norm = nn.BatchNorm2d(CHANNELS, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(F.pad(x, (1, 1, 4, 5)))))


class Block(nn.Module):
    """Depthwise 3×3, then pointwise 1×1."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.depthwise_norm = nn.BatchNorm2d(CHANNELS, eps=EPSILON)
        self.pointwise = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.pointwise_norm = nn.BatchNorm2d(CHANNELS, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise_norm(self.depthwise(x)))
        return F.relu(self.pointwise_norm(self.pointwise(x)))


class DepthwiseSeparableNetwork(nn.Module):
    """[N, 1, 49, 10] → [N, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.head = nn.Linear(CHANNELS, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return cast(Tensor, self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def build() -> nn.Module:
    return load_weights(DepthwiseSeparableNetwork(), data_folder("speech_commands") / "ds_cnn_s.safetensors")


def make_task() -> Task:
    """Every tenth test utterance calibrates (465 without twins), the other 4401 are scored."""
    calibration, scored, classes = split()
    return Task(
        name="ds_cnn_s",
        metric="top-1 %",
        build=build,
        example=_as_image(calibration[:2]),
        calibration=lambda: list(Batches(calibration, BATCH, _as_image)),
        inputs=lambda: Batches(scored, BATCH, _as_image),
        targets=classes,
        measure=top1,
    )


def _as_image(mfcc: Tensor) -> Tensor:
    return mfcc.unsqueeze(1)
