"""The one error a user sees: what was asked, what was seen, what to do. It is that of `octavo_serve`, a floor below."""

from octavo_serve.errors import QuantizationError, naming, reading, reason, refused

__all__ = ["QuantizationError", "naming", "reading", "reason", "refused"]
