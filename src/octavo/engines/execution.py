"""How an engine says that it runs an operation: measured or read from what it compiled, never assumed."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the engine runs one compute-heavy operation, in the engine's words.

    kernel          "Convolution", "FullyConnected", "MatMul", "attention", …
    precision       what it is called: "u8", "i8", "f32", "bf16"; of the weight alone if only that is quantized
    implementation  what is computed, "brgconv_avx512_I8" on integers and "brgemm_avx512_f32" in float
    """

    kernel: str
    precision: str
    implementation: str

    @property
    def on_integers(self) -> bool:
        """Whether it multiplies integers."""
        return self.implementation.endswith(("_i8", "_I8"))

    @property
    def arithmetic(self) -> Literal["int8", "float"]:
        """What it computes in."""
        return "int8" if self.on_integers else "float"
