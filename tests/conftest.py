"""Small networks and checks that several test files share.

Every test has a seed of its own, which is printed if it fails. It is the same in every round: many bars are decibels of
networks with random weights, where one value at a tie more or less is several of them, and a change must not be blamed
for that. `make rounds` runs the suite with fresh seeds, to find what no fixed one shows.
"""

import os
import random
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from octavo.engines.isa import isa
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import call_arguments, capture
from octavo.network.marker import Mark, marks
from octavo.network.placement import make_plan
from octavo.network.plan import Plan
from octavo.network.quantized import Quantized
from octavo.network.rule import EVERYTHING
from octavo.network.target import CPU_FACTOR, CPU_WEIGHT, Target, target_named

SEED = os.environ.get("OCTAVO_SEED", "")  # "", "fresh", or a number to repeat a failure with
hypothesis.settings.register_profile("octavo", deadline=None, derandomize=SEED != "fresh")  # busy is no failure
hypothesis.settings.load_profile("octavo")

# Compiled code of the tests goes beside, and not into, the user's own cache.
os.environ.setdefault("OCTAVO_CACHE", str(Path(tempfile.gettempdir()) / f"octavo-tests-{os.getuid()}"))


def seeded(name: str) -> int:
    """Seeds torch, Python and numpy for what is called `name`; the number."""
    number = secrets.randbits(31) if SEED == "fresh" else int(SEED) if SEED else crc32(name.encode()) >> 1
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)
    return number


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test; set OCTAVO_SEED to the printed number to repeat a failure."""
    number = seeded(request.node.nodeid)
    print(f"OCTAVO_SEED={number}")
    return number


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of kernels made of other instructions than this CPU's best, three tests of four are slow."""
    for item in items:
        made_of = getattr(item, "callspec", None) and item.callspec.params.get("_every_isa")
        if made_of is not None and made_of != isa().name and crc32(item.nodeid.encode()) % 4:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> None:
    """A fixture that several tests share has a seed of its own too, whichever of them asks for it first."""
    if fixturedef.scope != "function":
        seeded(f"{fixturedef.baseid}::{fixturedef.argname}")


def edges(plan: Plan, site: str) -> list[Mark]:
    """Who reads what through the quantizer that serves `site`."""
    name = next(q.name for q in plan.quantizers if site in [one.name for one in q.sites])
    return [mark for mark in marks(plan.marked) if mark.name == name]


def runs_here(target: str | Target) -> Target:
    """`target` with weights that this CPU multiplies without overflow: of 7 bits where it has no VNNI.

    What is made for our own kernels stays as it is: they are exact everywhere.
    """
    named = target_named(target) if isinstance(target, str) else target
    return named if named.name == "onednn" else replace(named, weight=CPU_WEIGHT, factor=CPU_FACTOR)


class Network(nn.Module):
    """A module with the given children whose forward is `function(self, *inputs)`."""

    def __init__(self, function: Callable[..., Any], **children: Any) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def _attention(self: nn.Module, x: Tensor) -> Tensor:
    """Self-attention of four heads, and a feed-forward network."""
    batch, tokens, width = x.shape
    y = self.norm(x)
    q, k, v = (part(y).view(batch, tokens, 4, width // 4).transpose(1, 2) for part in (self.q, self.k, self.v))
    weights = (q @ k.transpose(-1, -2) / (width // 4) ** 0.5).softmax(-1)
    x = x + self.o((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
    return x + self.down(nn.functional.gelu(self.up(x)))


def transformer(width: int = 32) -> Network:
    linears = {name: nn.Linear(width, width) for name in "qkvo"}
    up, down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width, bias=False)
    return Network(_attention, norm=nn.LayerNorm(width), **linears, up=up, down=down).eval()


def separable(channels: int = 8, **depthwise: Any) -> nn.Sequential:
    """1×1, SiLU, depthwise 3×3, ReLU6, 1×1, with channels of very different size in between."""
    expand, middle = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 3, groups=channels, **depthwise)
    with torch.no_grad():
        sizes = torch.logspace(-1.5, 1.5, channels)
        expand.weight.mul_(sizes.reshape(-1, 1, 1, 1))
        middle.weight.div_(sizes.reshape(-1, 1, 1, 1))
    return nn.Sequential(expand, nn.SiLU(), middle, nn.ReLU6(), nn.Conv2d(channels, 4, 1)).eval()


class BasicBlock(nn.Module):
    """relu(norm2(conv2(relu(norm1(conv1(x))))) + skip), as in ResNet; 1×1 convolution in the skip if `downsample`."""

    def __init__(self, channels: int = 4, downsample: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=1 + downsample, padding=1, bias=False)
        self.norm1 = trained(nn.BatchNorm2d(channels))
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = trained(nn.BatchNorm2d(channels))
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(channels, channels, 1, stride=2) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.down is None else self.down(x)
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += skip
        return self.relu(y)


def trained(norm: nn.Module) -> nn.Module:
    """A batch-norm with statistics that are not the identity."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return norm


@pytest.fixture(name="network")
def _network() -> type[Network]:
    return Network


@pytest.fixture(name="basic_block", scope="session")
def _basic_block() -> type[BasicBlock]:
    return BasicBlock


@pytest.fixture(name="trained")
def _trained() -> Callable[[nn.Module], nn.Module]:
    return trained


def outputs(model: Any, batch: Any) -> list[Any]:
    args, kwargs = call_arguments(batch)
    with torch.no_grad():
        return tree_leaves(model(*args, **kwargs))


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """assert_same(model, graph, batch, …): equal up to float32 rounding on every batch, in shape and dtype too."""

    def check(model: nn.Module, graph: Any, *batches: Any, rtol: float = 1e-4) -> None:
        model.eval()
        for batch in batches:
            wanted, found = outputs(model, batch), outputs(graph, batch)
            assert len(wanted) == len(found)
            for want, have in zip(wanted, found, strict=True):
                size = (
                    float(want.detach().abs().max()) if isinstance(want, Tensor) and want.is_floating_point() else 0.0
                )
                torch.testing.assert_close(have, want, rtol=0, atol=rtol * (size or 1.0))

    return check


@pytest.fixture
def calibrated() -> Callable[..., Quantized]:
    """calibrated(model, example): quantized by max calibration on the example itself."""

    def run(model: nn.Module, example: Any, rules: Any = (EVERYTHING,), target: Any = "paper", **capturing: Any) -> Any:
        graph = capture(model, example, **capturing)
        plan = make_plan(graph, rules, target=target)
        return choose_params(plan, observe(plan, [example]), "max")

    return run
