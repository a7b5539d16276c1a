"""What `octavo check` opens: files of every kind, and what it refuses to."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from torch import from_numpy, nn

import foreign_networks as foreign
from conftest import runs_here
from octavo.engines import available
from octavo.errors import QuantizationError
from octavo.gate.check import check
from octavo.gate.data import read_samples
from octavo.gate.foreign import read_onnx
from octavo.gate.kinds import KINDS, opened
from octavo.saved.artifact import save

pytest.importorskip("onnxruntime")
RECIPE = """
import torch
from torch import from_numpy, nn

torch.manual_seed(3)
NETWORK = nn.Linear(8, 4, bias=False).eval()
INPUTS = torch.randn(400, 8)
TARGETS = NETWORK(INPUTS).argmax(1)


def model():
    return NETWORK


def calibration():
    return [(INPUTS[:50], TARGETS[:50]), (INPUTS[50:80], TARGETS[50:80])]


def evaluate(network):
    return (network(INPUTS).argmax(1) == TARGETS).float()


def rounded(input):
    return NETWORK(torch.from_numpy(input).round(decimals=1))


def lost(input):
    return NETWORK(torch.from_numpy(input) * float("nan"))
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "small_recipe.py"
    path.write_text(RECIPE)
    return path


def test_a_recipe_is_network_data_and_metric(recipe) -> None:
    found = check(recipe, f"{recipe}:rounded", data=recipe, max_drop=0.2, bench=False)
    assert found.score is not None
    assert (found.score.measure, found.score.samples, found.score.float_score) == ("evaluate", 400, 1.0)
    assert 0.85 < found.score.int8_score < 1.0
    assert found.data.source == "calibration() of small_recipe.py"
    assert found.data.inputs["input"].shape == [80, 8]
    assert (found.float_network.kind, found.int8_network.kind) == ("torch module", "Python function")
    assert found.verdict == "met"


def test_a_recipe_scores_networks_of_arrays(recipe, tmp_path) -> None:
    made = foreign.samples(64)
    paths = foreign.float_linear(tmp_path / "f.onnx"), foreign.int8_linear(tmp_path / "q.onnx", batch=4)
    recipe.write_text(RECIPE.replace("TARGETS = NETWORK(INPUTS).argmax(1)", "TARGETS = torch.arange(400) % 4"))
    found = check(*paths, data={"x": made}, evaluate=recipe, max_drop=0.9, bench=False)
    assert found.score is not None
    assert (found.score.measure, found.score.samples) == ("evaluate", 400)
    assert 0 < found.score.float_score < 1


def test_nan_of_the_int8_network_while_a_recipe_scores_it(recipe) -> None:
    """Its scores alone would be a network that gets little right."""
    x = foreign.samples()
    assert check(f"{recipe}:rounded", f"{recipe}:lost", data={"input": x}, bench=False).verdict == "not met"
    found = check(recipe, f"{recipe}:lost", data=recipe, bench=False)
    assert (found.verdict, found.score) == ("not met", None)


def test_a_recipe_that_is_better_when_lower(recipe) -> None:
    error = RECIPE.replace(
        "return (network(INPUTS).argmax(1) == TARGETS).float()", "return 1 + network(INPUTS).abs().mean(1)"
    )
    recipe.write_text(error + "\n\ndef options():\n    return {'higher_is_better': False}\n")
    found = check(recipe, recipe, data=recipe, bench=False)
    assert found.score is not None
    assert (found.score.higher_is_better, found.score.drop) == (False, 0.0)


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_files_of_arrays_are_what_a_dict_is(form, tmp_path) -> None:
    arrays = {"x": foreign.samples(5), "labels": np.arange(5) % 4}
    if form == "npz":
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
    else:
        path = tmp_path / "data"
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    found = read_samples(path)
    assert found.count == 5
    np.testing.assert_array_equal(found.groups[0]["x"], arrays["x"])
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, arrays["labels"])


