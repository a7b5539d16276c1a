"""DeepLab v3 (Chen et al. 2017) on MobileNetV2 of half the width, with the weights of a TFLite file (package `tflite`).

Strides end at 16: what would be the next one dilates the filters of depthwise convolutions instead.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data_networks.photographs import class_images, stretched_photograph
from benchmarks.data_networks.scored import Scored, in_batches
from octavo.zoo.sources import data_folder, package

SIZE, CLASSES, IGNORED = 257, 21, 255
# Of each inverted bottleneck: channels that it returns, stride, dilation. The first does not widen.
BLOCKS = (
    (8, 1, 1),
    (12, 2, 1),
    (12, 1, 1),
    (16, 2, 1),
    (16, 1, 1),
    (16, 1, 1),
    (32, 1, 1),
    (32, 1, 2),
    (32, 1, 2),
    (32, 1, 2),
    (48, 1, 2),
    (48, 1, 2),
    (48, 1, 2),
    (80, 1, 2),
    (80, 1, 4),
    (80, 1, 4),
    (160, 1, 4),
)


class Inverted(nn.Module):
    """Widen six times, filter each channel, narrow; batch norm is in the weights already."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, *, widens: bool) -> None:
        super().__init__()
        width, self.adds = 6 * inputs if widens else inputs, widens and stride == 1 and inputs == outputs
        self.widen = nn.Conv2d(inputs, width, 1) if widens else None
        self.filter = nn.Conv2d(width, width, 3, stride, dilation, dilation, groups=width)
        self.narrow = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.widen is None else F.relu6(self.widen(x))
        y = self.narrow(F.relu6(self.filter(y)))
        return x + y if self.adds else y


class DeepLab(nn.Module):
    """[N, 3, 257, 257] of −1 … 1 → [N, 21, 257, 257]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, blocks, inputs = nn.Conv2d(3, 16, 3, 2, 1), [], 16
        for index, (outputs, stride, dilation) in enumerate(BLOCKS):
            blocks.append(Inverted(inputs, outputs, stride, dilation, widens=index > 0))
            inputs = outputs
        self.blocks, self.whole, self.local = nn.Sequential(*blocks), nn.Conv2d(160, 256, 1), nn.Conv2d(160, 256, 1)
        self.join, self.head = nn.Conv2d(512, 256, 1), nn.Conv2d(256, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.stem(x)))
        whole = _stretched(F.relu(self.whole(F.adaptive_avg_pool2d(x, 1))), x.shape[-1])
        x = torch.cat([whole, F.relu(self.local(x))], 1)
        return _stretched(self.head(F.relu(self.join(x))), SIZE)


def _stretched(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=True)


def build() -> nn.Module:
    """The file lists its convolutions in the order in which they are computed, which is that of our layers."""
    network = DeepLab()
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    found = list(_weights(data_folder("deeplab") / "deeplabv3_257_mv_gpu.tflite"))
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, found, strict=True):
            assert layer.weight.shape == weight.shape
            layer.weight.copy_(weight)
            assert layer.bias is not None
            layer.bias.copy_(bias)
    return network.eval()


def _weights(path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """(weight [outputs, inputs, height, width], bias) of every convolution of a TFLite file in float32."""
    tflite = package("tflite")
    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    graph, kinds = model.Subgraphs(0), tflite.BuiltinOperator
    # It keeps [outputs, height, width, inputs]; of a depthwise one [1, height, width, outputs].
    orders = {kinds.CONV_2D: (0, 3, 1, 2), kinds.DEPTHWISE_CONV_2D: (3, 0, 1, 2)}

    def read(number: int) -> Tensor:
        tensor = graph.Tensors(number)
        values = np.frombuffer(model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes(), np.float32)
        return torch.from_numpy(values.reshape(tensor.ShapeAsNumpy()).copy())

    for place in range(graph.OperatorsLength()):
        operator = graph.Operators(place)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if kind in orders:
            yield read(operator.Inputs(1)).permute(orders[kind]), read(operator.Inputs(2))


@cache
def _inputs(part: str) -> Tensor:
    return torch.stack([stretched_photograph(picture, SIZE) for picture, _ in class_images(part)])


def _confusions(logits: Tensor, first: int) -> Tensor:
    """[N, 21, 21] numbers of pixels of class i that are taken for class j, at the size of each photograph."""
    return torch.stack([_confusion(rows, class_images("test")[first + i][1]) for i, rows in enumerate(logits)])


def _confusion(logits: Tensor, classes: Tensor) -> Tensor:
    size = tuple(classes.shape)
    found = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
    known = classes != IGNORED
    pairs = CLASSES * classes[known].long() + found[known]
    return pairs.bincount(minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def mean_overlap(confusions: Tensor, index: Any) -> float:
    """Mean over the classes that occur of what found and true pixels share × 100."""
    counts = confusions[index].sum(0).double()
    right = counts.diagonal()
    either = counts.sum(0) + counts.sum(1) - right
    occurs = counts.sum(1) > 0
    return 100 * float((right[occurs] / either[occurs]).mean())


def scored() -> Scored:
    """32 photographs calibrate, 100 others are scored."""
    return Scored(
        metric="mIoU",
        build=build,
        calibration=lambda: list(_inputs("calibration").split(8)),
        predict=in_batches(lambda: _inputs("test"), 10, _confusions),
        score=mean_overlap,
    )
