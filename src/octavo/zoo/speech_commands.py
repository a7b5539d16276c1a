"""Speech Commands: one second of audio as 49 frames of 10 cepstral coefficients, in 12 classes."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from octavo.zoo.sources import data_folder
from octavo.zoo.task import split_every_tenth

BATCH = 256


@cache
def utterances() -> tuple[Tensor, Tensor]:
    """([4890, 49, 10] float32 coefficients, [4890] classes) of the test split."""
    with np.load(data_folder("speech_commands") / "test_mfcc.npz") as arrays:
        return torch.from_numpy(arrays["mfcc"]).float(), torch.from_numpy(arrays["label"]).long()


def split() -> tuple[Tensor, Tensor, Tensor]:
    """([465, 49, 10] to calibrate with, [4401, 49, 10] to score, [4401] the classes of those).

    Every tenth utterance calibrates, but not the 24 of them that are in the test split once more.
    """
    mfcc, label = utterances()
    calibration, scored = split_every_tenth(len(mfcc))
    contents = {row.numpy().tobytes() for row in mfcc[scored]}
    calibration = torch.tensor([number for number in calibration if mfcc[number].numpy().tobytes() not in contents])
    return mfcc[calibration], mfcc[scored], label[scored]
