"""YOLOX-Nano (Ge et al. 2021): depthwise CSPDarknet, feature pyramid in both directions, three decoupled heads.

Average precision as COCO has it: 101 points of recall, mean over classes and over overlaps of 0.5, 0.55, … 0.95.
"""

from collections.abc import Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data_networks.detection import average_precision, suppressed
from benchmarks.data_networks.photographs import padded_photograph, photographs
from benchmarks.data_networks.scored import Scored, in_batches
from octavo.zoo.sources import data_folder, load_weights

SIZE, CLASSES, STRIDES = 416, 80, (8, 16, 32)
BATCH = 8
LEAST_SCORE, MOST_OVERLAP, KEPT = 0.01, 0.45, 300


class Convolution(nn.Module):
    """Convolution (batch norm is in its weights already) and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x))


class Separable(nn.Module):
    """A 3 × 3 filter of each channel, then all channels together."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = Convolution(inputs, inputs, 3, stride, groups=inputs)
        self.pconv = Convolution(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.pconv(self.dconv(x))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, *, adds: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.adds = Convolution(channels, channels), Separable(channels, channels), adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.adds else y


class CrossStage(nn.Module):
    """Half of the channels through bottlenecks, half past them."""

    def __init__(self, inputs: int, outputs: int, count: int = 1, *, adds: bool = False) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1, self.conv2 = Convolution(inputs, half), Convolution(inputs, half)
        self.m = nn.Sequential(*(Bottleneck(half, adds=adds) for _ in range(count)))
        self.conv3 = Convolution(2 * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat([self.m(self.conv1(x)), self.conv2(x)], 1))


class Pyramid(nn.Module):
    """Maxima of windows of 5, 9 and 13, beside what they are of."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Convolution(channels, channels // 2), Convolution(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(F.max_pool2d(x, side, 1, side // 2) for side in (5, 9, 13))], 1))


class Detector(nn.Module):
    """[N, 3, 416, 416] BGR of 0 … 255 → [N, 3549, 85]: centre, log of the size, objectness, classes at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(12, 16, 3)
        self.dark2 = nn.Sequential(Separable(16, 32, 2), CrossStage(32, 32, adds=True))
        self.dark3 = nn.Sequential(Separable(32, 64, 2), CrossStage(64, 64, 3, adds=True))
        self.dark4 = nn.Sequential(Separable(64, 128, 2), CrossStage(128, 128, 3, adds=True))
        self.dark5 = nn.Sequential(Separable(128, 256, 2), Pyramid(256), CrossStage(256, 256))
        self.lateral, self.p4, self.reduce = Convolution(256, 128), CrossStage(256, 128), Convolution(128, 64)
        self.p3, self.down2, self.n3 = CrossStage(128, 64), Separable(64, 64, 2), CrossStage(128, 128)
        self.down1, self.n4 = Separable(128, 128, 2), CrossStage(256, 256)
        self.stems = nn.ModuleList(Convolution(channels, 64) for channels in (64, 128, 256))
        self.cls_convs, self.reg_convs = (nn.ModuleList(_two() for _ in STRIDES) for _ in range(2))
        self.cls_preds, self.reg_preds, self.obj_preds = (
            nn.ModuleList(nn.Conv2d(64, outputs, 1) for _ in STRIDES) for outputs in (CLASSES, 4, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        c3 = self.dark3(self.dark2(self.stem(torch.cat(corners, 1))))
        c4 = self.dark4(c3)
        top = self.lateral(self.dark5(c4))
        middle = self.reduce(self.p4(torch.cat([F.interpolate(top, scale_factor=2.0), c4], 1)))
        n2 = self.p3(torch.cat([F.interpolate(middle, scale_factor=2.0), c3], 1))
        n3 = self.n3(torch.cat([self.down2(n2), middle], 1))
        n4 = self.n4(torch.cat([self.down1(n3), top], 1))
        return torch.cat([self.head(level, x) for level, x in enumerate((n2, n3, n4))], 2).transpose(1, 2)

    def head(self, level: int, x: Tensor) -> Tensor:
        """[N, 85, places] of one of the three sizes."""
        x = self.stems[level](x)
        classes = self.cls_preds[level](self.cls_convs[level](x))
        x = self.reg_convs[level](x)
        boxes, objects = self.reg_preds[level](x), self.obj_preds[level](x)
        return torch.cat([boxes, objects.sigmoid(), classes.sigmoid()], 1).flatten(2)


def _two() -> nn.Sequential:
    return nn.Sequential(Separable(64, 64), Separable(64, 64))


@cache
def _inputs(part: str) -> Tensor:
    return torch.stack([padded_photograph(picture, SIZE) for picture in photographs(part)])


@cache
def _places() -> tuple[Tensor, Tensor]:
    """([3549, 2] column and row, [3549, 1] pixels to a step) of the places, in the order of the output."""
    sides = [SIZE // stride for stride in STRIDES]
    places = [torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1) for side in sides]
    steps = [torch.full((side * side, 1), stride) for side, stride in zip(sides, STRIDES, strict=True)]
    return torch.cat(places), torch.cat(steps)


def _detections(output: Tensor, first: int) -> Tensor:
    """[N, 300, 6]: left, top, right, bottom in parts of the photograph, score, class; −1 where there is none."""
    sizes = [picture.size for picture in photographs("test")[first : first + len(output)]]
    return torch.stack([_of_one(rows.float(), *size) for rows, size in zip(output, sizes, strict=True)])


def _of_one(rows: Tensor, width: int, height: int) -> Tensor:
    places, steps = _places()
    centres, sizes = (rows[:, :2] + places) * steps, rows[:, 2:4].exp() * steps
    shown = torch.tensor([width, height]).repeat(2) * min(SIZE / width, SIZE / height)
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], 1) / shown
    scores = rows[:, 4:5] * rows[:, 5:]
    place, kind = (scores > LEAST_SCORE).nonzero(as_tuple=True)
    best = scores[place, kind].argsort(descending=True)[:1000]
    place, kind = place[best], kind[best]
    found = torch.cat([boxes[place], scores[place, kind][:, None], kind[:, None]], 1)
    return F.pad(kept := found[suppressed(found, MOST_OVERLAP)[:KEPT]], (0, 0, 0, KEPT - len(kept)), value=-1.0)


def _truth() -> Iterator[Tensor]:
    """[boxes, 5] of each photograph: left, top, right, bottom in parts of it, class."""
    root = data_folder("coco128")
    for path in sorted((root / "images" / "test").glob("*.jpg")):
        file = root / "boxes" / "test" / f"{path.stem}.txt"
        lines = file.read_text().split("\n") if file.exists() else []
        rows = torch.tensor([[float(x) for x in line.split()] for line in lines if line.strip()]).reshape(-1, 5)
        centres, half = rows[:, 1:3], rows[:, 3:5] / 2
        yield torch.cat([centres - half, centres + half, rows[:, :1]], 1)


def scored() -> Scored:
    """32 photographs calibrate, 128 others are scored."""
    truth = list(_truth())
    return Scored(
        metric="AP",
        build=lambda: load_weights(Detector(), data_folder("yolox_nano") / "weights.safetensors"),
        calibration=lambda: list(_inputs("calibration").split(BATCH)),
        predict=in_batches(partial(_inputs, "test"), BATCH, _detections),
        score=lambda found, index: average_precision(found[index], [truth[i] for i in index.tolist()]),
        resampled=False,  # a class that a resample has one box of weighs as much as any
    )
