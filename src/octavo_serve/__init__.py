"""Octavo's networks served: what `octavo.save` wrote, run on OpenVINO or ONNX Runtime. Numpy and the engine, no torch.

network = octavo_serve.load("net.octavo")
network(array)

It is part of Octavo, and a distribution of its own, `octavo-serve`, for machines that have no torch (docs/serve.md).
"""

from typing import TYPE_CHECKING, Any

from octavo_serve.errors import QuantizationError

if TYPE_CHECKING:
    from octavo_serve.served import Served, load

__all__ = ["QuantizationError", "Served", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'octavo_serve' has no attribute {name!r}")
    from octavo_serve import served  # noqa: PLC0415 (with numpy, which `import octavo` need not wait for)

    return getattr(served, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
