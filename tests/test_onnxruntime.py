"""The ONNX Runtime engine: it computes what the simulation says, and is called like the user's model.

Without its fusions it is the simulation but for ties. With them it rounds in other places: biases to integers of the
accumulator's scale, sums and pooled values to those of the next operation; near a tie these go either way, by one step.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from conftest import runs_here
from octavo.engines import available, compile
from octavo.errors import QuantizationError
from octavo.network.graph import call_arguments
from octavo.network.simulate import simulate

pytest.importorskip("onnxruntime")

BOUNDS = {"none": (3e-4, 3e-2), "all": (4e-3, 4e-2)}  # mean and largest difference, of the largest output


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        y = F.relu6(self.stem(x))
        y = y + self.pointwise(F.relu6(self.depthwise(y)))
        return {"logits": self.head(y.mean((2, 3))), "nothing": None}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)

    def forward(self, tokens):
        return self.encoder(self.table(tokens))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layer(x)[0])


CASES = {
    "convolutions": (Convolutions, lambda n: torch.randn(n, 3, 12, 12), (0,)),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 5, 6), (0,)),
    "tokens": (Tokens, lambda n: torch.randint(50, (n, 5 + n)), (0, 1)),
}


def assert_agrees(engine, reference, batch, fusion) -> None:
    mean, largest = BOUNDS[fusion]
    args, kwargs = call_arguments(batch)
    with torch.no_grad():
        wanted, found = tree_leaves(reference(*args, **kwargs)), tree_leaves(engine(*args, **kwargs))
    for want, have in zip(wanted, found, strict=True):
        if want is None:
            assert have is None
            continue
        errors = (have - want).abs() / want.abs().max()
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
        assert float(errors.mean()) <= mean
        assert float(errors.max()) <= largest


@pytest.mark.parametrize("fusion", ["all", "none"])
@pytest.mark.parametrize("target", ["openvino", "tensorrt", "paper"])
@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_simulation_says(calibrated, case, target, fusion) -> None:
    build, make, axes = CASES[case]
    graph, params = calibrated(build(), make(4), target=runs_here(target), dynamic_axes=axes)
    engine = compile(graph, params, engine="onnxruntime", threads=1, fusion=fusion)
    for batch in (1, 3):
        assert_agrees(engine, simulate(graph, params), make(batch), fusion)


def test_the_float_network_is_the_baseline(calibrated) -> None:
    graph, _ = calibrated(Convolutions(), torch.randn(4, 3, 12, 12))
    engine = compile(graph, None, engine="onnxruntime", threads=1)
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(engine(x)["logits"], graph(x)["logits"].detach(), rtol=0, atol=1e-5)


def test_calls_from_several_threads_do_not_mix(calibrated) -> None:
    graph, params = calibrated(Convolutions(), torch.randn(4, 3, 12, 12))
    engine = compile(graph, params, engine="onnxruntime", threads=1)
    batches = [torch.randn(1 + i % 3, 3, 12, 12) for i in range(24)]
    alone = [engine(x)["logits"] for x in batches]
    with ThreadPoolExecutor(4) as pool:
        together = [out["logits"] for out in pool.map(engine, batches)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_input_of_another_dtype_is_refused(calibrated) -> None:
    graph, params = calibrated(Convolutions(), torch.randn(4, 3, 12, 12))
    engine = compile(graph, params, engine="onnxruntime", threads=1)
    with pytest.raises(QuantizationError, match=r"x: asked to run on torch.float64, but the network was captured with"):
        engine(torch.randn(1, 3, 12, 12, dtype=torch.float64))


def test_the_door_knows_it() -> None:
    assert "onnxruntime" in available()
