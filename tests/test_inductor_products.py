"""Products of two activations on the inductor engine: every way in which operands broadcast, and every kind of mask."""

import itertools

import pytest
import torch
from torch import nn

from conftest import Network
from octavo.engines.inductor import lowered
from octavo.engines.lowering.product import attend
from octavo.engines.native import compiler, load_kernels
from octavo.network.simulate import simulate
from test_chain import assert_agrees
from test_openvino import prepared

pytestmark = pytest.mark.skipif(compiler() is None, reason="the inductor engine needs a C++ compiler")

B, H, S, T, D = 3, 2, 5, 7, 8  # batch, heads, queries, keys, width of a head


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    load_kernels()


# {how the operands broadcast: shapes of q, kᵀ and v}
SHAPES = {
    "none": ((B, H, S, D), (B, H, D, T), (B, H, T, D)),
    "one head of keys": ((B, H, S, D), (B, 1, D, T), (B, 1, T, D)),
    "one head of values": ((B, H, S, D), (B, H, D, T), (B, 1, T, D)),
    "keys of one image": ((B, H, S, D), (1, H, D, T), (1, H, T, D)),
    "queries of one image": ((1, H, S, D), (B, H, D, T), (B, H, T, D)),
    "keys without batch": ((B, H, S, D), (D, T), (T, D)),
    "keys without heads": ((B, S, D), (H, 1, D, T), (H, 1, T, D)),
    "three axes": ((B, S, D), (B, D, T), (B, T, D)),
    "three axes, one image": ((B, S, D), (1, D, T), (1, T, D)),
    "two axes": ((S, D), (D, T), (T, D)),
    "five axes": ((2, B, H, S, D), (2, B, H, D, T), (2, B, H, T, D)),
}


def floating(big):
    return lambda scores, keep: scores + torch.where(keep, 0.0, big)


def filling(number):
    return lambda scores, keep: scores.masked_fill(~keep, number)


# {kind of mask: what becomes of the scores, whether it hides keys as the fused kernel does}
MASKS = {
    "none": (lambda scores, keep: scores, True),
    "added −1e4": (floating(-1e4), True),
    "added −1e9": (floating(-1e9), True),
    "added lowest": (floating(torch.finfo(torch.float32).min), True),
    "added bias": (lambda scores, keep: scores + torch.linspace(-2, 2, T), True),
    "added integers": (lambda scores, keep: scores + keep.long(), True),
    "filled −∞": (filling(-torch.inf), True),
    "filled lowest": (filling(torch.finfo(torch.float32).min), True),
    "filled −1e9": (filling(-1e9), True),
    "filled −1e9, then halved": (lambda scores, keep: scores.masked_fill(~keep, -1e9) * 0.5, True),
    "filled −1e9, then 1e-9 of it": (lambda scores, keep: scores.masked_fill(~keep, -1e9) * 1e-9, False),
    "filled −1e9, then negated": (lambda scores, keep: scores.masked_fill(~keep, -1e9) / -0.25, False),
    "filled 0": (filling(0.0), False),
    "filled 1": (filling(1.0), False),
    "filled −5": (filling(-5.0), False),
    "filled ∞": (lambda scores, keep: (scores - 40).masked_fill(~keep, 40.0), False),
    "added to each": (lambda scores, keep: scores + torch.linspace(-2, 2, S * T).view(S, T), True),
    "read twice": (lambda scores, keep: scores + scores[..., :1, :], False),
}


def network(shapes, mask):
    """Query, key and value of three inputs, each rounded behind a linear of its own."""
    sizes = [shape[-1] for shape in shapes]
    layers = {name: nn.Linear(size, size) for name, size in zip("qkv", sizes, strict=True)}

    def forward(self, q, k, v, keep):
        scores = mask(self.q(q) @ self.k(k) * D**-0.5, keep)
        return scores.softmax(-1) @ self.v(v)

    return Network(forward, **layers).eval()


def inputs(shapes):
    keep = torch.rand(T) < 0.6
    keep[int(torch.randint(T, ()))] = True
    return *(torch.randn(shape) for shape in shapes), keep


def fused(module) -> int:
    return sum(node.target is attend for node in module.graph.nodes)


@pytest.mark.parametrize(("shapes", "mask"), [*itertools.product(SHAPES, MASKS)])
def test_products_broadcast_and_masks_mask(shapes, mask) -> None:
    """Unseen inputs; the fused kernel where the shapes and the mask are its own, and only there."""
    between, hides = MASKS[mask]
    net = network(SHAPES[shapes], between)
    params = prepared(net, inputs(SHAPES[shapes]), target="onednn", dynamic_axes=())
    module, executions = lowered(params)
    assert fused(module) == (hides and shapes in ("none", "three axes"))
    assert all(execution.on_integers for execution in executions.values())
    assert_agrees(module, simulate(params), inputs(SHAPES[shapes]), decibels=40)


@pytest.mark.parametrize("axes", [(), (0,)])
@pytest.mark.parametrize("values", ["cat", "stack", "flip", "transposed"])
def test_values_that_are_put_together(values, axes) -> None:
    """A cache in front of the new keys and values, and other ways to get them."""
    arranged = {
        "cat": lambda old, new: torch.cat([old, new], 1),
        "stack": lambda old, new: torch.stack([new, new], 2).flatten(1, 2),
        "flip": lambda old, new: new.flip(1),
        "transposed": lambda old, new: new.transpose(1, 2).contiguous().transpose(1, 2),
    }[values]

    def forward(self, x, old):
        k, v = arranged(old, self.k(x)), arranged(old, self.v(x))
        return (self.q(x) @ k.transpose(-1, -2) / 4).softmax(-1) @ v

    net = Network(forward, **{name: nn.Linear(16, 16) for name in "qkv"}).eval()
    params = prepared(net, (torch.randn(B, S, 16), torch.randn(B, 3, 16)), target="onednn", dynamic_axes=axes)
    module, executions = lowered(params)
    assert all(execution.on_integers for execution in executions.values())
    fresh = torch.randn(B + len(axes), S, 16), torch.randn(B + len(axes), 3, 16)
    assert_agrees(module, simulate(params), fresh, decibels=40)
    assert fused(module) == 1


def test_values_of_two_grids_are_no_attention() -> None:
    """A concat of what is rounded apart is in float, and so are the values."""

    def forward(self, x, old):
        v = torch.cat([self.v(x).relu(), old * 100], 1)
        return (self.q(x) @ self.k(x).transpose(-1, -2) / 4).softmax(-1).matmul(v[:, :S]), self.o(v[:, S:])

    net = Network(forward, **{name: nn.Linear(16, 16) for name in "qkvo"}).eval()
    example = torch.randn(B, S, 16), torch.randn(B, 3, 16)
    for target in ("onednn", "openvino", "paper"):
        params = prepared(net, example, target=target)
        assert_agrees(lowered(params)[0], simulate(params), example, decibels=40)
