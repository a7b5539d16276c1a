"""Hama, a recogniser of phonemes: separable convolutions over time with squeeze and excitation, attention, CTC.

The phonemes of utterances are CMUdict's; what the network writes otherwise is read as they would write it.
"""

import json
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.data_networks.scored import Network, Scored
from octavo.zoo.sources import data_folder, package

WIDTH, HEADS, BLANK, SYMBOLS = 256, 4, 190, 191
DILATIONS = (1, 1, 2, 2, 4, 1, 1, 2, 2, 4, 1)
AGAINST_BLANK = 0.1  # taken from the logit of the blank, as its publisher does
LONGEST = 3000  # frames
# Symbols of other languages and accents that count as the English phoneme behind them.
READ_AS = {
    "ʌ": "ə", "ɐ": "ə", "ɔ": "ɑ", "ɒ": "ɑ", "ɜ": "ɝ", "ɚ": "ɝ", "r": "ɹ", "ɾ": "t", "g": "ɡ",
    "e": "ɛ", "a": "ɑ", "o": "oʊ", "ɫ": "l", "d͡ʒ": "dʒ", "t͡ʃ": "tʃ", "ɨ": "ɪ", "ᵊ": "ə", "y": "i",
}  # fmt: skip
SILENT = {"ː", "<wb>", "<unk>", "ˑ", " ", "˞"}
# Two symbols that are one phoneme.
JOINED = {"ɑɪ": "aɪ", "ɑʊ": "aʊ", "ɛɪ": "eɪ", "oʊʊ": "oʊ", "tʃ": "tʃ", "dʒ": "dʒ", "əɹ": "ɝ", "ɝɹ": "ɝ"}


class Excitation(nn.Module):
    """Each channel times what all of them together say of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv1d(WIDTH, 32, 1), nn.Conv1d(32, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.silu(self.fc1(x.mean(2, keepdim=True)))).sigmoid()


class Block(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, 9, padding=4 * dilation, dilation=dilation, groups=WIDTH)
        self.pointwise, self.se = nn.Conv1d(WIDTH, WIDTH, 1), Excitation()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se(F.silu(self.pointwise(self.depthwise(x))))


class Attention(nn.Module):
    """A transformer's layer that normalises first, [N, T, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.in_proj, self.out_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ff = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.in_proj(self.norm1(x)).chunk(3, 2)
        query, key, value = (part.unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2) for part in parts)
        context = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out_proj(context.transpose(1, 2).flatten(2))
        return x + self.ff(self.norm2(x))


class Recogniser(nn.Module):
    """[N, 80, T] logarithms of mel bands → [N, T / 2, 191] logits of symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(80, WIDTH, 3, 2, 1)
        self.backbone = nn.Sequential(*map(Block, DILATIONS))
        self.attn_layers = nn.Sequential(Attention(), Attention())
        self.proj = nn.Conv1d(WIDTH, SYMBOLS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(F.gelu(self.stem(x))).transpose(1, 2)
        return self.proj(self.attn_layers(x).transpose(1, 2)).transpose(1, 2)


def build() -> nn.Module:
    """The file keeps float16."""
    network = Recogniser()
    stored = load_file(data_folder("hama_asr") / "weights.safetensors")
    network.load_state_dict({name: weight.float() for name, weight in stored.items()})
    return network.eval()


@cache
def _utterances() -> list[tuple[Tensor, list[str]]]:
    """([1, 80, T], phonemes) of each utterance all of whose words the dictionary has."""
    soundfile, speech = package("soundfile"), data_folder("librispeech")
    listed = json.loads((data_folder("hama_asr") / "phonemes.json").read_text(encoding="utf-8"))
    waves = [torch.from_numpy(soundfile.read(str(speech / name), dtype="float32")[0]) for name, _ in listed]
    return [(mel_bands(wave), phonemes) for wave, (_, phonemes) in zip(waves, listed, strict=True)]


def mel_bands(wave: Tensor) -> Tensor:
    """[1, 80, T] natural logarithms of the power in each band, a frame every 10 ms of a wave at 16 kHz."""
    kernels = load_file(data_folder("hama_asr") / "features.safetensors")
    padded = F.pad(wave[None, None], (200, 200), mode="reflect")
    parts = [F.conv1d(padded, kernels[f"stft_{part}_kernel"], stride=160) for part in ("real", "imag")]
    power = parts[0].square() + parts[1].square()
    bands = power.transpose(1, 2) @ kernels["mel_fb"]
    return bands.clamp_min(1e-10).log().transpose(1, 2)[..., :LONGEST].contiguous()


@cache
def _symbols() -> list[str]:
    found: list[str] = json.loads((data_folder("hama_asr") / "symbols.json").read_text(encoding="utf-8"))
    return found


def phonemes_of(logits: Tensor) -> list[str]:
    """What [T, 191] logits say: the best symbol of each frame, repetitions and blanks left out (Graves et al. 2006)."""
    logits = logits.clone()
    logits[:, BLANK] -= AGAINST_BLANK
    numbers = logits.argmax(1).unique_consecutive().tolist()
    spoken: list[str] = []
    for symbol in (READ_AS.get(s, s) for s in (_symbols()[number] for number in numbers if number != BLANK)):
        if symbol in SILENT:
            continue
        pair = (spoken[-1] if spoken else "") + symbol
        if spoken and pair in JOINED:
            spoken[-1] = JOINED[pair]
        else:
            spoken.append(symbol)
    return spoken


def edits(found: list[str], wanted: list[str]) -> int:
    """How many insertions, deletions and replacements lead from one to the other."""
    row = list(range(len(wanted) + 1))
    for i, one in enumerate(found, 1):
        above, row = row, [i]
        for j, other in enumerate(wanted, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (one != other)))
    return row[-1]


def _predict(network: Network) -> Tensor:
    """[utterances, 2]: edits, and phonemes that there are."""
    rows = []
    with torch.inference_mode():
        for frames, wanted in (pair for i, pair in enumerate(_utterances()) if i % 4):
            rows.append([edits(phonemes_of(network(frames)[0].float()), wanted), len(wanted)])
    return torch.tensor(rows)


def _score(counts: Tensor, index: Any) -> float:
    wrong, all_of_them = counts[index].sum(0).tolist()
    return 100 - 100 * wrong / all_of_them


def scored() -> Scored:
    """Every fourth utterance calibrates, the others are scored."""
    return Scored(
        metric="100 − phoneme errors %",
        build=build,
        calibration=lambda: [frames for frames, _ in _utterances()[::4]],
        dynamic_axes=(0, 2),
        predict=_predict,
        score=_score,
        transformer=True,
    )
