"""Files made to harm, by kind: each is refused with one error, runs nothing, and costs neither time nor memory."""

import json
import os
import pickle
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

import octavo
from forgery import MANIFEST, NETWORK, Parts, manifest_of, parts_of, save_sample, write
from octavo.errors import QuantizationError

SECONDS, BYTES = 2.0, 2**30
GIGA = 10**9


@pytest.fixture(scope="session")
def genuine(tmp_path_factory) -> dict[str, Parts]:
    """The parts of small networks; "onnx" is saved for an engine that reads ONNX."""
    folder = tmp_path_factory.mktemp("genuine")
    for name in ("linear", "branches"):
        save_sample(name, folder / name)
    save_sample("linear", folder / "onnx", engine="openvino")
    return {path.name: parts_of(path) for path in folder.iterdir()}


def assert_refused(path: Path, match: str | None = None, **options: Any) -> None:
    """One error of ours, within two seconds of this process and a gigabyte of memory."""
    allowed = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + BYTES
    former, start = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (allowed, former[1]))
    try:
        with pytest.raises(QuantizationError, match=match) as found:
            octavo.load(path, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)
    assert time.process_time() - start < SECONDS
    print(found.value)


# ---- the graph

Change = Callable[[dict[str, Any]], None]


def node(record: dict[str, Any], op: str) -> dict[str, Any]:
    return next(row for row in record["graph"]["nodes"] if row["op"] == op)


def named(kind: str, **facts: Any) -> Change:
    """A change of the first node of that kind."""
    return lambda record: node(record, kind).update(facts)


def calls(target: str, *args: Any, **kwargs: Any) -> Change:
    """A node in front of the output that calls `target`, and whose value is returned too."""

    def change(record: dict[str, Any]) -> None:
        nodes = record["graph"]["nodes"]
        val = {"shape": [2, 4], "dtype": "float32", "device": "cpu"}
        row = {"op": "call_function", "name": "forged", "target": target, "args": list(args), "kwargs": kwargs}
        nodes.insert(-1, row | {"val": val, "layer": ""})

    return change


def input_name(record: dict[str, Any]) -> dict[str, str]:
    return {"node": node(record, "placeholder")["name"]}


def size(expression: Any) -> Change:
    return lambda record: node(record, "placeholder")["val"]["shape"].__setitem__(0, expression)


def grown(*targets_and_args: tuple[str, list[Any], list[int]]) -> Change:
    """Calls one after another, each of what the one before gave, with the shapes that they state."""

    def change(record: dict[str, Any]) -> None:
        nodes, last = record["graph"]["nodes"], input_name(record)
        for number, (target, args, shape) in enumerate(targets_and_args):
            row = {"op": "call_function", "name": f"grown_{number}", "target": target, "kwargs": {}, "layer": ""}
            given = [last if argument == "x" else argument for argument in args]
            nodes.insert(-1, row | {"args": given, "val": {"shape": shape, "dtype": "float32", "device": "cpu"}})
            last = {"node": f"grown_{number}"}

    return change


def with_key(name: str) -> Change:
    def change(record: dict[str, Any]) -> None:
        inputs = record["graph"]["inputs"]
        inputs["children"][1]["keys"] = [name]
        inputs["children"][1]["children"] = inputs["children"][0]["children"]
        inputs["children"][0]["children"] = []
        record["graph"]["arguments"] = [name]

    return change


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = ["Add", value, 1]
    return value


