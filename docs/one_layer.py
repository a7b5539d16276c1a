"""One linear layer from float32 to integers and back, step by step: what Octavo does to every layer of a network.

    python docs/one_layer.py

The order and the equations are those of Wu et al. 2020 (arXiv 2004.09602), §3. Two names differ. `scale` is the real
value of one integer step, as in ONNX and PyTorch; the paper's s is 1 / scale. A range runs from `low` to `high`; the
paper writes [β, α]. `octavo.numerics.affine` has the conversions that every engine is tested against; the integer
arithmetic between them is plain numpy here.
"""

import numpy as np
import torch

from octavo.numerics.affine import QParams, dequantize, params_from_range, params_from_tensor, quantize
from octavo.numerics.scheme import Scheme

# §3.1.1, affine quantization: any range onto [-128, 127]; the integer that stands for 0.0 is the zero-point.
ACTIVATION = Scheme(bits=8, signed=True, symmetric=False)

# §3.1.2, scale quantization: a range around zero onto [-127, 127], so the zero-point is 0.
# §3.2, granularity: one scale for each output channel, axis 0 of a weight [outputs, inputs].
WEIGHT = Scheme(bits=8, signed=True, symmetric=True, axis=0)


def float_layer(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """What is to be computed: y = x · Wᵀ + b, float64 [samples, outputs]."""
    return x.astype(np.float64) @ weight.astype(np.float64).T + bias


def calibrated(samples: np.ndarray) -> QParams:
    """Scale and zero-point for all values that a tensor had in the calibration data ("max calibration", §3.4).

        scale = (high − low) / 255          zero_point = round(−128 − low / scale)

    The range is widened to hold 0.0, which is then exactly the integer zero_point: padding and ReLU cost nothing.
    """
    return params_from_range(float(samples.min()), float(samples.max()), ACTIVATION)


def integers(x: np.ndarray, params: QParams) -> np.ndarray:
    """q = clip(round(x / scale) + zero_point, qmin, qmax), int8 (§3.1)."""
    return quantize(torch.from_numpy(x), params).numpy()


def integer_bias(bias: np.ndarray, q_weight: np.ndarray, x: QParams, weight: QParams) -> np.ndarray:
    """All of a sum that does not depend on the data, int32 [outputs]: computed once, before the network runs (§3.3).

    With x ≈ s_x · (q_x − z_x) and w ≈ s_w · q_w the layer is

        y ≈ s_x · s_w · ( Σ q_x · q_w  −  z_x · Σ q_w  +  b / (s_x · s_w) )
                          └ integers ┘   └──────── this bias ────────┘

    An affine activation costs no more than this constant. Had the *weights* a zero-point too, z_w · Σ q_x would have to
    be summed anew for every input: that is why they have none. The scales stand in front of the sum because they do not
    vary along it: s_w may differ from one output to the next, but not from one input to the next (§3.2).
    """
    step = x.scale.numpy().astype(np.float64) * weight.scale.numpy()
    return (np.rint(bias / step) - int(x.zero_point) * q_weight.sum(axis=1, dtype=np.int64)).astype(np.int32)


def integer_layer(q_x: np.ndarray, q_weight: np.ndarray, q_bias: np.ndarray) -> np.ndarray:
    """The sums, int32 [samples, outputs]. This is all that the multipliers of a processor see of the layer.

    No product is larger than 128 · 127 < 2^14: 2^17 of them fit into int32, whatever they are.
    """
    return q_x.astype(np.int32) @ q_weight.astype(np.int32).T + q_bias


def real(sums: np.ndarray, x: QParams, weight: QParams) -> np.ndarray:
    """The sums as real values, float64 [samples, outputs]: y = s_x · s_w · sum, one multiplication a value."""
    return sums * (x.scale.numpy().astype(np.float64) * weight.scale.numpy())


def requantized(sums: np.ndarray, x: QParams, weight: QParams, y: QParams) -> np.ndarray:
    """The sums as int8 for the next layer, without passing through real values: one multiplier for each output.

    q_y = clip(round(sum · s_x · s_w / s_y) + z_y, −128, 127)
    """
    multiplier = x.scale.numpy().astype(np.float64) * weight.scale.numpy() / y.scale.numpy()
    return np.clip(np.rint(sums * multiplier) + int(y.zero_point), y.scheme.qmin, y.scheme.qmax).astype(np.int8)


def main() -> None:
    rng = np.random.default_rng()
    weight, bias = rng.normal(size=(3, 16)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    calibration, x = (rng.exponential(size=(n, 16)).astype(np.float32) - 0.2 for n in (1000, 2))

    # Before the network runs: ranges of activations from calibration data, of weights from the weights themselves.
    of_x, of_y = calibrated(calibration), calibrated(float_layer(calibration, weight, bias))
    of_weight = params_from_tensor(torch.from_numpy(weight), WEIGHT)
    q_weight = integers(weight, of_weight)
    q_bias = integer_bias(bias, q_weight, of_x, of_weight)
    print(f"inputs   {float(of_x.scale):.5f} a step, zero is {int(of_x.zero_point)}")
    print(f"weights  {of_weight.scale.numpy().round(5)} a step, one for each output; zero is 0")

    # While it runs.
    q_x = integers(x, of_x)
    sums = integer_layer(q_x, q_weight, q_bias)
    y, wanted = real(sums, of_x, of_weight), float_layer(x, weight, bias)
    q_y = requantized(sums, of_x, of_weight, of_y)
    back = dequantize(torch.from_numpy(q_y), of_y).double()
    print(f"sums     {sums.tolist()}, {sums.dtype}")
    print(f"output   {y.round(3).tolist()}")
    print(f"float    {wanted.round(3).tolist()}")
    print(f"next     {q_y.tolist()}, {q_y.dtype}: {back.numpy().round(3).tolist()}")
    noise = np.square(y - wanted).sum() / np.square(wanted).sum()
    print(f"The output is {-10 * np.log10(noise):.1f} dB from float.")


if __name__ == "__main__":
    main()