def test_nothing_in_a_file_of_arrays_is_unpickled(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], dtype=object))
    np.save(tmp_path / "x.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    for data in (tmp_path / "a.npz", tmp_path):
        with pytest.raises(QuantizationError, match=r"Object arrays cannot be loaded|Python objects in dtype"):
            read_samples(data)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("nowhere.npz", "there is nothing at this path; pass an .npz file, a folder of .npy files, or a recipe"),
        ("data.csv", "it is none of those known"),
        ("broken.npz", "it is no .npz file"),
        ("one.npz", "it is a single array"),
        ("empty", "there are no samples in it"),
    ],
)
def test_data_that_cannot_be_read(name, seen, tmp_path) -> None:
    path = tmp_path / name
    if name in ("data.csv", "broken.npz"):
        path.write_text("1,2,3")
    elif name == "one.npz":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif name == "empty":
        path.mkdir()
    with pytest.raises(QuantizationError, match=seen):
        read_samples(path)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("nowhere.onnx", "there is nothing at this path; check it"),
        ("net.tflite", "a file .tflite is none of those known; pass one of .onnx"),
        ("network", "a file without a suffix is none of those known"),
        ("folder", "this is a folder; pass one of .onnx"),
        ("text.onnx", "it is no ONNX file"),
        ("empty.onnx", "it is no ONNX file"),
        ("text.xml", "OpenVINO .* refuses it"),
        ("text.octavo", "load"),
        ("failing.py", r"its code failed \(ZeroDivisionError: division by zero\)"),
        ("failing.py:f", r"its code failed \(ZeroDivisionError: division by zero\)"),
        ("lacking.py:f", "there is no function f in it"),
        ("nowhere.py:f", "there is no such file; write file.py:function"),
    ],
)
def test_what_cannot_be_opened_is_one_error(name, seen, tmp_path) -> None:
    file = tmp_path / name.partition(":")[0]
    if file.name == "folder":
        file.mkdir()
    elif not file.name.startswith("nowhere"):
        contents = {"failing.py": "1 / 0", "lacking.py": "x = 1", "empty.onnx": ""}
        file.write_text(contents.get(file.name, "this is no network"))
    with pytest.raises(QuantizationError, match=seen):
        opened(str(tmp_path / name))


def test_an_engine_that_cannot_run_a_kind_is_an_error(tmp_path) -> None:
    path = foreign.float_linear(tmp_path / "a.onnx")
    with pytest.raises(QuantizationError, match="ONNX cannot be run on inductor; choose one of onnxruntime, openvino"):
        opened(path, "inductor")


def test_every_kind_names_its_engines() -> None:
    assert {suffix: kind.engines[:1] for suffix, kind in KINDS.items()} == {
        ".onnx": ("onnxruntime",), ".xml": ("openvino",), ".octavo": ("openvino",), ".py": (),
    }  # fmt: skip


@pytest.mark.skipif("openvino" not in available(), reason="needs OpenVINO")
def test_an_openvino_ir_beside_the_onnx_file_that_it_was_made_of(tmp_path) -> None:
    import openvino as ov  # noqa: PLC0415

    source = foreign.int8_linear(tmp_path / "q.onnx")
    ov.save_model(ov.Core().read_model(source), tmp_path / "q.xml", compress_to_fp16=False)
    float_file = foreign.float_linear(tmp_path / "f.onnx")
    x = foreign.samples()
    found = check(float_file, tmp_path / "q.xml", data={"x": x}, max_drop=0.2, bench=False)
    other = check(float_file, source, data={"x": x}, max_drop=0.2, engine="openvino", bench=False)
    assert found.outputs[0].agreement == other.outputs[0].agreement
    assert found.int8_network.kind == "OpenVINO IR"
    assert found.int8_network.ran.on_integers == found.int8_network.ran.products == 1
    files = [tmp_path / f"q.{suffix}" for suffix in ("xml", "bin")]
    assert found.int8_network.size_mb == pytest.approx(sum(file.stat().st_size for file in files) / 1e6)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_an_artifact_of_octavo(form, tmp_path, calibrated) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = foreign.samples()
    net = calibrated(model, from_numpy(x), target=runs_here("openvino"))
    save(net, tmp_path / "net.octavo", engine="openvino", form=form)
    found = check(model, tmp_path / "net.octavo", data={"x": x}, max_drop=0.2, bench=False)
    assert found.int8_network.kind == "Octavo artifact"
    assert (found.int8_network.ran.products, found.int8_network.ran.on_integers) == (2, 2)
    assert found.outputs[0].sqnr_db is not None
    assert found.outputs[0].sqnr_db > 20


def external(path: Path, location: str, **place: int) -> Path:
    """A linear network whose weight is said to lie at `location`."""
    foreign.float_linear(path)
    model = onnx.load(path)
    (weight,) = model.graph.initializer
    data = bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": len(data), **place}.items():
        weight.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


def test_tensors_beside_the_file_belong_to_it(tmp_path) -> None:
    path = external(tmp_path / "f.onnx", "f.data")
    (tmp_path / "f.data").write_bytes(foreign.weight().tobytes())
    found = check(path, path, data={"x": foreign.samples()}, bench=False)
    assert found.outputs[0].identical
    assert found.float_network.size_mb == pytest.approx((path.stat().st_size + 4 * 32) / 1e6)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("location", ["../f.data", "a/../../f.data", "/etc/hostname", "link", "", "..\\f.data"])
def test_tensors_outside_of_the_folder_are_refused(location, engine, tmp_path) -> None:
    inner = tmp_path / "inner"
    (inner / "a").mkdir(parents=True)
    (tmp_path / "f.data").write_bytes(foreign.weight().tobytes())
    (inner / "link").symlink_to(tmp_path / "f.data")
    with pytest.raises(QuantizationError, match="outside of its folder; check a file that needs no more than itself"):
        opened(external(inner / "f.onnx", location), engine)