RUN = "__import__('os').system('touch ran')"
INJECTED = f"x):\n    {RUN}\n    return x\ndef f(x"
GRAPHS: dict[str, Change] = {
    # names become Python
    "code in the name of an input": named("placeholder", target=INJECTED),
    "code in a default of an input": named("placeholder", args=[RUN]),
    "code in the name of a node": named("call_function", name=INJECTED),
    "code in the arguments of forward": lambda r: r["graph"].update(arguments=[INJECTED]),
    "code in the name of a keyword input": with_key("x': " + RUN + ", 'y"),
    "code in the name of a parameter": named("get_attr", target='a", 0) or ' + RUN + ' or getattr(self, "a'),
    "a word of Python for a name": named("placeholder", target="lambda"),
    "code in the name of a layer": named("call_function", layer="a\n" + RUN),
    "code in the name of a tuple": lambda r: r["graph"].update(
        outputs={"kind": "named", "name": "A', (), rename=" + RUN, "keys": ["a"], "children": [{"kind": "leaf"}]}
    ),
    # what is called
    "a method": named("call_function", op="call_method", target="tofile"),
    "a module": named("call_function", op="call_module", target="weight"),
    "an operator that reads files": calls("aten.from_file.default", "/etc/passwd", False, 10),
    "an operator that writes files": calls("aten.save.default", 1, "ran"),
    "an operator that prints": calls("aten._print.default", "x"),
    "an operator that writes to its inputs": lambda r: calls("aten.add_.Tensor", input_name(r), 1)(r),
    "an operator of another library": calls("prim.Print.default", 1),
    "an operator that is not registered": calls("evil.run.default", "x"),
    "an attribute of an operator": calls("aten.add.__class__"),
    "eval": calls("eval", RUN),
    "a function of sizes on a word": calls("add", "a", "b"),
    "a power of sizes": calls("pow", 10, 10**9),
    "an item of what has none": lambda r: calls("getitem", input_name(r), 0)(r),
    # arguments
    "too many arguments": lambda r: calls("aten.relu.default", *[input_name(r)] * 5)(r),
    "too few arguments": calls("aten.relu.default"),
    "an argument that it does not have": lambda r: calls("aten.relu.default", input_name(r), file="ran")(r),
    "a word for a tensor": calls("aten.relu.default", "x"),
    "a word that no operator takes": lambda r: calls("aten.div.Tensor_mode", input_name(r), 2, rounding_mode="../x")(r),
    "a number of a thousand digits": lambda r: calls("aten.add.Tensor", input_name(r), 10**1000)(r),
    "a node that comes later": calls("aten.relu.default", {"node": "output"}),
    "a tag that there is none of": calls("aten.relu.default", {"eval": RUN}),
    "a dtype that is a function": lambda r: calls("aten.sum.default", input_name(r), dtype={"dtype": "load"})(r),
    "a device that there is none of": lambda r: calls("aten.ones.default", [1], device={"device": "x:" + "9" * 50})(r),
    "two nodes of one name": lambda r: r["graph"]["nodes"].insert(0, r["graph"]["nodes"][0]),
    "no output": lambda r: r["graph"]["nodes"].pop(),
    "no nodes": lambda r: r["graph"].update(nodes=[]),
    "a parameter that is an attribute of the module": named("get_attr", target="forward"),
    "a parameter that is private": named("get_attr", target="__class__"),
    # sizes
    "a power of a power": size(["Pow", 10, ["Pow", 10, 9]]),
    "a product without end": size(["Mul", *[2**39] * 150]),
    "a division by zero": size(["FloorDiv", "s0", 0]),
    "a size within a size within": size(deep(100)),
    "a size of ten thousand parts": size(["Add", *[1] * 10_000]),
    "a function of sizes that is none": size(["__import__", "os"]),
    "half a size": size(["Rational", 1, 2]),
    "a negative size": size(-3),
    "a size that is a word": size("s99"),
    "a symbol without bounds": lambda r: r["graph"].update(symbols={"s0": 10**18}),
    "another shape than it computes": named(
        "call_function", val={"shape": [2, 9], "dtype": "float32", "device": "cpu"}
    ),
    "another dtype than it computes": named("call_function", val={"shape": [2, 3], "dtype": "int64", "device": "cpu"}),
    # memory and time
    "an example of a terabyte": lambda r: r["graph"]["example"][0].update(shape=[10**6, 10**6]),
    "an example of a petabyte": lambda r: r["graph"]["example"][0].update(shape=[10**9, 10**9]),
    "a terabyte on the way": grown(("aten.repeat.default", ["x", [10**6, 10**5]], [2 * 10**6, 4 * 10**5])),
    "ones without end": grown(("aten.ones.default", [[10**6, 10**6]], [10**6, 10**6])),
    "many that are kept": grown(*[("aten.ones.default", [[2**14, 2**12]], [2**14, 2**12])] * 30),
    "a product that takes hours": grown(
        ("aten.ones.default", [[2**13, 2**13]], [2**13, 2**13]),
        *[("aten.matmul.default", ["x", "x"], [2**13, 2**13])] * 500,
    ),
    "a convolution that takes hours": grown(
        ("aten.ones.default", [[1, 1, 4096, 4096]], [1, 1, 4096, 4096]),
        *[("aten.conv2d.default", ["x", "x", None, [1, 1], [2048, 2048]], [1, 1, 4097, 4097])],
    ),
    "twenty thousand nodes": lambda r: r["graph"].update(nodes=r["graph"]["nodes"] * 4_001),
    # the plan and its parameters
    "a plan for a node that there is not": lambda r: r["plan"]["quantizers"][0]["edges"][0].update(source="nowhere"),
    "a plan for what is not read": lambda r: r["plan"]["quantizers"][0]["edges"][0].update(user="output"),
    "two quantizers of one name": lambda r: r["plan"]["quantizers"].append(r["plan"]["quantizers"][0]),
    "a quantizer of nothing": lambda r: r["plan"]["quantizers"][0].update(edges=[]),
    "a hundred bits": lambda r: r["plan"]["quantizers"][0]["scheme"].update(bits=100),
    "an axis that there is not": lambda r: r["plan"]["quantizers"][0]["scheme"].update(axis=7),
    "a scale that there is not": lambda r: next(iter(r["params"].values())).update(scale="absent"),
    "a tensor that there is not": lambda r: next(iter(r["tensors"].values())).update(key="absent"),
    "no parameters": lambda r: r.update(params={}),
    "something that is none of it": lambda r: r.update(code=RUN),
    "a sample of other arguments": lambda r: r["samples"][0].update(arguments={"kind": "leaf"}),
    "a sample that is a word": lambda r: r["samples"][0].update(values={"0": RUN}),
}


