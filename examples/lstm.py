"""Speech, a recurrent network: LSTM on spoken commands.

    octavo run examples/lstm.py --max-drop 1% --budget 30m --out runs/lstm

Needs `pip install octavo[zoo]`, and the labelled data in the folder OCTAVO_DATA.
"""

from torch import Tensor

from octavo.zoo import task

TASK = task("lstm")


def model():
    """The trained float network."""
    return TASK.build()


def calibration():
    """Batches that set the ranges of the activations; no labels, and none of them is scored."""
    return TASK.calibration()


def options():
    """OpenVINO computes recurrent layers in float, from int8 weights: a smaller file, hardly an integer product."""
    return {"min_int8": 0.0}


def evaluate(network) -> Tensor:
    """1 for every sample whose class the network gets right, else 0: one score a sample gives an interval."""
    return (TASK.predict(network).argmax(dim=1) == TASK.targets).float()
