"""Saved networks without torch: the same bits as with it, whatever they take and return; a file stays data."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import octavo
import octavo_serve
from forgery import parts_of, write
from octavo.engines import available
from octavo.errors import QuantizationError
from octavo.network.graph import call_arguments
from octavo_serve import served

ENGINES = [engine for engine in ("openvino", "onnxruntime") if engine in available()]
Pair = namedtuple("Pair", "first second")

# Importing torch, or what only octavo with torch needs, is an error in this process.
WITHOUT = """
import pickle, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "numba", "onnx", "onnxscript", "rich", "pydantic", "sympy"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import octavo
with open(sys.argv[2], "rb") as file:
    calls = pickle.load(file)
network = octavo.load(sys.argv[1])
found = [network(*args, **kwargs) for args, kwargs in calls]
plain = lambda value: value._asdict() if hasattr(value, "_asdict") else value
with open(sys.argv[3], "wb") as file:
    pickle.dump([plain(each) for each in found], file)
assert not {"torch", "numba", "onnx", "onnxscript", "rich"} & set(sys.modules)
"""


def convolutions(self: Any, x: Any) -> Any:
    y = torch.relu(self.stem(x))
    return {"logits": self.head((y + self.body(y)).mean((2, 3))), "nothing": None}


def two_inputs(self: Any, image: Any, scale: Any) -> Any:
    y = self.a(image) * scale
    return Pair(y, [self.b(y), (y.sum(1),)])


def tokens(self: Any, ids: Any) -> Any:
    y = self.table(ids)
    return self.head(torch.relu(self.a(y))), ids + 1


CASES: dict[str, tuple[Any, dict[str, nn.Module], Any, Any]] = {
    # {name: (forward, layers, inputs of a batch, dynamic axes)}
    "convolutions": (
        convolutions,
        {
            "stem": nn.Conv2d(3, 16, 3, padding=1),
            "body": nn.Conv2d(16, 16, 3, padding=1, groups=16),
            "head": nn.Linear(16, 4),
        },
        lambda n: torch.randn(n, 3, 8, 8),
        (0,),
    ),
    "two inputs and nested outputs": (
        two_inputs,
        {"a": nn.Linear(16, 16), "b": nn.Linear(16, 4)},
        lambda n: (torch.randn(n, 16), torch.rand(n, 1)),
        (0,),
    ),
    "ids and a length that varies": (
        tokens,
        {"table": nn.Embedding(50, 16), "a": nn.Linear(16, 32), "head": nn.Linear(32, 50)},
        lambda n: torch.randint(50, (n, 3 + n)),
        (0, 1),
    ),
}


def as_arrays(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.numpy() if isinstance(leaf, torch.Tensor) else leaf, value)


def assert_equal(found: Any, wanted: Any) -> None:
    """The same structure, types and bits; a namedtuple is a dict where it had to be pickled."""
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.numpy().dtype
        np.testing.assert_array_equal(np.asarray(found), wanted.numpy())
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_equal(found[key], wanted[key])
    elif hasattr(wanted, "_asdict"):
        assert_equal(found if isinstance(found, dict) else found._asdict(), wanted._asdict())
    elif isinstance(wanted, tuple | list):
        assert type(found) is type(wanted)
        assert len(found) == len(wanted)
        for have, want in zip(found, wanted, strict=True):
            assert_equal(have, want)
    else:
        assert found == wanted


@pytest.fixture
def saved(network: Any, calibrated: Any, tmp_path: Path) -> Any:
    """saved(case, engine) → where it lies."""

    def save(name: str, engine: str, **how: Any) -> Path:
        function, layers, inputs, axes = CASES[name]
        net = calibrated(network(function, **layers).eval(), inputs(3), target=engine, dynamic_axes=axes)
        octavo.save(net, tmp_path / "net.octavo", engine=engine, **how)
        return tmp_path / "net.octavo"

    return save


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_without_torch_a_network_gives_the_same_bits(name: str, engine: str, saved: Any, tmp_path: Path) -> None:
    path, calls = saved(name, engine), [call_arguments(CASES[name][2](n)) for n in (2, 5, 1)]
    (tmp_path / "calls").write_bytes(pickle.dumps(as_arrays(calls)))
    command = [sys.executable, "-c", WITHOUT, str(path), str(tmp_path / "calls"), str(tmp_path / "found")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with_torch = octavo.load(path)
    for (args, kwargs), found in zip(calls, pickle.loads((tmp_path / "found").read_bytes()), strict=True):
        assert_equal(found, with_torch(*args, **kwargs))


@pytest.mark.parametrize("engine", ENGINES)
def test_tensors_come_back_for_tensors(engine: str, saved: Any) -> None:
    network, x = octavo_serve.load(saved("two inputs and nested outputs", engine)), CASES["convolutions"]
    x = CASES["two inputs and nested outputs"][2](4)
    found, arrays = network(*x), network(*as_arrays(x))
    assert isinstance(found.first, torch.Tensor)
    assert isinstance(arrays.first, np.ndarray)
    assert_equal(arrays, found)
    assert type(found).__name__ == "Pair"


def test_a_folder_is_served_too(saved: Any) -> None:
    path = saved("convolutions", ENGINES[0], form="folder")
    x = np.ones((2, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(
        octavo_serve.load(path)(x)["logits"], octavo.load(path)(torch.from_numpy(x))["logits"]
    )


@pytest.mark.skipif(len(ENGINES) < 2, reason="one engine is not here")
def test_what_was_saved_for_onnx_runtime_is_served_on_openvino_too(saved: Any) -> None:
    path, x = saved("convolutions", "onnxruntime"), torch.randn(2, 3, 8, 8)
    assert_equal(octavo_serve.load(path, engine="openvino")(x.numpy()), octavo.load(path, engine="openvino")(x))


def test_what_was_saved_for_openvino_is_not_served_on_onnx_runtime(saved: Any) -> None:
    with pytest.raises(QuantizationError, match="it was saved for 'openvino', without what onnxruntime needs; load it"):
        octavo_serve.load(saved("convolutions", "openvino"), engine="onnxruntime")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads_are_a_number(threads: Any, saved: Any) -> None:
    with pytest.raises(QuantizationError, match="it is no number of threads"):
        octavo_serve.load(saved("convolutions", ENGINES[0]), threads=threads)


def test_a_path_is_a_path() -> None:
    with pytest.raises(QuantizationError, match="from a int, but that is no path"):
        octavo_serve.load(3)


@pytest.mark.skipif("openvino" not in ENGINES, reason="OpenVINO is not here")
def test_a_network_from_openvinos_cache_gives_the_same_bits(saved: Any, tmp_path: Path) -> None:
    path, x = saved("convolutions", "openvino"), np.ones((2, 3, 8, 8), np.float32)
    wanted = octavo_serve.load(path)(x)["logits"]
    for _ in range(2):
        np.testing.assert_array_equal(octavo_serve.load(path, cache=tmp_path / "cache")(x)["logits"], wanted)
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.skipif("onnxruntime" not in ENGINES, reason="ONNX Runtime is not here")
def test_a_transposed_weight_is_stored_once(network: Any, calibrated: Any, tmp_path: Path) -> None:
    layers = {"a": nn.Linear(256, 512), "b": nn.Linear(512, 256)}
    model = network(lambda self, x: self.b(torch.relu(self.a(x))), **layers).eval()
    net = calibrated(model, torch.randn(3, 256), target="onnxruntime")
    octavo.save(net, tmp_path / "net.octavo", engine="onnxruntime")
    assert octavo.size_mb(tmp_path / "net.octavo") <= 0.3 * octavo.size_mb(model)


# ---- how it is called


@pytest.fixture
def ids(saved: Any) -> Any:
    return octavo_serve.load(saved("ids and a length that varies", ENGINES[0]))


def test_it_says_what_it_reads(ids: Any) -> None:
    (read,) = ids.inputs
    assert (read.dtype, len(read.shape), read.rows) == ("int64", 2, 50)
    assert all(isinstance(size, str) for size in read.shape)


BAD_CALLS = {
    "nothing": ((), {}, "it was called with 0 by position"),
    "one too many": ((np.zeros((1, 2), np.int64),) * 2, {}, "it was called with 2 by position"),
    "another name": ((), {"tokens": np.zeros((1, 2), np.int64)}, "tokens by name"),
    "a list": (([[1, 2]],), {}, "it is a list; pass numpy.asarray"),
    "another dtype": ((np.zeros((1, 2), np.int32),), {}, "it is of int32; pass .*astype"),
    "another byte order": ((np.zeros((1, 2), ">i8"),), {}, "it is of >i8"),
    "another number of axes": ((np.zeros(2, np.int64),), {}, "it has 1 axes, and the network was captured with 2"),
    "a row that is none": ((np.full((1, 2), 50),), {}, "a table that has 50"),
    "a negative row": ((np.full((1, 2), -1),), {}, "a table that has 50"),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_a_call_that_does_not_fit_is_one_error(what: str, ids: Any) -> None:
    args, kwargs, message = BAD_CALLS[what]
    with pytest.raises(QuantizationError, match=message):
        ids(*args, **kwargs)


def test_sizes_that_do_not_fit_are_one_error(saved: Any) -> None:
    network = octavo_serve.load(saved("two inputs and nested outputs", ENGINES[0]))
    with pytest.raises(QuantizationError, match="an axis of it is 15, and has to be 16"):
        network(np.zeros((2, 15), np.float32), np.zeros((2, 1), np.float32))
    with pytest.raises(QuantizationError, match="an axis of it is 3, where the same is 2 elsewhere"):
        network(np.zeros((2, 16), np.float32), np.zeros((3, 1), np.float32))


NOT_PLAIN = {
    "bfloat16": (lambda x: x.bfloat16(), r"it is of torch.bfloat16; pass .*to\(torch.float32\)"),
    "float64": (lambda x: x.double(), r"it is of torch.float64; pass .*to\(torch.float32\)"),
    "meta": (lambda x: x.to("meta"), "it is on the meta device"),
    "sparse": (lambda x: x.to_sparse(), "it is torch.sparse_coo; pass .*to_dense"),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_a_tensor_that_is_no_array_is_one_error(what: str, saved: Any) -> None:
    make, message = NOT_PLAIN[what]
    with pytest.raises(QuantizationError, match=message):
        octavo_serve.load(saved("convolutions", ENGINES[0]))(make(torch.randn(2, 3, 8, 8)))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_number_that_cannot_be_written_to_is_read(engine: str, network: Any, calibrated: Any, tmp_path: Path) -> None:
    """As those are that lie in the samples: OpenVINO refused to share the memory of an array of no axes."""
    model, example = (
        network(lambda self, x, k: self.a(x) * k, a=nn.Linear(8, 4)).eval(),
        (torch.randn(3, 8), torch.tensor(2.0)),
    )
    octavo.save(calibrated(model, example, target=engine), tmp_path / "net.octavo", engine=engine)
    served_network, arrays = octavo_serve.load(tmp_path / "net.octavo"), as_arrays(example)
    for array in arrays:
        array.flags.writeable = False
    assert_equal(served_network(*arrays), octavo.load(tmp_path / "net.octavo")(*example))


@pytest.mark.parametrize("arguments", [{"engine": []}, {"engine": 3}, {"check": "yes"}, {"cache": 3}])
def test_arguments_are_of_their_types(arguments: dict[str, Any], saved: Any) -> None:
    (name,) = arguments
    with pytest.raises(QuantizationError, match=f"{name}="):
        octavo_serve.load(saved("convolutions", ENGINES[0]), **arguments)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_served_network_cannot_leave_its_process(take: Any, saved: Any) -> None:
    with pytest.raises(QuantizationError, match="asked to copy or pickle a Served"):
        take(octavo_serve.load(saved("convolutions", ENGINES[0])))


def test_a_user_without_a_home_is_served(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no entry in the list of users: nothing is remembered."""
    path = saved("convolutions", ENGINES[0])
    for name in ("HOME", "OCTAVO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    for _ in range(2):
        assert octavo_serve.load(path)(np.ones((1, 3, 8, 8), np.float32))["logits"].shape == (1, 4)


# ---- what cannot be served, and what was altered


@pytest.mark.parametrize("facts", [{"versions": []}, {"files": []}, {"files": "x"}])
def test_a_manifest_of_lists_is_one_error(facts: dict[str, Any], tmp_path: Path) -> None:
    whole = {"format": "octavo", "schema_version": 3, "engine": "openvino", "versions": {}, "files": {}} | facts
    (tmp_path / "manifest.json").write_text(json.dumps(whole))
    for load in (octavo_serve.load, octavo.load):
        with pytest.raises(QuantizationError, match=r"manifest\.json is none of Octavo's"):
            load(tmp_path)


def test_a_file_of_an_older_version_says_what_to_do(saved: Any, tmp_path: Path) -> None:
    parts = {name: data for name, data in parts_of(saved("convolutions", ENGINES[0])).items() if "serve" not in name}
    path = write(tmp_path / "old.octavo", parts, schema_version=2, engine=ENGINES[0])
    with pytest.raises(QuantizationError, match=r"saved by an older version, .*; load it with torch and save it again"):
        octavo_serve.load(path)
    assert octavo.load(path)(torch.ones(2, 3, 8, 8))["logits"].shape == (2, 4)


def test_an_engine_without_onnx_is_not_served(saved: Any, calibrated: Any, tmp_path: Path) -> None:
    octavo.save(calibrated(nn.Linear(4, 3), torch.randn(2, 4)), tmp_path / "r.octavo", engine="reference")
    with pytest.raises(QuantizationError, match="without torch run openvino, onnxruntime; save it for one of those"):
        octavo_serve.load(tmp_path / "r.octavo")


def forged(path: Path, change: Any, part: str = "serve.json") -> Path:
    """The network at `path` with a part changed, and digests that are right."""
    parts = parts_of(path)
    parts[part] = change(parts[part])
    return write(path.with_name("forged.octavo"), parts, schema_version=3, engine=ENGINES[0])


def with_json(**changes: Any) -> Any:
    return lambda data: json.dumps(json.loads(data) | changes).encode()


LEAF = {"kind": "leaf", "name": "", "keys": [], "children": []}


def with_size(size: Any) -> Any:
    """A change of the first axis of the first input."""

    def changed(data: bytes) -> bytes:
        record = json.loads(data)
        record["leaves"][0]["shape"][0] = size
        return json.dumps(record).encode()

    return changed


def nested(depth: int) -> Any:
    return ["Add", nested(depth - 1)] if depth else "s0"


def model_part() -> str:
    return served.MODELS[ENGINES[0]]


FORGED_RECORDS = {
    "no structure": with_json(inputs={"kind": "leaf", "name": "", "keys": [], "children": []}),
    "more outputs": with_json(returned=["a", "b", "c"]),
    "another dtype": lambda data: data.replace(b'"float32"', b'"float64"'),
    "an unknown dtype": lambda data: data.replace(b'"float32"', b'"object"'),
    "not JSON": lambda data: data[:-5],
    "nested without end": lambda data: b"[" * 100_000 + b"]" * 100_000,
    "a name that is none": with_json(outputs={"kind": "named", "name": "a b", "keys": [], "children": []}),
    "no samples": with_json(samples=[{"x": "input.9.9"}]),
    "an output that is neither a name nor a value": with_json(
        outputs={"kind": "tuple", "name": "", "keys": [], "children": [LEAF, LEAF]}, returned=["linear", 3]
    ),
    "structures without end": lambda data: data.replace(
        b'"outputs": {', b'"outputs": ' + b'{"kind": "tuple", "name": "", "keys": [], "children": [' * 200 + b"{", 1
    ).replace(b', "returned"', b"]}" * 200 + b', "returned"', 1),
    "a size of no function": with_size([["Add"], 2]),
    "a size of a text too many": with_size({"s0": 1}),
    "a size below zero": with_size(-1),
    "a size nested without end": with_size(nested(900)),
    "a key too few": lambda data: json.dumps({k: v for k, v in json.loads(data).items() if k != "most"}).encode(),
}


@pytest.mark.parametrize("what", FORGED_RECORDS)
def test_a_forged_record_is_one_error(what: str, saved: Any) -> None:
    path = forged(saved("convolutions", ENGINES[0]), FORGED_RECORDS[what])
    with pytest.raises(QuantizationError, match="asked to load a saved network, but"):
        octavo_serve.load(path)


def test_a_size_that_cannot_be_computed_is_one_error_of_the_call(saved: Any) -> None:
    for size in (["Mod", 3], ["Add", 1, ["Mod", 1]]):
        network = octavo_serve.load(forged(saved("convolutions", ENGINES[0]), with_size(size)))
        with pytest.raises(QuantizationError, match="Mod is not computed from 1 numbers"):
            network(np.ones((1, 3, 8, 8), np.float32))


def with_node(change: Any) -> Any:
    """A change of the ONNX model as `onnx` reads it."""

    def changed(data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        change(model)
        return model.SerializeToString()

    return changed


def elsewhere(model: Any) -> None:
    tensor = next(each for each in model.graph.initializer if each.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = "/etc/passwd"


def beyond(model: Any) -> None:
    tensor = next(each for each in model.graph.initializer if each.external_data)
    next(entry for entry in tensor.external_data if entry.key == "offset").value = str(10**9)


def circle(model: Any) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def graph_in_an_attribute(model: Any) -> None:
    attribute = model.graph.node[0].attribute.add(name="body")
    attribute.type, attribute.g.name = 5, "a graph"


def axes(model: Any) -> None:
    tensor = next(each for each in model.graph.initializer if each.external_data)
    tensor.dims.extend([2**62] * 60_000)  # their product was ten seconds of work


FORGED_MODELS = {
    "sixty thousand axes": (axes, "has 6000. axes"),
    "an operator that is not allowed": (lambda m: setattr(m.graph.node[0], "op_type", "If"), "operator is not allowed"),
    "a domain": (lambda m: setattr(m.graph.node[0], "domain", "evil"), "operator is not allowed"),
    "a function": (lambda m: m.functions.add(name="f"), "a field 25 in its Model"),
    "a graph in an attribute": (graph_in_an_attribute, "a field 6 in its Attribute"),
    "a tensor elsewhere": (elsewhere, "points outside its tensors"),
    "a tensor beyond the file": (beyond, "points outside its tensors"),
    "a circle": (circle, "which nothing before it gives"),
    "an output more": (lambda m: m.graph.output.add(name="x"), "nothing gives|not those of the network"),
    "another opset": (lambda m: setattr(m.opset_import[0], "version", 9), "of the operator sets"),
    "sparse tensors": (lambda m: m.graph.sparse_initializer.add(), "a field 15 in its Graph"),
    "metadata": (lambda m: m.metadata_props.add(key="a", value="b"), "a field 14 in its Model"),
}


@pytest.mark.parametrize("what", FORGED_MODELS)
def test_a_forged_model_never_reaches_the_engine(what: str, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_on_engine", lambda *args, **options: pytest.fail("it was compiled"))
    change, message = FORGED_MODELS[what]
    path = forged(saved("convolutions", ENGINES[0]), with_node(change), model_part())
    with pytest.raises(QuantizationError, match=message):
        octavo_serve.load(path)


def test_bytes_that_protobuf_would_skip_are_refused(saved: Any) -> None:
    unknown = bytes([99 << 3 & 0x7F | 0x80, 99 << 3 >> 7, 1])  # field 99, a varint
    twice = bytes([1 << 3, 8])  # another ir_version
    nodes = b"\x3a\xc2\x84\x3d" + b"\x0a\x00" * 500_001  # half a million that are empty, in a graph
    for extra, message in (
        (unknown, "a field 99"),
        (twice, "two of the field ir_version"),
        (b"\xff" * 11, "ten bytes"),
        (nodes, "more fields than any network has"),
    ):
        path = forged(saved("convolutions", ENGINES[0]), lambda data, extra=extra: data + extra, model_part())
        with pytest.raises(QuantizationError, match=message):
            octavo_serve.load(path)


def other(model: Any) -> None:
    next(each for each in model.graph.node if each.op_type == "Relu").op_type = "Neg"


def test_a_model_that_computes_something_else_is_refused(saved: Any) -> None:
    path = forged(saved("convolutions", ENGINES[0]), with_node(other), model_part())
    with pytest.raises(QuantizationError, match="dB from the simulation, where rounding accounts for"):
        octavo_serve.load(path)
    assert octavo_serve.load(path, check=False)(np.ones((1, 3, 8, 8), np.float32))["logits"].shape == (1, 4)


def test_a_check_that_held_is_remembered(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved("convolutions", ENGINES[0])
    octavo_serve.load(path)
    monkeypatch.setattr(served, "_check", lambda *args: pytest.fail("it was checked again"))
    octavo_serve.load(path)


@pytest.mark.parametrize("part", ["serve.json", "the model", "tensors.safetensors", "samples.safetensors"])
def test_whatever_bytes_a_part_holds_there_is_a_network_or_one_error(
    part: str, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests are right, and no engine runs: what reads files is on its own."""
    path, source = saved("ids and a length that varies", ENGINES[0]), np.random.default_rng(0)
    name = model_part() if part == "the model" else part
    monkeypatch.setattr(served, "_on_engine", lambda *args, **options: lambda arrays: [np.zeros(1)] * 2)
    refused = 0
    for _ in range(150):

        def mutated(data: bytes) -> bytes:
            changed = bytearray(data)
            for at in source.integers(0, min(len(data), 4000), source.integers(1, 4)):
                changed[at] = source.integers(256)
            return bytes(changed[: source.integers(1, len(data))] if source.random() < 0.1 else changed)

        try:
            octavo_serve.load(forged(path, mutated, name))
        except QuantizationError:
            refused += 1
    assert refused > 15


def test_the_distribution_that_serves_is_of_this_version_and_needs_numpy_alone() -> None:
    facts = tomllib.loads((Path(__file__).parent.parent / "packages" / "serve" / "pyproject.toml").read_text())[
        "project"
    ]
    assert facts["version"] == octavo.__version__
    assert [re.match("[a-z]+", name)[0] for name in facts["dependencies"]] == ["numpy"]
    assert facts["optional-dependencies"].keys() == served.MODELS.keys()


# ---- octavo.load on a machine that has torch

LATER = """
import sys
import octavo
network = octavo.load(sys.argv[1])
print(type(network).__name__, "torch" in sys.modules)
"""


def test_where_torch_is_installed_a_file_is_loaded_with_it_within_limits(saved: Any, tmp_path: Path) -> None:
    """Whatever was imported before: what bounds a stranger's file must not depend on that."""
    command = [sys.executable, "-W", "ignore", "-c", LATER, str(saved("convolutions", ENGINES[0]))]
    environment = os.environ | {"OCTAVO_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("Model True")