@pytest.mark.parametrize(
    ("place", "seen"), [({"length": 10**9}, "beyond the end of"), ({"offset": -1}, "beyond the end of")]
)
def test_tensors_beyond_the_end_of_their_file_are_refused(place, seen, tmp_path) -> None:
    (tmp_path / "f.data").write_bytes(foreign.weight().tobytes())
    with pytest.raises(QuantizationError, match=seen):
        opened(external(tmp_path / "f.onnx", "f.data", **place))


def test_tensors_that_are_not_there(tmp_path) -> None:
    with pytest.raises(QuantizationError, match=r"'f\.data', which is not there; copy that file, too"):
        opened(external(tmp_path / "f.onnx", "f.data"))


def test_operators_of_other_libraries_are_refused(tmp_path) -> None:
    for domain, operator in (("my.library", "Anything"), ("com.microsoft", "EPContext")):
        ports = {"x": (TensorProto.FLOAT, ["n"])}, {"y": (TensorProto.FLOAT, ["n"])}
        node = helper.make_node(operator, ["x"], ["y"], domain=domain)
        path = foreign.save(tmp_path / "a.onnx", [node], *ports, {}, domains=(domain,))
        with pytest.raises(QuantizationError, match=f"it calls {domain}:{operator}, which is not the runtime's own"):
            read_onnx(path)


def test_what_is_refused_is_refused_inside_of_nodes_too(tmp_path) -> None:
    hidden = helper.make_graph(
        [helper.make_node("Anything", ["x"], ["z"], domain="my.library")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n"])],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=hidden, else_branch=hidden)
    ports = {"x": (TensorProto.FLOAT, ["n"]), "c": (TensorProto.BOOL, [])}, {"y": (TensorProto.FLOAT, ["n"])}
    path = foreign.save(tmp_path / "a.onnx", [node], *ports, {}, domains=("my.library",))
    with pytest.raises(QuantizationError, match=r"it calls my\.library:Anything"):
        read_onnx(path)


def test_text_is_no_input_of_a_network_that_can_be_checked(tmp_path) -> None:
    path = foreign.elementwise(tmp_path / "text.onnx", "Identity", kind=TensorProto.STRING)
    with pytest.raises(QuantizationError, match=r"its input x is a tensor\(string\), which is no array of numbers"):
        opened(path)


def test_nan_in_the_samples_of_evaluate_does_not_meet_the_goal(recipe) -> None:
    rarely = (
        "    found = NETWORK(torch.from_numpy(input))\n    found[input[:, 0] > 1.5] = float('nan')\n    return found\n"
    )
    sound = "    return NETWORK(torch.from_numpy(input))\n"
    recipe.write_text(f"{RECIPE}\n\ndef rarely(input):\n{rarely}\n\ndef sound(input):\n{sound}")
    quiet = str(recipe) + ":rarely"
    found = check(
        str(recipe) + ":sound", quiet, data={"input": np.ones((2, 8), np.float32)}, evaluate=recipe, bench=False
    )
    assert (found.verdict, found.exit_code) == ("not met", 1)


@pytest.mark.parametrize(
    ("zeros", "order", "integers"), [(None, False, 1), ("u8", False, 1), ("f32", False, 0), (None, True, 0)]
)
def test_a_product_of_few_bits_is_on_integers_only_where_it_rounds_its_input(tmp_path, zeros, order, integers) -> None:
    rng = np.random.default_rng(1)
    constants = {
        "w": rng.integers(0, 256, (4, 2, 16), dtype=np.uint8),  # 4 columns of 2 blocks of 32 numbers of 4 bits
        "scale": rng.uniform(0.5, 1, 8).astype(np.float32),
        "u8": np.full(4, 0x88, np.uint8),
        "f32": np.full(8, 8, np.float32),
        "order": (np.arange(64) // 32).astype(np.int32),
    }
    inputs = ["x", "w", "scale", *([zeros or ""] if zeros or order else []), *(["order"] if order else [])]

    def product(level: int) -> Path:
        options = {"K": 64, "N": 4, "bits": 4, "block_size": 32, "accuracy_level": level, "domain": "com.microsoft"}
        node = helper.make_node("MatMulNBits", inputs, ["y"], name="head", **options)
        ports = {"x": (TensorProto.FLOAT, ["n", 64])}, {"y": (TensorProto.FLOAT, ["n", 4])}
        used = {name: constants[name] for name in inputs[1:] if name}
        return foreign.save(tmp_path / f"level_{level}.onnx", [node], *ports, used, domains=("com.microsoft",))

    x = rng.standard_normal((40, 64)).astype(np.float32)
    found = check(product(1), product(4), data={"x": x}, bench=False)
    assert found.float_network.ran.on_integers == 0
    assert found.int8_network.ran.on_integers == integers
    assert found.outputs[0].identical is (integers == 0)  # what it computes says the same
