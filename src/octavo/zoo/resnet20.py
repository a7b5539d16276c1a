"""ResNet-20 on CIFAR-10 (He et al. 2015, §4.2): shortcuts without parameters."""

import json
from functools import cache
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.zoo.sources import data_folder, load_weights, package
from octavo.zoo.task import Batches, Task, top1

# Of ImageNet, with which these weights were trained.
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every second pixel, and channels of zeros on both sides."""
        if self.stride == 1:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class ResNet20(nn.Module):
    """[N, 3, 32, 32] → [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def build() -> nn.Module:
    return load_weights(ResNet20(), data_folder("cifar10") / "resnet20.safetensors")


@cache
def images(part: str) -> Tensor:
    """[1000, 3, 32, 32] normalised images of "test" or "train_0" … "train_4"."""
    with package("PIL.Image").open(data_folder("cifar10") / f"{part}.png") as picture:
        pixels = torch.from_numpy(np.array(picture)).reshape(-1, 32, 32, 3)
    return (pixels.permute(0, 3, 1, 2) / 255 - MEAN) / DEVIATION


def labels(part: str) -> Tensor:
    """[1000] classes of the images of that part."""
    return torch.tensor(json.loads((data_folder("cifar10") / "labels.json").read_text())[part])


def make_task() -> Task:
    """256 training images calibrate, the 1000 test images are scored."""
    return Task(
        name="resnet20",
        metric="top-1 %",
        build=build,
        example=images("train_0")[:2],
        calibration=lambda: list(Batches(images("train_0")[:256], 64)),
        inputs=lambda: Batches(images("test"), 100),
        targets=labels("test"),
        measure=top1,
    )
