"""Whatever is written is the former or the new one, whole; and what a kill leaves goes with the next writer."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import octavo
from octavo import files
from octavo.errors import QuantizationError
from octavo.files import built, replaced, scratch, write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def folder_of(text: str, path: Path) -> None:
    with replaced(path) as new:
        new.mkdir()
        (new / text).write_text(text)


def test_a_file_and_a_folder_are_replaced(tmp_path) -> None:
    for text in ("old", "new"):
        write(tmp_path / "deep" / "file", text)
        folder_of(text, tmp_path / "deep" / "folder")
        assert names(tmp_path / "deep") == ["file", "folder"]
        assert (tmp_path / "deep" / "file").read_text() == text
        assert names(tmp_path / "deep" / "folder") == [text]


def test_a_link_stays_a_link(tmp_path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def half(path: Path, error: BaseException) -> None:
    with replaced(path) as new:
        new.write_text("half")
        raise error


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (OSError(28, "No space left on device"), QuantizationError),
        (ValueError("No space left"), ValueError),
        (KeyboardInterrupt("No space left"), KeyboardInterrupt),
    ],
)
def test_what_fails_half_way_leaves_the_former_one_and_nothing_else(tmp_path, error, wanted) -> None:
    write(tmp_path / "file", "old")
    with pytest.raises(wanted, match="No space left"):
        half(tmp_path / "file", error)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_where_a_file_stands_is_one_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QuantizationError, match=r"asked to write net\.octavo, but"):
        write(tmp_path / "file" / "net.octavo", "")


WRITER = """
import sys, time
from pathlib import Path
from octavo import files
path = Path(sys.argv[1])
if sys.argv[2] == "between":
    files._exchanged = lambda a, b: False
    rename = Path.rename
    def renamed(self, to):
        rename(self, to)
        print("half", flush=True)
        time.sleep(60)
    Path.rename = renamed
with files.replaced(path) as new:
    new.mkdir()
    (new / "new").write_text("new")
    if sys.argv[2] == "writing":
        print("half", flush=True)
        time.sleep(60)
"""


def half_way(path: Path, where: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITER, path, where], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("where", ["writing", "between"])
def test_the_next_writer_cleans_up_after_a_killed_one_and_leaves_a_living_one_alone(tmp_path, where) -> None:
    folder_of("old", tmp_path / "folder")
    process = half_way(tmp_path / "folder", where)
    write(tmp_path / "other", "")
    assert len(names(tmp_path)) == (3 if where == "writing" else 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert any(name.startswith(files.PREFIX) for name in names(tmp_path))
    write(tmp_path / "other", "")
    assert names(tmp_path) == ["folder", "other"]
    assert names(tmp_path / "folder") == ["old"]


def test_where_folders_cannot_change_places_they_are_renamed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_exchanged", lambda a, b: False)
    for text in ("old", "new"):
        folder_of(text, tmp_path / "folder")
        assert names(tmp_path) == ["folder"]
        assert names(tmp_path / "folder") == [text]


def test_scratch_is_gone_after_its_block(tmp_path) -> None:
    with scratch(tmp_path) as one, scratch(tmp_path) as other:
        assert one != other
        assert names(tmp_path) == sorted([one.name, other.name])
    assert names(tmp_path) == []


def test_a_writer_whose_new_folder_another_is_sweeping_takes_a_new_one(tmp_path, monkeypatch) -> None:
    """The sweeper came between the making of the folder and its lock, and has not yet removed it."""
    sweepers = []
    mkdir = Path.mkdir

    def made(path: Path, *args, **kwargs) -> None:
        mkdir(path, *args, **kwargs)
        if path.name.startswith(files.PREFIX) and not sweepers:
            sweepers.append(files.FileLock(path / files.LOCK))
            sweepers[0].acquire(timeout=0)

    monkeypatch.setattr(Path, "mkdir", made)
    with scratch(tmp_path) as folder:
        swept = Path(sweepers[0].lock_file).parent
        assert names(tmp_path) == sorted([folder.name, swept.name])
    sweepers[0].release()


SCRATCHES = """
import sys
from pathlib import Path
from octavo.files import scratch
for _ in range(50):
    with scratch(Path(sys.argv[1])) as folder:
        (folder / "mine").write_text("")