MATCH = {
    "a dtype that is a function": "'load' is no dtype",
    "twenty thousand nodes": "at most 20000 items",
    "JSON within JSON within": "recursion limit",
}  # the bound itself


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_forged_graph(kind, genuine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = dict(genuine["linear"])
    record = json.loads(parts[NETWORK])
    GRAPHS[kind](record)
    parts[NETWORK] = json.dumps(record).encode()
    assert_refused(write(tmp_path / "forged.octavo", parts), match=MATCH.get(kind))
    assert not (tmp_path / "ran").exists()


# ---- the container


def bomb(name: str, megabytes: int) -> Callable[[Path, Parts], object]:
    """A file of zeros that is small while it is packed."""

    def make(path: Path, parts: Parts) -> None:
        zeros = bytes(megabytes * 2**20)
        whole = {MANIFEST: manifest_of(parts | {name: zeros})} | parts | {name: zeros}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for other, data in whole.items():
                archive.writestr(other, data)

    return make


def raw(name: str, data: bytes) -> Callable[[Path, Parts], object]:
    """One part replaced, with the digest that it has."""
    return lambda path, parts: write(path, parts | {name: data})


def lying(name: str, size: int) -> Callable[[Path, Parts], object]:
    """A zip whose directory says another size."""

    def make(path: Path, parts: Parts) -> None:
        write(path, parts)
        data = bytearray(path.read_bytes())
        at = data.rindex(name.encode(), 0, data.rindex(b"PK\x05\x06")) - 46
        data[at + 24 : at + 28] = size.to_bytes(4, "little")
        path.write_bytes(data)

    return make


def header(text: str) -> bytes:
    """A safetensors file of that header, and a hundred bytes."""
    return len(text).to_bytes(8, "little") + text.encode() + bytes(100)


def folder(change: Callable[[Path], object]) -> Callable[[Path, Parts], object]:
    def make(path: Path, parts: Parts) -> None:
        path.mkdir()
        for name, data in (parts | {MANIFEST: manifest_of(parts)}).items():
            (path / name).write_bytes(data)
        change(path)

    return make


def replaced(name: str, by: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        (path / name).unlink()
        by(path / name)

    return change


NESTED = b'{"graph":' + b"[" * 10**5 + b"]" * 10**5 + b"}"
TENSORS = "tensors.safetensors"
HUGE = json.dumps({"a": {"dtype": "F32", "shape": [GIGA, GIGA], "data_offsets": [0, 100]}})
CONTAINERS: dict[str, Callable[[Path, Parts], object]] = {
    "JSON of a gigabyte, packed": bomb(NETWORK, 1024),
    "a manifest of a gigabyte, packed": bomb(MANIFEST, 1024),
    "tensors of a gigabyte, packed": bomb(TENSORS, 1024),
    "a zip that states another size": lying(TENSORS, 2**32 - 1),
    "JSON within JSON within": raw(NETWORK, NESTED),
    "a number of a million digits": raw(NETWORK, b'{"graph": 1' + b"0" * 10**6 + b"}"),
    "an empty record": raw(NETWORK, b""),
    "a record that is a list": raw(NETWORK, b"[]"),
    "lists of lists": raw(NETWORK, b'{"graph":{"nodes":[' + b"[]," * 5_000_000 + b"[]]}}"),
    "a tensor of an exabyte": raw(TENSORS, header(HUGE)),
    "a header of an exabyte": raw(TENSORS, (2**60).to_bytes(8, "little") + b"{}"),
    "tensors that overlap": raw(
        TENSORS,
        header(
            '{"a":{"dtype":"U8","shape":[99],"data_offsets":[0,99]},"b":{"dtype":"U8","shape":[99],"data_offsets":[1,100]}}'
        ),
    ),
    "no tensors": raw(TENSORS, b""),
    "a path that climbs": lambda path, parts: write(path, parts, files={"../../etc/passwd": {"size": 9, "sha256": ""}}),
    "a part that there is not": lambda path, parts: write(path, parts, files={"x": {"size": 9, "sha256": ""}}),
    "a negative length": lambda path, parts: write(path, parts, files={NETWORK: {"size": -1, "sha256": ""}}),
    "parts without end": lambda path, parts: write(
        path, parts, files={f"{n}": {"size": 1, "sha256": ""} for n in range(10_000)}
    ),
    "a part that is none of ours": lambda path, parts: write(path, parts | {"run.py": RUN.encode()}),
    "an engine that there is not": lambda path, parts: write(path, parts, engine="os.system"),
    "a version below zero": lambda path, parts: write(path, parts, schema_version=-1),
    "a version of a thousand digits": lambda path, parts: write(path, parts, schema_version=10**1000),
    "a pipe": lambda path, parts: os.mkfifo(path),
    "a device": lambda path, parts: path.symlink_to("/dev/zero"),
    "a pipe in a folder": folder(replaced(TENSORS, os.mkfifo)),
    "a device in a folder": folder(replaced(TENSORS, lambda path: path.symlink_to("/dev/zero"))),
    "a folder in a folder": folder(replaced(TENSORS, Path.mkdir)),
    "a manifest that is a device": folder(replaced(MANIFEST, lambda path: path.symlink_to("/dev/zero"))),
    "a file that leads to itself": lambda path, parts: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_forged_container(kind, genuine, tmp_path):
    CONTAINERS[kind](path := tmp_path / "forged.octavo", genuine["linear"])
    assert_refused(path, match=MATCH.get(kind))


def sampled(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Parts], Parts]:
    def make(parts: Parts) -> Parts:
        tensors = safetensors.torch.load(parts["samples.safetensors"])
        change(tensors)
        return parts | {"samples.safetensors": safetensors.torch.save(tensors)}

    return make


def tensored(kind: torch.dtype, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Parts], Parts]:
    """All tensors of that dtype changed."""

    def make(parts: Parts) -> Parts:
        tensors = safetensors.torch.load(parts[TENSORS])
        changed = {name: change(t) if t.dtype is kind else t for name, t in tensors.items()}
        return parts | {TENSORS: safetensors.torch.save(changed)}

    return make


VALUES: dict[str, Callable[[Parts], Parts]] = {
    "outputs of another network": sampled(lambda tensors: tensors.update({"output.0.0": torch.ones(2, 3)})),
    "outputs of another shape": sampled(lambda tensors: tensors.update({"output.0.0": torch.ones(2, 99)})),
    "outputs for what was not asked": sampled(lambda tensors: tensors.update({"output.7.0": torch.ones(2, 3)})),
    "outputs without a number": sampled(lambda tensors: tensors.update({"output.a.b": torch.ones(2, 3)})),
    "an input of another dtype": sampled(lambda tensors: tensors.update({"input.0.0": torch.ones(2, 4).long()})),
    "an input of another shape": sampled(lambda tensors: tensors.update({"input.0.0": torch.ones(2, 9)})),
    "no inputs": sampled(lambda tensors: tensors.pop("input.0.0")),
    "scales of NaN": tensored(torch.float32, lambda tensor: tensor * torch.nan),
    "scales below zero": tensored(torch.float32, lambda tensor: -tensor.abs() - 1),
    "scales for other channels": tensored(torch.float32, lambda tensor: tensor.repeat(2) if tensor.ndim else tensor),
    "zero-points out of range": tensored(torch.int32, lambda tensor: tensor + 1000),
    "zero-points of another dtype": tensored(torch.int32, lambda tensor: tensor.long()),
    "weights of another shape": tensored(torch.int8, lambda tensor: tensor.reshape(-1)),
    "weights of another dtype": tensored(torch.int8, lambda tensor: tensor.double()),
}


@pytest.mark.parametrize("kind", VALUES)
def test_forged_tensors(kind, genuine, tmp_path):
    assert_refused(write(tmp_path / "forged.octavo", VALUES[kind](genuine["linear"])))


def test_one_tensor_a_thousand_times(genuine, tmp_path):
    """A megabyte of integers, under a thousand names: four gigabytes of float weights."""
    parts = dict(genuine["linear"])
    tensors = safetensors.torch.load(parts[TENSORS]) | {"large": torch.zeros(2**20, dtype=torch.int8)}
    parts[TENSORS], record = safetensors.torch.save(tensors), json.loads(parts[NETWORK])
    record["tensors"] |= {f"t{n}": {"key": "large", "quantizer": None} for n in range(1000)}
    parts[NETWORK] = json.dumps(record).encode()
    assert_refused(write(tmp_path / "forged.octavo", parts), match="its parameters take 4194 MB")


def test_an_index_beyond_the_table(genuine, tmp_path):
    change = sampled(lambda tensors: tensors.update({"input.0.0": torch.full((3, 4), 999)}))
    assert_refused(write(tmp_path / "forged.octavo", change(genuine["branches"])))


# ---- the ONNX part

Edit = Callable[[onnx.ModelProto], object]


def constant(name: str, values: Any) -> Edit:
    return lambda model: model.graph.initializer.append(from_array(torch.tensor(values).numpy(), name))


def adds(*nodes: onnx.NodeProto, then: Edit = lambda model: None) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        then(model)
        for one in reversed(nodes):
            model.graph.node.insert(0, one)

    return edit


def circle(model: onnx.ModelProto) -> None:
    """An integer's zero-point is what the operator itself gives; shape inference does not look at it."""
    (one,) = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and len(node.input) == 3]
    one.input[2] = one.output[0]


