"""Octavo's networks served: what `octavo.save` wrote, run on OpenVINO or ONNX Runtime. Numpy and the engine, no torch.

network = octavo_serve.load("net.octavo")
network(array)

It is part of Octavo, and a distribution of its own, `octavo-serve`, for machines that have no torch (docs/serve.md).
"""

from octavo_serve.errors import QuantizationError
from octavo_serve.served import Served, load

__all__ = ["QuantizationError", "Served", "load"]
