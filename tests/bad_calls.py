"""Bad calls of a network that was captured with x [N, 4, 8], and what `evaluate` may return by mistake, as data."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import octavo
from bad_numbers import BAD_SCORES
from bad_values import Case

Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls(x: Tensor) -> dict[str, Call]:
    """{what is bad: positional and keyword arguments}."""
    alone = {
        "None": None,
        "a number": 1.0,
        "a string": "text",
        "a list of numbers": x.tolist(),
        "a list of tensors": list(x),
        "a tuple": (x,),
        "a dict": {"x": x},
        "an array": x.numpy(),
        "an array of objects": np.array([None]),
        "a class": Tensor,
        "a network": nn.Linear(8, 4),
        "a scalar tensor": torch.tensor(1.0),
        "another rank": x[0],
        "a rank too many": x[None],
        "other channels": x[:, :3],
        "another length": x[:, :, :5],
        "float64": x.double(),
        "float16": x.half(),
        "bfloat16": x.bfloat16(),
        "int64": x.long(),
        "bool": x > 0,
        "complex": x.to(torch.complex64),
        "meta": x.to("meta"),
        "sparse": x.to_sparse(),
        "compressed": x[0].to_sparse_csr(),
        "nested": torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged),
        "quantized": torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    }
    found: dict[str, Call] = {name: ((value,), {}) for name, value in alone.items()}
    return found | {
        "nothing": ((), {}),
        "two tensors": ((x, x), {}),
        "None behind it": ((x, None), {}),
        "by its name": ((), {"x": x}),
        "another name": ((), {"y": x}),
        "a name too many": ((x,), {"mask": x}),
        "twice": ((x,), {"x": x}),
    }


def right(x: Tensor) -> dict[str, Tensor]:
    """What looks odd and is right: the result has to be that of the plain tensor."""
    channels_last = x.unsqueeze(-1).contiguous(memory_format=torch.channels_last).squeeze(-1)
    expanded = x[:1].expand_as(x)
    return {
        "transposed in memory": x.transpose(1, 2).contiguous().transpose(1, 2),
        "every other sample": x.repeat_interleave(2, dim=0)[::2],
        "with a gradient": x.clone().requires_grad_(),
        "computed with a gradient": x.clone().requires_grad_() * 1.0,
        "channels last": channels_last,
        "one sample repeated": expanded,
        "a parameter": nn.Parameter(x.clone()),
        "conjugate view": torch.view_as_real(torch.view_as_complex(x.reshape(2, 4, 4, 2))).reshape(2, 4, 8),
        "negated view": torch._neg_view(-x),
        "many samples": x.repeat(9, 1, 1),
    }


def cases(networks: dict[str, Callable[..., object]], x: Tensor) -> Iterator[Case]:
    """Every bad call of every network."""
    for engine, network in networks.items():
        for bad, (args, kwargs) in calls(x).items():
            yield Case(
                function=engine,
                bad=bad,
                named=("x:", "mask:", "y:", "argument 1, "),
                call=partial(network, *args, **kwargs),
            )


def scores(model: nn.Module, x: Tensor) -> Iterator[Case]:
    """`octavo.quantize` with every bad `evaluate`."""
    for bad in ("None", "text", "a dict", "NaN", "complex", "a ragged list", "a tensor of one", "a complex tensor"):
        evaluate = BAD_SCORES[f"returns {bad}"]
        options = {"calibration": [x], "evaluate": evaluate, "engine": "simulation", "trials": 1, "progress": False}
        yield Case(
            function="quantize",
            bad=f"returns {bad}",
            named=("evaluate",),
            call=partial(octavo.quantize, model, **options),
        )
