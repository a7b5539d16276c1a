"""What `capture` is given: any kind of model works or is one error that says what to do; the user's stays as it was."""

import copy
import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

import octavo
from octavo.errors import QuantizationError

X = torch.randn(3, 4)
STORE: list[object] = []


class Small(nn.Module):
    """A linear and a batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.b(self.a(x))


def small(dtype=torch.float32):
    return Small().eval().to(dtype)


MODELS = {
    "in training mode": lambda: Small().train(),
    "data parallel": lambda: nn.DataParallel(small()),
    "torch.compile": lambda: torch.compile(small()),
    "a compiled part": lambda: nn.Sequential(torch.compile(nn.Linear(4, 4)), nn.ReLU()).eval(),
    "a traced fx graph": lambda: torch.fx.symbolic_trace(small()),
    "captured before": lambda: octavo.capture(small(), X).module,
    "frozen parameters": lambda: small().requires_grad_(False),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_that_work(make):
    model = make()
    before = copy.deepcopy(model.state_dict())
    training = model.training
    graph = octavo.capture(model, X)
    assert model.training == training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    torch.testing.assert_close(graph(X), model.eval()(X))


def exported():
    return torch.export.export(small(), (X,))


def with_a_lock():
    model = small()
    model.lock = threading.Lock()
    return model


REFUSED = {
    "a function": (lambda: lambda x: x, "a module whose forward calls it"),
    "a method": (lambda: small().forward, "an instance of its class"),
    "an exported program": (exported, r"the module\(\) of an ExportedProgram"),
    "its module, of one size": (lambda: exported().module(), r"dynamic_axes=\(\) to fix the sizes of the example"),
    "a class": (lambda: Small, "model=the class Small.* an instance of its class"),
    "a state_dict": (lambda: small().state_dict(), "the model that a state_dict was loaded into"),
    "None": (lambda: None, "model=None"),
    "scripted": (lambda: torch.jit.script(small()), "that it was scripted or traced from"),
    "traced": (lambda: torch.jit.trace(small(), X), "that it was scripted or traced from"),
    "a scripted part": (
        lambda: nn.Sequential(small(), torch.jit.script(nn.Linear(6, 3))),
        "1: asked to capture a Torch",
    ),
    "meta": (lambda: small().to("meta"), "a.weight: .* on the meta device, which holds no values; load the weights"),
    "half": (lambda: small(torch.float16), "a: .* linear multiplies torch.float16 by torch.float32 .*model.*float"),
    "bfloat16": (lambda: small(torch.bfloat16), "linear multiplies torch.bfloat16 by torch.float32"),
    "double": (lambda: small(torch.float64), "linear multiplies torch.float32 by torch.float64"),
    "a lock": (with_a_lock, "cannot be copied .*; take locks, files"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")  # since torch 2.14; here it is what is refused
@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_models_that_are_one_error(make, says):
    with pytest.raises(QuantizationError, match=says):
        octavo.capture(make(), X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_another_dtype_with_inputs_of_it(dtype):
    model, x = small(dtype), X.to(dtype)
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(octavo.capture(model, x)(x), model(x), rtol=tolerance, atol=tolerance)


class Recorder:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def __call__(self, module, args, output) -> None:
        self.seen.append(output)


def into_a_global(module, args, output):
    STORE.append(output)


def through_a_helper(module, args, output):
    into_a_global(module, args, output)


def into_its_default(module, args, output, store=[]):  # noqa: B006 (what such hooks do)
    store.append(output)


def hooks():
    """{name: (hook, where it keeps what it sees)}."""
    own: list[object] = []
    object_, method = Recorder(), Recorder()
    return {
        "closure": (lambda module, args, output: own.append(output), own),
        "partial": (functools.partial(lambda store, module, args, output: store.append(output), own), own),
        "global": (into_a_global, STORE),
        "helper": (through_a_helper, STORE),
        "default": (into_its_default, into_its_default.__defaults__),
        "object": (object_, object_.seen),
        "method": (method.__call__, method.seen),
    }


@pytest.mark.parametrize("name", hooks())
def test_hooks_write_into_copies_of_what_they_hold(name):
    hook, kept = hooks()[name]
    model = small()
    handle = model.a.register_forward_hook(hook)
    graph = octavo.capture(model, X)
    assert not tree_leaves(list(kept))
    model(X)
    (seen,) = tree_leaves(list(kept))  # the user's own still works
    assert torch.equal(seen, model.a(X))
    handle.remove()
    torch.testing.assert_close(graph(X), model(X))
    for store in (STORE, kept, *kept):
        if isinstance(store, list):
            store.clear()


def test_hooks_that_change_the_output_are_part_of_the_network():
    model = small()
    model.a.register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(octavo.capture(model, X)(X), model(X))


def test_a_hook_that_cannot_be_copied_is_one_error():
    lock = threading.Lock()
    model = small()
    model.a.register_forward_hook(lambda module, args, output: lock.locked() and None)
    with pytest.raises(QuantizationError, match=r"^a: asked to copy the hook .* remove it before capture"):
        octavo.capture(model, X)


def test_what_a_model_stores_in_itself_stays_the_users(network):
    def forward(self, x):
        self.last = self.a(x)
        self.log.append(x)
        return self.last

    model = network(forward, a=nn.Linear(4, 3), log=[])
    model(X)
    kept = model.last
    octavo.capture(model, X)
    assert model.last is kept
    assert len(model.log) == 1
    assert model.log[0] is X


ALWAYS_ON = {
    "dropout": lambda self, x: F.dropout(self.a(x)),
    "dropout in place": lambda self, x: F.dropout(self.a(x), inplace=True),
    "dropout of channels": lambda self, x: F.dropout1d(self.a(x)),
    "alpha dropout": lambda self, x: F.alpha_dropout(self.a(x), training=True),
    "rrelu": lambda self, x: F.rrelu(self.a(x), training=True),
    "attention": lambda self, x: F.scaled_dot_product_attention(*[self.a(x)[None]] * 3, dropout_p=0.1),
    "batch-norm": lambda self, x: F.batch_norm(self.a(x), self.mean + 0, self.mean + 1, training=True),
}


class AlwaysOn(nn.Module):
    """A linear, and what does not know of evaluation mode."""

    def __init__(self, behind) -> None:
        super().__init__()
        self.a, self.behind = nn.Linear(4, 6), behind
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        return self.behind(self, x)


@pytest.mark.parametrize("behind", ALWAYS_ON.values(), ids=ALWAYS_ON)
def test_dropout_that_is_always_on_is_one_error_with_its_line(behind):
    with pytest.raises(QuantizationError, match=r"\(test_models.py:\d+, in forward: .*; pass training=self.training"):
        octavo.capture(AlwaysOn(behind).eval(), X)
