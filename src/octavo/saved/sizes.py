"""What the nodes of a graph produce, as plain data: shapes, dtypes, and sizes as expressions of symbols.

    None, a number    {"value": …}              a tensor   {"shape": […], "dtype": "float32", "device": "cpu"}
    several of them   {"several": […]}          a size     {"size": …}

A size is an integer, the name of a symbol, or [function, argument, …] (`octavo_serve.sizes`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy import functions as torch_functions

from octavo.errors import QuantizationError, refused
from octavo_serve.sizes import bounded, size_of

Json = Any  # None, bool, int, float, str, and lists and dicts of them

# Of which the expressions of sizes are made.
_FUNCTIONS: dict[str, Any] = {
    function.__name__: function for function in (sympy.Add, sympy.Mul, sympy.Pow, sympy.Max, sympy.Min)
} | {
    name: getattr(torch_functions, name)
    for name in ("FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "ModularIndexing", "Max", "Min", "PowByNatural")
}  # fmt: skip


class Symbols:
    """The sizes of a graph that depend on its inputs, named in the order in which they are met.

    values  {name: the size in the example}
    """

    def __init__(self) -> None:
        self._names: dict[Any, str] = {}
        self.values: dict[str, int] = {}

    def name(self, symbol: Any, environment: ShapeEnv) -> str:
        """The name of a symbol of torch's."""
        if symbol not in self._names:
            self._names[symbol] = f"s{len(self._names)}"
            self.values[self._names[symbol]] = int(environment.backed_var_to_val[symbol])
        return self._names[symbol]

    def known(self, symbol: Any) -> str:
        """The name of a symbol that was met; KeyError for another."""
        return self._names[symbol]


def value_record(val: Any, symbols: Symbols) -> Json:
    """What a node produces, as data."""
    if isinstance(val, Tensor):
        shape = [size_record(size, symbols) for size in val.shape]
        return {"shape": shape, "dtype": str(val.dtype).removeprefix("torch."), "device": str(val.device)}
    if isinstance(val, tuple | list):
        return {"several": [value_record(item, symbols) for item in val]}
    if isinstance(val, SymInt):
        return {"size": size_record(val, symbols)}
    return {"value": val if isinstance(val, bool | int | float | str) else None}


def size_record(size: int | SymInt, symbols: Symbols) -> Json:
    if not isinstance(size, SymInt):
        return int(size)
    return _expression_record(size.node.expr, lambda symbol: symbols.name(symbol, size.node.shape_env))


def _expression_record(expression: Any, name_of: Callable[[Any], str]) -> Json:
    if isinstance(expression, sympy.Integer):
        return int(expression)
    if isinstance(expression, sympy.Rational):
        return ["Rational", int(expression.p), int(expression.q)]
    if isinstance(expression, sympy.Symbol):
        return name_of(expression)
    name = expression.func.__name__
    if name not in _FUNCTIONS:
        raise QuantizationError(
            asked="save a network",
            seen=f"a size in it is {expression}",
            remedy="capture it with fewer dynamic axes",
        )
    return [name, *(_expression_record(argument, name_of) for argument in expression.args)]


class Values:
    """Makes the values of nodes, under one fake mode in which sizes are expressions of the same symbols.

    Every size is computed for the example first, in whole numbers and step by step, and refused where it is absurd:
    nothing is allocated, and no expression built, for a size that no network has.
    """

    def __init__(self, symbols: Mapping[str, int]) -> None:
        self.environment = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.environment, allow_non_fake_inputs=True)
        self.hints = {name: int(bounded(hint)) for name, hint in symbols.items()}
        self.symbols = {name: self._symbol(name, hint) for name, hint in self.hints.items()}

    def _symbol(self, name: str, hint: int) -> Any:
        source = ConstantSource(name)
        return self.environment.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)

    def read(self, record: Json) -> Any:
        """What `value_record` wrote.

        raises  QuantizationError for sizes that no network has
        """
        if "shape" in record:
            shape = [self._size(size) for size in record["shape"]]
            with self.mode:
                return torch.empty(shape, dtype=dtype_named(record["dtype"]), device=record["device"])
        if "several" in record:
            return tuple(self.read(item) for item in record["several"])
        return self._size(record["size"]) if "size" in record else record["value"]

    def _size(self, record: Json) -> int | SymInt:
        hint = self.in_example(record)
        if isinstance(record, int):
            return record
        size = self.environment.create_symintnode(self._expression(record), hint=hint)
        assert isinstance(size, int | SymInt)
        return size

    def in_example(self, record: Json) -> int:
        """The size in the example, a whole number."""
        return size_of(record, self.hints)

    def _expression(self, record: Json) -> Any:
        if isinstance(record, int):
            return sympy.Integer(record)
        if isinstance(record, str):
            return self.symbols[record]
        name, *arguments = record
        if name == "Rational":
            return sympy.Rational(*arguments)
        return _FUNCTIONS[name](*map(self._expression, arguments))


def dtype_named(name: str) -> torch.dtype:
    """torch's dtype of that name; QuantizationError if it has none."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        seen = f"torch {torch.__version__} has no dtype {name[:40]!r}"
        raise refused(None, seen, "use the version of torch that the network was saved with")
    return found
