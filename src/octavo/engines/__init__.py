"""Engines: a quantized network executed. Choose one by name through `compile`; all are called like the user's model."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from octavo.engines.native import compiler
from octavo.errors import QuantizationError
from octavo.machine import adds_int8_pairs_in_16_bits
from octavo.network.device import on_cpu
from octavo.network.graph import Graph
from octavo.network.operations import is_factor
from octavo.network.quantized import Network, Origin, Quantized, remember
from octavo.network.target import TARGETS, Target

SAFE_WEIGHT = 63  # 2 · 255 · 63 < 2¹⁵


@dataclass(frozen=True, kw_only=True)
class Engine:
    """All that is known of one engine: where its function is, what it needs, and what it does.

    packages    that must be there before it is imported
    compiler    whether it needs a C++ compiler
    target      the name of the target whose networks run best on it
    reads_onnx  whether it takes the ONNX model that lies in a saved network
    precisions  of its float network, beside which the integer one is timed
    decisive    the packages beside torch whose versions decide what it computes
    vectorized  whether its products of integers are the CPU's own, with the CPU's limits; ours are exact on all
    near_tie    how far from a tie, in steps, a value may lie that it rounds the other way than the simulation
    """

    module: str
    function: str
    packages: tuple[str, ...] = ()
    compiler: bool = False
    target: str = "paper"
    reads_onnx: bool = False
    precisions: tuple[str, ...] = ()
    decisive: tuple[str, ...] = ()
    vectorized: bool = True
    near_tie: float = 2**-10  # float32 sums in another order, other polynomials (docs/engines.md)

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed."""
        return tuple(package for package in self.packages if find_spec(package) is None)

    @property
    def lacks(self) -> str | None:
        """What keeps it from being used here, and what to do; None if nothing does."""
        if self.missing:
            names = self.missing
            return f"{', '.join(names)} cannot be imported; pip install {' '.join(names)}"
        if self.compiler and compiler() is None:
            return "there is no C++ compiler; install g++"
        return None


ENGINES: dict[str, Engine] = {
    "openvino": Engine(
        module="octavo.engines.openvino",
        function="compile_openvino",
        packages=("onnx", "onnxscript", "openvino"),
        target="openvino",
        reads_onnx=True,
        precisions=("f32", "bf16"),
        decisive=("openvino", "onnx"),
    ),
    "inductor": Engine(
        module="octavo.engines.inductor",
        function="compile_inductor",
        compiler=True,
        target="onednn",
        precisions=("f32", "bf16"),
        vectorized=False,
    ),
    "onnxruntime": Engine(
        module="octavo.engines.onnxruntime",
        function="compile_onnxruntime",
        packages=("onnx", "onnxscript", "onnxruntime"),
        target="onnxruntime",
        reads_onnx=True,
        decisive=("onnxruntime", "onnx"),
        near_tie=2**-5,  # it rounds biases to the unit of the sums, and pooled values and sums once more
    ),
    "reference": Engine(module="octavo.engines.reference", function="compile_reference", vectorized=False),
}


def available() -> tuple[str, ...]:
    """The engines that can be used here, fastest first."""
    return tuple(name for name, engine in ENGINES.items() if engine.lacks is None)


def target_for(engine: str) -> Target:
    """The target whose networks run best on `engine`; for the simulation and the reference, the paper's."""
    return TARGETS[ENGINES[engine].target if engine in ENGINES else "paper"]


def compile(net: Quantized | Graph, *, engine: str = "openvino", **options: Any) -> Network:
    """The quantized network, ready to be called like the user's model, on the CPU; `ENGINES` has a row for each choice.

    net      of a captured graph the float network is compiled, where the engine can: the baseline to compare with
    options  go to the engine's own function, see there
    warns    UserWarning if this CPU may overflow on weights of eight bits, as those without VNNI do
    raises   QuantizationError for an unknown engine, or one whose package is not installed
    """
    row = ENGINES.get(engine)
    if row is None:
        raise QuantizationError(
            asked=f"compile for the engine {engine!r}",
            seen=f"the known engines are {', '.join(ENGINES)}",
            remedy="choose one of them",
        )
    if row.lacks is not None:
        seen, _, remedy = row.lacks.partition("; ")
        raise QuantizationError(
            asked=f"compile for the engine {engine!r}",
            seen=seen,
            remedy=f"{remedy}, or choose one of {', '.join(available())}",
        )
    if row.vectorized and isinstance(net, Quantized) and adds_int8_pairs_in_16_bits():
        _warn_of_overflow(net)
    net = on_cpu(net)
    build: Callable[..., Network] = getattr(import_module(row.module), row.function)
    compiled = build(net, **options)
    return remember(compiled, Origin(net=net, engine=engine))


def _warn_of_overflow(net: Quantized) -> None:
    factors = [
        q for q in net.plan.quantizers if q.constant or any(is_factor(site.operation, site.role) for site in q.sites)
    ]
    schemes = {q.name: net.values[q.name].scheme for q in factors}
    wide = [name for name, scheme in schemes.items() if scheme.signed and scheme.qmax > SAFE_WEIGHT]
    if wide:
        warnings.warn(
            f"{len(wide)} weights or right-hand sides, {wide[0]} first, have eight bits, and on this CPU, which has no "
            f"VNNI, pairs of int8 products are added in 16 bits: results may be wrong. Make the plan here for the "
            f"engine's own target, where they have seven bits on such a CPU; or compare with octavo.verify",
            UserWarning,
            stacklevel=3,
        )
