"""The networks that `latency.py` times. Where weights cannot be had from a package they are random, and marked so.

Architectures: ResNet-50 (He et al. 2015, stride in the 3 × 3), MobileNetV2 (Sandler et al. 2018), BERT-base (Devlin et
al. 2018), the encoder of Whisper-tiny (Radford et al. 2022).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.zoo import ds_cnn_s, efficientnet_lite0, minilm

TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to time.

    build           in evaluation mode
    inputs          batch size → positional inputs
    dynamic_axes    of the inputs, beside which everything is fixed
    random_weights  whether only its speed means something
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    dynamic_axes: tuple[int, ...] = (0,)
    random_weights: bool


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """[N, inputs, H, W] → [N, 4 · width, H / stride, W / stride]."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = _convolution(inputs, width, 1), _convolution(width, width, 3, stride)
        self.three = _convolution(width, 4 * width, 1)
        changes = stride != 1 or inputs != 4 * width
        self.shortcut = _convolution(inputs, 4 * width, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(F.relu(self.two(F.relu(self.one(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet50(nn.Module):
    """[N, 3, 224, 224] → [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 64, 7, 2)
        blocks, inputs = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(count):
                blocks.append(Bottleneck(inputs, width, stride if index == 0 else 1))
                inputs = 4 * width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


class Inverted(nn.Module):
    """[N, inputs, H, W] → [N, outputs, H / stride, W / stride]: widen, filter each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        width, self.adds = inputs * factor, stride == 1 and inputs == outputs
        self.widen = _convolution(inputs, width, 1) if factor > 1 else None
        self.filter, self.narrow = _convolution(width, width, 3, stride, width), _convolution(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.widen is None else F.relu6(self.widen(x))
        y = self.narrow(F.relu6(self.filter(y)))
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """[N, 3, 224, 224] → [N, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, blocks, inputs = _convolution(3, 32, 3, 2), [], 32
        table = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for factor, outputs, count, stride in table:
            for index in range(count):
                blocks.append(Inverted(inputs, outputs, stride if index == 0 else 1, factor))
                inputs = outputs
        self.blocks, self.last, self.head = nn.Sequential(*blocks), _convolution(inputs, 1280, 1), nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.last(self.blocks(F.relu6(self.stem(x)))))
        return self.head(x.mean((2, 3)))


class Layer(nn.Module):
    """A transformer's encoder layer, [N, S, width]; `first` normalises before each half, else after it."""

    def __init__(self, width: int, heads: int, *, first: bool) -> None:
        super().__init__()
        self.heads, self.first = heads, first
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.output, self.one, self.two = nn.Linear(width, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(context.transpose(1, 2).flatten(2))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.first:
            x = x + self.attention(self.one(x), mask)
            return x + self.feed_forward(self.two(x))
        x = self.one(x + self.attention(x, mask))
        return self.two(x + self.feed_forward(x))


class BertBase(nn.Module):
    """[N, S] token numbers and mask (0: padding) → [N, S, 768]."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position, self.norm = nn.Embedding(30522, 768), nn.Embedding(512, 768), nn.LayerNorm(768)
        self.layers = nn.ModuleList(Layer(768, 12, first=False) for _ in range(12))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.word(tokens) + self.position(torch.arange(tokens.shape[1])))
        seen = mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, seen)
        return x


class WhisperEncoder(nn.Module):
    """[N, 80, 3000] log-mel frames → [N, 1500, 384]."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(80, 384, 3, padding=1), nn.Conv1d(384, 384, 3, stride=2, padding=1)
        angles = torch.arange(1500)[:, None] * torch.exp(torch.arange(192) * (-math.log(10000) / 191))
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1))
        self.layers, self.norm = nn.ModuleList(Layer(384, 6, first=True) for _ in range(4)), nn.LayerNorm(384)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.gelu(self.two(F.gelu(self.one(frames)))).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def _images(batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 3, 224, 224),)


def _tokens(batch: int) -> tuple[Tensor, ...]:
    return torch.randint(1000, 20000, (batch, TOKENS)), torch.ones(batch, TOKENS, dtype=torch.int64)


NETWORKS: dict[str, Network] = {
    "efficientnet_lite0": Network(build=efficientnet_lite0.build, inputs=_images, random_weights=False),
    "resnet50": Network(build=lambda: ResNet50().eval(), inputs=_images, random_weights=True),
    "mobilenet_v2": Network(build=lambda: MobileNetV2().eval(), inputs=_images, random_weights=True),
    "minilm": Network(build=minilm.build, inputs=_tokens, dynamic_axes=(0, 1), random_weights=False),
    "bert_base": Network(build=lambda: BertBase().eval(), inputs=_tokens, dynamic_axes=(0, 1), random_weights=True),
    "whisper_tiny_encoder": Network(
        build=lambda: WhisperEncoder().eval(), inputs=lambda batch: (torch.randn(batch, 80, 3000),), random_weights=True
    ),
    "ds_cnn_s": Network(
        build=ds_cnn_s.build, inputs=lambda batch: (torch.randn(batch, 1, 49, 10),), random_weights=False
    ),
}
