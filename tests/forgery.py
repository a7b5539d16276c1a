"""A saved network taken apart and put together again, with digests that are right: what a forger can do."""

import json
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from octavo.network.quantized import Quantized

Parts = dict[str, bytes]
MANIFEST, NETWORK = "manifest.json", "network.json"


def parts_of(path: Path) -> Parts:
    """The files of an artifact by name, without its manifest."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != MANIFEST}


def manifest_of(parts: Parts, **changes: Any) -> bytes:
    """A manifest in which everything is right, but for `changes`."""
    files = {name: {"size": len(data), "sha256": sha256(data).hexdigest()} for name, data in parts.items()}
    facts = {"format": "octavo", "schema_version": 2, "engine": "reference", "versions": {}, "files": files}
    return json.dumps(facts | changes).encode()


def write(path: Path, parts: Parts, manifest: bytes | None = None, **changes: Any) -> Path:
    """An artifact of these parts."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, manifest_of(parts, **changes) if manifest is None else manifest)
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def quantized(model: nn.Module, example: Any, **capturing: Any) -> Quantized:
    """A small network, calibrated on its example."""
    graph = octavo.capture(model.eval(), example, **capturing)
    plan = octavo.make_plan(graph, target="paper")
    return octavo.choose_params(plan, octavo.observe(plan, [example]), "max")


class Branches(nn.Module):
    """Products, a table, sizes that depend on the inputs, a keyword argument and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, tokens: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        x = self.table(tokens)
        y = torch.relu(self.a(x)).reshape(tokens.shape[0] * tokens.shape[1], 8)
        return {"scores": self.b(y) * scale, "mean": x.mean(1) / tokens.shape[1]}


class Convolutions(nn.Module):
    """Convolutions with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head((x + self.body(x)).mean((2, 3)))


SAMPLES = {
    "branches": (Branches, lambda: {"tokens": torch.arange(12).reshape(3, 4), "scale": 0.5}, {"dynamic_axes": (0, 1)}),
    "convolutions": (Convolutions, lambda: torch.linspace(-2, 2, 2 * 3 * 36).reshape(2, 3, 6, 6), {}),
    "linear": (lambda: nn.Linear(4, 3), lambda: torch.linspace(-1, 1, 8).reshape(2, 4), {}),
}


def save_sample(name: str, path: Path, engine: str = "reference", **options: Any) -> Any:
    """Save the small network of that name; its example."""
    build, example, capturing = SAMPLES[name]
    torch.manual_seed(0)  # the same file at every call: its mutations are numbered
    octavo.save(quantized(build(), example(), **capturing), path, engine=engine, **options)
    return example()
