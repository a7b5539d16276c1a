"""DTLN (Westhausen & Meyer 2020): masks of a spectrum, then of a learned basis, made by two LSTMs each."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data_networks.scored import Scored, in_batches
from octavo.zoo.sources import data_folder, load_weights, package

BLOCK, STEP, UNITS = 512, 128, 128
SAMPLES = 4 * 16000  # in a mixture
NOISE_DB = 5.0  # by which it is quieter than the speech


class Mask(nn.Module):
    """[N, T, inputs] → the same, of 0 … 1."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.a = nn.LSTM(inputs, UNITS, batch_first=True)
        self.b = nn.LSTM(UNITS, UNITS, batch_first=True)
        self.dense = nn.Linear(UNITS, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.b(self.a(x)[0])[0]).sigmoid()


class Enhancer(nn.Module):
    """[N, samples] at 16 kHz → [N, samples of the blocks that fit]."""

    def __init__(self) -> None:
        super().__init__()
        self.core1, self.core2 = Mask(BLOCK // 2 + 1), Mask(256)
        self.encoder, self.decoder = nn.Linear(BLOCK, 256, bias=False), nn.Linear(256, BLOCK, bias=False)
        self.norm = nn.LayerNorm(256, 1e-7)

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(wave.unfold(1, BLOCK, STEP))
        blocks = torch.fft.irfft(spectrum * self.core1(spectrum.abs()))
        features = self.encoder(blocks)
        blocks = self.decoder(features * self.core2(self.norm(features)))
        samples = (blocks.shape[1] - 1) * STEP + BLOCK
        return F.fold(blocks.transpose(1, 2), (1, samples), (1, BLOCK), stride=(1, STEP))[:, 0, 0]


@cache
def _speech() -> list[Tensor]:
    """[SAMPLES] of every utterance, cut or padded with silence."""
    soundfile = package("soundfile")

    def read(path: Path) -> Tensor:
        return torch.from_numpy(soundfile.read(str(path), dtype="float32")[0])

    return [read(path) for path in sorted(data_folder("librispeech").glob("*.flac"))]


def _cut(wave: Tensor) -> Tensor:
    return F.pad(wave[:SAMPLES], (0, max(0, SAMPLES - len(wave))))


def _noise(number: int) -> Tensor:
    """Even numbers get pink noise, odd ones four other utterances, backwards."""
    if number % 2:
        voices = _speech()
        return torch.stack([_cut(voices[(number + 7 * k) % len(voices)].flip(0)) for k in (1, 2, 3, 4)]).sum(0)
    white = np.fft.rfft(np.random.default_rng(number).standard_normal(SAMPLES))
    frequency = np.fft.rfftfreq(SAMPLES)
    pink = np.fft.irfft(white / np.sqrt(np.maximum(frequency, frequency[1])))
    return torch.from_numpy(pink.astype(np.float32))


@cache
def _mixtures(scored: bool) -> tuple[Tensor, Tensor]:
    """([N, SAMPLES] speech with noise, the same without), of three utterances in four, or of the fourth."""
    numbers = [number for number in range(len(_speech())) if (number % 4 != 1) == scored]
    clean = torch.stack([_cut(_speech()[number]) for number in numbers])
    noise = torch.stack([_noise(number) for number in numbers])
    level = clean.norm(dim=1) / noise.norm(dim=1) * 10 ** (-NOISE_DB / 20)
    return clean + noise * level[:, None], clean


def _decibels(waves: Tensor, first: int) -> Tensor:
    """[N] signal to distortion, whatever the scale (Le Roux et al. 2019)."""
    clean = _mixtures(True)[1][first : first + len(waves), : waves.shape[1]]
    waves, clean = (x - x.mean(1, keepdim=True) for x in (waves.float(), clean))
    target = clean * ((waves * clean).sum(1) / clean.square().sum(1))[:, None]
    return 10 * (target.square().sum(1) / (waves - target).square().sum(1)).log10()


def scored() -> Scored:
    """Every fourth utterance calibrates, 37 others are scored."""
    return Scored(
        metric="SI-SDR dB",
        build=lambda: load_weights(Enhancer(), data_folder("dtln") / "weights.safetensors"),
        calibration=lambda: list(_mixtures(False)[0][:12].split(4)),
        predict=in_batches(lambda: _mixtures(True)[0], 1, _decibels),
        score=lambda decibels, index: float(decibels[index].mean()),
    )
