"""Every dtype in and out of the two readers of ONNX: what torch returns, or one error that says what to do."""

import pytest
import torch
from torch import nn

from octavo.engines import available, compile
from octavo.errors import QuantizationError
from octavo.network.simulate import simulate

ENGINES = [engine for engine in ("openvino", "onnxruntime") if engine in available()]
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip


def cast(self, x, other):
    """A result of the dtype, an input that is returned, one that is read, and one (`other` again) beside them."""
    y = self.layer(x)
    read = self.layer(other.float())
    return (10 * y).round().abs().clamp(max=100).to(self.dtype) if self.dtype is not torch.bool else y > 0, other, read


def batch(dtype):
    x = torch.randn(3, 4)
    other = (10 * torch.randn(3, 4)).abs()
    return x, other > 5 if dtype is torch.bool else other.to(dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_in_and_out(calibrated, network, dtype, quantized, engine) -> None:
    model = network(cast, layer=nn.Linear(4, 4), dtype=dtype).eval()
    net = calibrated(model, batch(dtype), target=engine)
    if not quantized:
        net = net.graph
    unknown_to_plugin = dtype in (torch.float64, torch.int16) and quantized and engine == "openvino"
    if dtype is torch.bfloat16 or unknown_to_plugin:
        with pytest.raises(QuantizationError, match=r"bfloat16, which has no array|does not support (f64|i16)"):
            compile(net, engine=engine)
        return
    compiled = compile(net, engine=engine, threads=1)
    inputs = batch(dtype)
    reference = simulate(net) if quantized else model
    for want, have in zip(reference(*inputs), compiled(*inputs), strict=True):
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        if want.dtype is torch.bool:
            assert (have == want).float().mean() > 0.5  # a value at zero may go either way
        else:
            wanted, bound = want.detach().double(), 0.0 if want is inputs[1] else 0.05  # a step or two at a tie
            torch.testing.assert_close(
                have.double(), wanted, rtol=0, atol=bound * float(wanted.abs().max()) + (bound > 0)
            )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_dtype(calibrated, network, dtype, engine) -> None:
    model = network(lambda self, x: self.layer(x), layer=nn.Linear(4, 4).to(dtype))
    net = calibrated(model, torch.randn(3, 4, dtype=dtype), target=engine)
    with pytest.raises(QuantizationError, match=r"asked to compile for .*, but it failed \("):
        compile(net, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_input_that_nothing_reads_is_passed_all_the_same(calibrated, network, engine) -> None:
    """OpenVINO has no port for it."""
    model = network(lambda self, x, unused: self.layer(x), layer=nn.Linear(4, 4))
    net = calibrated(model, (torch.randn(3, 4), torch.rand(3)), target=engine)
    x = torch.randn(5, 4)
    want = simulate(net)(x, torch.rand(5)).detach()
    torch.testing.assert_close(compile(net, engine=engine)(x, torch.rand(5)), want, rtol=0, atol=0.1)
