"""The photographs of the folders `coco128` and `imagenet`, as networks see them."""

import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.zoo.sources import data_folder, package

GREY = 114  # what YOLOX pads with
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@cache
def photographs(part: str) -> list[Any]:
    """The PIL pictures of `part`, "test" or "calibration", of coco128, in the order of their names."""
    return [_opened(path) for path in sorted((data_folder("coco128") / "images" / part).glob("*.jpg"))]


@cache
def class_images(part: str) -> list[tuple[Any, Tensor]]:
    """(photograph, [height, width] classes: 0 background, 1 … 20, 255 none of them) of all that have classes."""
    root, image = data_folder("coco128"), package("PIL.Image")
    paths = sorted((root / "classes" / part).glob("*.png"))
    classes = [torch.from_numpy(np.array(image.open(path))) for path in paths]
    pictures = [_opened(root / "images" / part / f"{path.stem}.jpg") for path in paths]
    return list(zip(pictures, classes, strict=True))


def _opened(path: Path) -> Any:
    return package("PIL.Image").open(path).convert("RGB")


def _pixels(picture: Any) -> Tensor:
    """[3, height, width] float32 of 0 … 255, red first."""
    return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)


def padded_photograph(picture: Any, size: int) -> Tensor:
    """[3, size, size], blue first: as large as it fits without being distorted, in the upper left corner on grey."""
    share = min(size / picture.height, size / picture.width)
    width, height = int(picture.width * share), int(picture.height * share)
    canvas = torch.full((3, size, size), float(GREY))
    canvas[:, :height, :width] = _resized(picture, width, height).flip(0)
    return canvas


def stretched_photograph(picture: Any, size: int) -> Tensor:
    """[3, size, size] of −1 … 1."""
    return _resized(picture, size, size) / 127.5 - 1


def _resized(picture: Any, width: int, height: int) -> Tensor:
    return _pixels(picture.resize((width, height), package("PIL.Image").Resampling.BILINEAR))


def imagenet(start: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    """([N, 3, 224, 224], [N] classes) of every other photograph of `imagenet`, from number `start` on."""
    folder = data_folder("imagenet")
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[start::2][:most]
    images = torch.stack([_centre(_opened(folder / row["file"])) for row in rows])
    return images, torch.tensor([int(row["label"]) for row in rows])


def _centre(picture: Any) -> Tensor:
    """[3, 224, 224] normalised: the middle of a photograph whose shorter side has become 256."""
    share = 256 / min(picture.size)
    width, height = round(picture.width * share), round(picture.height * share)
    left, top = (width - 224) // 2, (height - 224) // 2
    part = _resized(picture, width, height)[:, top : top + 224, left : left + 224]
    return (part / 255 - MEAN[:, None, None]) / DEVIATION[:, None, None]
