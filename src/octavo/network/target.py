"""What an engine can express and what it fuses. A `Target` is a value that `make_plan` reads, not a branch in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from octavo.arguments import check_fields, checked
from octavo.errors import QuantizationError
from octavo.machine import adds_int8_pairs_in_16_bits
from octavo.network.residual import Branches
from octavo.numerics.scheme import AFFINE_UINT8, INT8, INT8_PER_CHANNEL, Scheme

# Activations saturate at −128, as QuantizeLinear does; the paper's −127 would need a clip before it.
INT8_FULL = Scheme(full_range=True)
UINT8 = Scheme(signed=False)
# Of the engines that run on this CPU: where pairs of products are added in 16 bits, eight bits would overflow.
CPU_WEIGHT = Scheme(bits=7, axis=0) if adds_int8_pairs_in_16_bits() else INT8_PER_CHANNEL
# The same of activations that stand where a weight does: on the right of a product, or as a computed weight.
CPU_FACTOR = Scheme(bits=7, full_range=True) if adds_int8_pairs_in_16_bits() else None


@dataclass(frozen=True, kw_only=True)
class Target:
    """How one engine wants a network quantized.

    weight       scheme of weights; axis 0 stands for the output channel, wherever the operation has it
    activation   scheme of activations, per tensor: an integer product must factor the scale out of its sum (§3.2)
    convolution  scheme of activations that convolutions read; None for the same as others
    channels     whether there is a scale for each channel where no sum runs over them: in what a depthwise convolution
                 reads, and in what a convolution returns to others, if that is rounded
    rows         whether linears and matmuls read every row on a scale of its own, taken while the network runs
    factor       scheme of activations that stand where a weight does: on the right of a product, or as a weight that is
                 computed; None for the same as others
    nonnegative  scheme of activations that cannot be negative (after ReLU, softmax); None for the same as others
    zero_points  whether the engine knows integers whose zero is not 0
    residual     which inputs of a residual addition: "both" (the paper), "skip" (not the branch that the engine fuses
                 into the convolution that produces it), "convolutions" (both, where a convolution is added) or "none"
    convolution_outputs  whether what a convolution returns is rounded for every reader, because the engine convolves on
                 integers only then; but not where the network returns it
    float_operations  {operation: reason} that the engine computes in float whatever it is told. Their weights are
                      still stored as integers, and the coverage names them
    """

    name: str
    weight: Scheme = INT8_PER_CHANNEL
    activation: Scheme = INT8_FULL
    convolution: Scheme | None = None
    channels: bool = False
    rows: bool = False
    factor: Scheme | None = None
    nonnegative: Scheme | None = None
    zero_points: bool = True
    residual: Branches = "skip"
    convolution_outputs: bool = False
    float_operations: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(name="paper", activation=INT8, residual="both"),
        Target(
            name="tensorrt",
            zero_points=False,
            float_operations={
                "lstm": "TensorRT runs recurrent layers in floating point",
                "gru": "TensorRT runs recurrent layers in floating point",
                "embedding": "TensorRT gathers in floating point; the table is stored in int8",
            },
        ),
        Target(
            name="openvino",
            weight=CPU_WEIGHT,
            convolution=AFFINE_UINT8,  # its convolutions read uint8 with a zero-point in any case
            channels=True,
            factor=CPU_FACTOR,
            nonnegative=UINT8,
            float_operations={
                "lstm": "OpenVINO computes recurrent layers in floating point; the weights are stored in int8",
                "gru": "OpenVINO computes recurrent layers in floating point; the weights are stored in int8",
            },
        ),
        Target(
            name="onnxruntime",
            weight=CPU_WEIGHT,
            activation=AFFINE_UINT8,  # its x86 kernels multiply uint8 by int8; signed activations run 1.5 to 3 x slower
            channels=True,  # scales of channels are moved into the weights around
            residual="convolutions",
            convolution_outputs=True,
            float_operations={
                "lstm": "ONNX Runtime computes recurrent layers in floating point; the weights are stored in int8",
                "gru": "ONNX Runtime computes recurrent layers in floating point; the weights are stored in int8",
            },
        ),
        Target(
            name="onednn",  # and our own kernels, which are exact on every CPU
            convolution=AFFINE_UINT8,  # as every activation is stored
            channels=True,
            nonnegative=UINT8,
            residual="skip",
            float_operations={
                "lstm": "torch computes recurrent layers in floating point; the weights are stored in int8",
                "gru": "torch computes recurrent layers in floating point; the weights are stored in int8",
            },
        ),
    )
}


@checked
def by_rows(target: Target) -> Target:
    """`target` with rows (see `Scheme`), and without rounding additions that no convolution fuses: no product needs it.

    octavo.make_plan(graph, target=octavo.by_rows(octavo.TARGETS["openvino"]))
    """
    return replace(target, rows=True, residual="skip" if target.residual == "both" else target.residual)


def target_named(name: str) -> Target:
    """The target of that name; raises QuantizationError listing those there are."""
    if name not in TARGETS:
        raise QuantizationError(
            asked=f"quantize for the target {name!r}",
            seen=f"the known targets are {', '.join(TARGETS)}",
            remedy="choose one of them, or pass a Target of your own",
        )
    return TARGETS[name]
