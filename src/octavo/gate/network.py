"""A network from elsewhere, whatever made it, as something that named arrays go through."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import QuantizationError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input of a network.

    dtype  None where the runtime does not say
    shape  with None for an axis of any size; None where the runtime does not say; the first axis is that of the samples
    needed whether there is no call without it
    """

    name: str
    dtype: Any = None
    shape: tuple[int | None, ...] | None = None
    needed: bool = True

    def misfit(self, array: Array) -> str | None:
        """Why `array`, samples along its first axis, cannot go in here; None if it can."""
        if self.dtype is not None and array.dtype != self.dtype:
            return f"it has to be {np.dtype(self.dtype)}, and the array is {array.dtype}"
        if self.shape is None:
            return None
        same_rank = len(self.shape) == array.ndim
        if not same_rank or any(a not in (None, b) for a, b in zip(self.shape[1:], array.shape[1:], strict=True)):
            return f"it has to be {shaped(self.shape)}, and the array is {shaped(array.shape)}"
        return None

    def __str__(self) -> str:
        kind = "" if self.dtype is None else f" {np.dtype(self.dtype)}"
        return f"{self.name}{kind}{'' if self.shape is None else ' ' + shaped(self.shape)}"


def shaped(shape: tuple[int | None, ...]) -> str:
    """A shape in words, with * for an axis of any size."""
    return f"[{', '.join('*' if size is None else str(size) for size in shape)}]"


@dataclass(frozen=True, kw_only=True)
class Product:
    """A compute-heavy operation as it ran: a convolution, a matrix product, a recurrent layer.

    multiplications  of the call that was looked at; None if they cannot be told
    """

    layer: str
    kernel: str
    on_integers: bool
    multiplications: float | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a runtime says of a network that it ran.

    by        how that is known
    products  in the order in which they ran; None if the runtime does not tell
    by_batch  whether scales are taken from a whole batch while it runs: samples then depend on those beside them
    """

    by: str
    products: tuple[Product, ...] | None = None
    by_batch: bool = False

    @property
    def on_integers(self) -> int:
        """How many products ran on integers."""
        return sum(product.on_integers for product in self.products or ())

    @property
    def share_of_layers(self) -> float | None:
        """Of the products, those that ran on integers, 0 … 1; None if there are none, or it is not known."""
        return self.on_integers / len(self.products) if self.products else None

    @property
    def share_of_work(self) -> float | None:
        """Of the multiplications, those on integers, 0 … 1; None if those of one product are not known."""
        work = [product.multiplications for product in self.products or ()]
        known = [one for one in work if one is not None]
        if len(known) < len(work) or not sum(known):
            return None
        own = (one.multiplications or 0.0 for one in self.products or () if one.on_integers)
        return sum(own) / sum(known)

    @property
    def share(self) -> float | None:
        """The share on integers: of the multiplications, or else of the products; None if it is not known."""
        return self.share_of_layers if self.share_of_work is None else self.share_of_work


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network that runs.

    name     as the user called it
    kind     what it is: a row of `kinds.KINDS`
    runtime  what runs it, with its version
    inputs   in the order of the network; None for code that takes whatever it is given
    call     arrays by the names of the inputs → arrays by the names of the outputs
    told     what ran on integers in a call with such arrays
    network  what is called like the user's own model, with tensors, if it is one; None for a file of arrays
    size_mb  megabytes (10⁶ bytes) of what is deployed; None for code
    """

    name: str
    kind: str
    runtime: str
    inputs: tuple[Port, ...] | None
    call: Callable[[Arrays], dict[str, Array]]
    told: Callable[[Arrays], Told]
    network: Callable[..., Any] | None = None
    size_mb: float | None = None

    @property
    def fixed_batch(self) -> int | None:
        """How many samples every call takes; None for any number.

        raises  QuantizationError for inputs of which each takes another number: their first axis is not the samples
        """
        sizes = {port.shape[0] for port in self.inputs or () if port.shape and port.shape[0] is not None}
        if len(sizes) > 1:
            raise QuantizationError(
                asked=f"run {self.name} on samples",
                seen=f"the first axes of its inputs, that of the samples, are fixed to {sorted(sizes)}",
                remedy="check a file whose inputs have the samples along their first axis",
            )
        return next(iter(sizes), None)