def elsewhere(location: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer.add(name="stolen", data_type=TensorProto.UINT8, dims=[100])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": "100"}.items():
            tensor.external_data.add(key=key, value=value)

    return edit


def loop() -> onnx.NodeProto:
    body = helper.make_graph([], "body", [], [])
    return helper.make_node("Loop", ["", ""], ["x"], body=body)


def in_attribute() -> onnx.NodeProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return helper.make_node("Constant", [], ["c"], value=tensor)


ONNX: dict[str, Edit] = {
    "a loop": adds(loop()),
    "an operator of another library": adds(helper.make_node("Evil", [], ["e"], domain="com.microsoft")),
    "a library of its own": lambda model: model.opset_import.add(domain="evil", version=1),
    "a function": lambda model: model.functions.add(name="f", domain="evil"),
    "training": lambda model: model.training_info.add(),
    "a file elsewhere": elsewhere("/etc/passwd"),
    "a file further up": elsewhere("../../../etc/passwd"),
    "a file elsewhere, in an attribute": adds(in_attribute()),
    "a sparse tensor": lambda model: model.graph.sparse_initializer.add(),
    "a tensor of words": lambda model: model.graph.initializer.add(name="w", data_type=TensorProto.STRING, dims=[1]),
    "a tensor without its data": lambda model: model.graph.initializer.add(name="w", data_type=1, dims=[GIGA]),
    "a terabyte of zeros": adds(helper.make_node("ConstantOfShape", ["s"], ["z"]), then=constant("s", [10**6, 10**6])),
    "a range without end": adds(
        helper.make_node("Range", ["a", "b", "c"], ["r"]),
        then=lambda m: [constant(n, v)(m) for n, v in {"a": 0, "b": 10**12, "c": 1}.items()],
    ),
    "a size that depends on values": adds(helper.make_node("NonZero", ["input"], ["n"])),
    "products that take hours": adds(
        helper.make_node("ConstantOfShape", ["s"], ["p0"]),
        *[helper.make_node("MatMul", [f"p{n}", f"p{n}"], [f"p{n + 1}"]) for n in range(200)],
        then=constant("s", [8192, 8192]),
    ),
    "a circle": circle,
    "two values of one name": adds(*[helper.make_node("Relu", ["input"], ["a"]) for _ in range(2)]),
    "a tensor of the input's name": constant("input", [[1.0] * 4] * 2),
    "another input": lambda model: model.graph.input.add(name="more"),
    "another output": lambda model: setattr(model.graph.output[0], "name", "input"),
    "an input of another type": lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 7),
    "operators that do not fit": lambda model: model.graph.node[-1].ClearField("input"),
    "nothing": lambda model: model.Clear(),
}