"""


def test_processes_that_write_and_sweep_at_once_leave_each_other_alone(tmp_path) -> None:
    command = [sys.executable, "-c", SCRATCHES, tmp_path]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=100)[1] for process in processes] == [""] * 4
    assert names(tmp_path) == []


def test_what_was_built_is_built_again_only_if_it_is_not_whole(tmp_path) -> None:
    calls = []

    def build(path: Path) -> None:
        calls.append(path)
        path.write_bytes(b"kernels" * 1000)

    path = tmp_path / "cache" / "lib.so"
    for damage in (None, None, b"", b"kernels" * 999, b"kernelZ" * 1000):
        if damage is not None:
            path.write_bytes(damage)
        assert built(path, build).read_bytes() == b"kernels" * 1000
    assert len(calls) == 4
    (tmp_path / "cache" / "lib.so.sha256").unlink()
    built(path, build)
    assert len(calls) == 5


BUILDER = """
import sys, time
from pathlib import Path
from octavo.files import built
def build(path):
    print("built", flush=True)
    time.sleep(0.5)
    path.write_text("built")
print(built(Path(sys.argv[1]), build).read_text())
"""


def test_several_processes_build_it_once(tmp_path) -> None:
    command = [sys.executable, "-c", BUILDER, tmp_path / "lib.so"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(map(len, said)) == [1, 1, 2]


FULL = """
import json, resource, sys
from pathlib import Path
import torch
from torch import nn
import octavo
from octavo.workflow import bench, recipe

folder = Path(sys.argv[1])
model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
batches = [torch.randn(4, 256)]
graph = octavo.capture(model, batches[0])
plan = octavo.make_plan(graph)
net = octavo.choose_params(plan, octavo.observe(plan, batches), "max")


def train():
    octavo.finetune(net, train=batches, schedule=octavo.Schedule(epochs=1, learning_rate=0.0),
                    out=folder / "training", progress=False)


octavo.save(net, folder / "file.octavo", engine="reference")  # so that they have something to lose
octavo.save(net, folder / "folder.octavo", engine="reference", form="folder")
octavo.export(net, folder / "net.onnx")
train()
before = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
large = {"large": "x" * 40000}
writers = {
    "file": lambda: octavo.save(net, folder / "file.octavo", engine="reference"),
    "folder": lambda: octavo.save(net, folder / "folder.octavo", engine="reference", form="folder"),
    "new": lambda: octavo.save(net, folder / "new.octavo", engine="openvino"),
    "onnx": lambda: octavo.export(net, folder / "net.onnx"),
    "new onnx": lambda: octavo.export(net, folder / "new.onnx"),
    "record": lambda: recipe.save_record(folder, large),
    "bench": lambda: bench.write(large, folder / "bench.json"),
    "training": lambda: octavo.finetune(
        net, train=batches, schedule=octavo.Schedule(epochs=1, learning_rate=0.0),
        out=folder / "other", progress=False),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
said = {}
for name, writer in writers.items():
    try:
        writer()
        said[name] = "it was written"
    except Exception as error:
        said[name] = f"{type(error).__name__} {error}"
after = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
print(json.dumps({"said": said, "same": before == after, "new": sorted(set(after) - set(before))}))
"""


def test_a_full_disk_is_one_error_and_leaves_what_was_there(tmp_path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, said in found["said"].items():
        assert said.startswith("QuantizationError"), (name, said)
        assert "too large" in said, (name, said)
    assert found["same"], found["new"]


def test_nothing_is_written_but_through_this_module() -> None:
    """What a kill may cut short has one place where it is made whole."""
    around = re.compile(r"\bimport tempfile|mkdtemp|os\.(replace|rename)|shutil\.(move|copy)\b|\.rename\(")
    source = Path(octavo.__file__).parent
    found = [path.name for path in source.rglob("*.py") if around.search(path.read_text())]
    assert found == ["files.py"]
    writes = re.compile(r"\.write_(text|bytes)\(|onnx\.save\(|[a-z]\.replace\([a-z]*path")
    writers = {path.name for path in source.rglob("*.py") if writes.search(path.read_text())}
    assert writers <= {"files.py", "container.py", "checkpoint.py", "onnx.py"}  # the others into what `replaced` gives


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path) -> None:
    """It did, and all that was in the folder was gone."""
    kept = tmp_path / "folder" / "kept"
    kept.parent.mkdir()
    kept.write_text("kept")
    with pytest.raises(
        QuantizationError, match="asked to write folder, but there is a folder of that name; name a file"
    ):
        write(tmp_path / "folder", "text")
    assert kept.read_text() == "kept"
