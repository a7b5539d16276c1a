"""Photographs that PyPI packages carry, so that the demo downloads nothing; four views of each stay together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from octavo.errors import QuantizationError
from octavo.zoo.efficientnet_lite0 import BATCH, build, centre_box, normalised, resized
from octavo.zoo.sources import package, package_folder
from octavo.zoo.task import Batches, Task, top1

VIEWS = 4

# Package, folder in it, files. Of the stereo pair `motorcycle_*` one; no drawings, charts or pages of text.
CALIBRATION = [
    ("skimage", "data", ["astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "retina.jpg", "ihc.png"]),
    ("skimage", "data", ["hubble_deep_field.jpg", "camera.png", "coins.png", "grass.png", "gravel.png"]),
    ("sklearn", "datasets/images", ["china.jpg"]),  # scikit-learn comes with the package of MiniLM
]
HELD_OUT = [
    ("skimage", "data", ["chelsea.png", "brick.png", "moon.png"]),
    ("sklearn", "datasets/images", ["flower.jpg"]),
]


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A picture file, and its ImageNet-1k class if somebody said so."""

    path: Path
    label: int | None = None


def labelled() -> list[Photograph]:
    """The 20 photographs of foolbox, named `imagenet_<number>_<class>.jpg`; all of them are scored."""
    files = sorted((package_folder("foolbox") / "data").glob("imagenet_*.jpg"))
    return [Photograph(path=file, label=int(file.stem.split("_")[2])) for file in files]


def unlabelled() -> tuple[list[Photograph], list[Photograph]]:
    """(12 photographs to calibrate with, 4 others to compare two networks on) of scikit-image and scikit-learn."""
    return _found(CALIBRATION), _found(HELD_OUT)


def _found(listing: list[tuple[str, str, list[str]]]) -> list[Photograph]:
    photographs = []
    for name, folder, files in listing:
        for path in (package_folder(name) / folder / file for file in files):
            if not path.is_file():
                raise QuantizationError(
                    asked=f"read the photograph {path.name}",
                    seen=f"the installed package {name!r} does not carry it",
                    remedy="run `pip install octavo[zoo]`, which installs a version that does",
                )
            photographs.append(Photograph(path=path))
    return photographs


def views(photograph: Photograph) -> Tensor:
    """[4, 3, 224, 224] uint8: the middle, its mirror image, and the same square moved to either end of the picture."""
    with package("PIL.Image").open(photograph.path) as picture:
        width, height = picture.size
        box = centre_box(width, height)
        side = box[2] - box[0]
        middle = resized(picture, box)
        start = resized(picture, (0, 0, side, side))
        end = resized(picture, (width - side, height - side, width, height))
    return torch.stack([middle, middle.flip(2), start, end])


@cache
def _pixels(photographs: tuple[Photograph, ...]) -> Tensor:
    return torch.cat([views(photograph) for photograph in photographs])


def batches(photographs: Sequence[Photograph]) -> Batches:
    """Four rows for each photograph, in their order."""
    return Batches(_pixels(tuple(photographs)), BATCH, normalised)


def make_task() -> Task:
    """48 views of 12 photographs calibrate EfficientNet-Lite0; 80 views of 20 labelled ones are scored.

    A sample is a photograph with its four views, so that a bootstrap does not take views for independent evidence.
    """
    scored, (calibration, _) = labelled(), unlabelled()
    return Task(
        name="photographs",
        metric="top-1 % of four views",
        build=build,
        example=normalised(views(calibration[0])[:2]),
        calibration=lambda: list(batches(calibration)),
        inputs=lambda: batches(scored),
        targets=torch.tensor([photograph.label for photograph in scored]),
        collect=lambda logits: logits.reshape(-1, VIEWS, logits.shape[1]),
        measure=lambda logits, labels: top1(logits, labels.unsqueeze(1)),
    )