@pytest.mark.parametrize("engine", ["reference", "openvino"])
@pytest.mark.parametrize("kind", ONNX)
def test_a_forged_onnx_model(kind, engine, genuine, tmp_path):
    parts = dict(genuine["onnx"])
    model = onnx.load_model_from_string(parts["model.onnx"])
    ONNX[kind](model)
    parts["model.onnx"] = model.SerializeToString()
    assert_refused(write(tmp_path / "forged.octavo", parts), engine=engine)


@pytest.mark.parametrize("data", [b"", b"\xff" * 1000, b"\x0a\x00" * 3_000_000], ids=["empty", "noise", "a million"])
def test_what_is_no_onnx_model(data, genuine, tmp_path):
    assert_refused(write(tmp_path / "forged.octavo", genuine["onnx"] | {"model.onnx": data}), engine="openvino")


def test_the_onnx_model_of_another_network_is_not_run(genuine, tmp_path, monkeypatch):
    """It is well-formed, and its outputs are stated to be right: only running the graph beside it tells."""
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    parts = dict(genuine["onnx"])
    model = onnx.load_model_from_string(parts["model.onnx"])
    for tensor in model.graph.initializer:
        if (
            tensor.data_type == TensorProto.INT8
            and tensor.data_location != TensorProto.EXTERNAL
            and len(tensor.dims) == 2
        ):
            tensor.raw_data = bytes(b ^ 0x55 for b in tensor.raw_data)
    parts["model.onnx"] = model.SerializeToString()
    path = write(tmp_path / "forged.octavo", parts)
    for _ in range(2):  # what was found once is not taken for right the next time
        with pytest.warns(UserWarning, match="computes something else than the network"):
            found = octavo.load(path, engine="openvino")
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    wanted = octavo.load(write(tmp_path / "genuine.octavo", genuine["onnx"]), engine="reference")(x)
    torch.testing.assert_close(found(x), wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))


# ---- what the caller vouches for


def test_an_operator_that_the_caller_vouches_for_is_loaded(tmp_path):
    @torch.library.custom_op("octavo_trust::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.octavo_trust.twice(self.layer(x))

    from forgery import quantized  # noqa: PLC0415

    net = quantized(Twice(), x := torch.randn(2, 4))
    graph = net.graph
    octavo.save(net, path := tmp_path / "net.octavo", engine="reference")
    with pytest.raises(QuantizationError, match=r'pass operators=\("octavo_trust.twice.default",\)'):
        octavo.load(path)
    assert pickle.loads(pickle.dumps(graph))(x).shape == (2, 3)  # whoever unpickles trusts it
    for operators in (("octavo_trust.twice.default",), ("octavo_trust",)):
        assert octavo.load(path, operators=operators)(x).shape == (2, 3)


def test_a_large_network_loads_with_larger_limits(tmp_path):
    save_sample("convolutions", path := tmp_path / "net.octavo")
    with pytest.raises(QuantizationError, match=r"pass limits=octavo\.Limits"):
        octavo.load(path, limits=octavo.Limits(bytes=1000))
    with pytest.raises(QuantizationError, match=r"pass limits=octavo\.Limits"):
        octavo.load(path, limits=octavo.Limits(multiplications=1000))
    octavo.load(path, limits=octavo.Limits(bytes=1e6, multiplications=1e6))


def test_zip_entries_of_one_name(genuine, tmp_path):
    """Readers differ in which one they take; one of them has the digest, and no other is ever read."""
    path = write(tmp_path / "two.octavo", genuine["linear"])
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(NETWORK, b"{}")
    assert_refused(path)
