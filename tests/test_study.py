"""The study: every field comes back, nothing is measured twice, and it survives being killed at any moment."""

import math
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from octavo.errors import QuantizationError
from octavo.network.digest import digest_of_batch, digest_of_graph, digest_of_tensors
from octavo.network.graph import capture, clone
from octavo.numerics import Histogram
from octavo.workflow.kept import pack_stats, unpack_stats
from octavo.workflow.study import Study, Trial, trial_key

TRIAL = Trial(
    key="a" * 64,
    stage="calibration",
    method="99.99",
    engine="openvino",
    kept_float=("layer1.0.conv1", "größe", ""),
    metric=0.1 + 0.2,
    scores=(0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, -math.inf, 1 / 3),
    abandoned=True,
    error="site: asked to é, but '\"; DROP TABLE trials;",
    seconds=1e-9,
    versions={"torch": "2.13", "python": "3.12"},
    model="b" * 64,
    data="c" * 64,
)

# Python takes seconds to import torch, so one process does, and forks for every line of its input:
# "run TRIALS SECONDS FOLDER" answers the process id of a worker, "wait PID" its exit status. Workers run the trials
# 0, 1, … of the study in FOLDER and append to FOLDER/log: "start KEY" when they measure it, "done KEY" when it is
# committed, "end" with what they were given in all.
SPAWNER = """
import os, sys, time, traceback
from pathlib import Path
from octavo.workflow.study import Study, Trial

def say(*words):
    log = os.open(folder + "/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, (" ".join(words) + "\\n").encode())
    os.close(log)

def measure(key, seconds):
    say("start", key)
    time.sleep(seconds)
    return Trial(key=key, stage="r", method=str(os.getpid()), engine="e", kept_float=(), metric=float(key), error=None,
                 scores=(time.time(),), abandoned=False, seconds=seconds, versions={}, model="m", data="d")

def work(trials, seconds):
    given = []
    with Study(Path(folder)) as study:
        for key in map(str, range(trials)):
            given.append(study.run(key, lambda: measure(key, seconds)))
            say("done", key)
    say("end", repr(given))

for line in sys.stdin:
    command, *numbers, last = line.rstrip("\\n").split(" ", 3)
    if command == "wait":
        print(os.waitpid(int(last), 0)[1], flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        folder = last
        try:
            work(int(numbers[0]), float(numbers[1]))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
"""


class Workers:
    """Processes that run trials in one study, and their log."""

    def __init__(self, spawner: subprocess.Popen, folder: Path) -> None:
        self.spawner, self.study, self.log = spawner, folder, folder / "log"
        self.running: set[int] = set()

    def _ask(self, *words: object) -> int:
        print(*words, file=self.spawner.stdin)
        return int(self.spawner.stdout.readline())

    def start(self, trials: int, seconds: float) -> int:
        pid = self._ask("run", trials, seconds, self.study)
        self.running.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        self.running.remove(pid)
        return self._ask("wait", pid)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def said(self, what: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(what + " ")]


@pytest.fixture(scope="module")
def spawner():
    process = subprocess.Popen(
        [sys.executable, "-c", SPAWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    yield process
    process.communicate(timeout=10)


@pytest.fixture
def workers(spawner, tmp_path):
    workers = Workers(spawner, tmp_path)
    yield workers
    for pid in list(workers.running):
        workers.kill(pid)


def never() -> Trial:
    pytest.fail("measured although it is committed")


def test_every_field_comes_back(tmp_path) -> None:
    with Study(tmp_path / "new" / "folder") as study:
        assert study.trials() == []
        assert study.run(TRIAL.key, lambda: TRIAL) == replace(TRIAL, id=1)
    with Study(tmp_path / "new" / "folder") as study:
        (stored,) = study.trials()
    assert stored == replace(TRIAL, id=1)
    assert struct.pack("<6d", *stored.scores) == struct.pack("<6d", *TRIAL.scores)
    assert struct.pack("<d", stored.metric) == struct.pack("<d", TRIAL.metric)
    assert [type(stored.abandoned), type(stored.kept_float), type(stored.versions)] == [bool, tuple, dict]


def test_one_number_no_error_and_the_worst_metric(tmp_path) -> None:
    trial = replace(TRIAL, scores=None, error=None, metric=-math.inf, abandoned=False, kept_float=(), versions={})
    with Study(tmp_path) as study:
        study.run(trial.key, lambda: trial)
        assert study.trials() == [replace(trial, id=1)]


def test_no_scores_are_not_the_same_as_one_number(tmp_path) -> None:
    with Study(tmp_path) as study:
        assert study.run(TRIAL.key, lambda: replace(TRIAL, scores=())).scores == ()


def test_the_same_key_is_measured_once(tmp_path) -> None:
    with Study(tmp_path) as study, Study(tmp_path) as another:
        study.run(TRIAL.key, lambda: TRIAL)
        assert study.run(TRIAL.key, never) == another.run(TRIAL.key, never) == replace(TRIAL, id=1)


def test_trials_come_in_the_order_of_completion(tmp_path) -> None:
    def slow() -> Trial:
        study.run("b", lambda: replace(TRIAL, key="b", id=77))  # completes while "a" is still measured
        return replace(TRIAL, key="a")

    with Study(tmp_path) as study:
        assert study.run("a", slow).id == 2
        assert [(trial.id, trial.key) for trial in study.trials()] == [(1, "b"), (2, "a")]


def test_what_raises_commits_nothing_and_can_be_run_again(tmp_path) -> None:
    def fail():
        raise KeyboardInterrupt

    with Study(tmp_path) as study:
        for interrupted in (lambda: study.run(TRIAL.key, fail), lambda: study.once("stats", fail)):
            with pytest.raises(KeyboardInterrupt):
                interrupted()
        assert study.trials() == []
        assert study.blob("stats") is None
        assert study.run(TRIAL.key, lambda: TRIAL).id == 1
        assert study.once("stats", lambda: b"x") == b"x"


def test_a_metric_that_is_nan_is_refused(tmp_path) -> None:
    with Study(tmp_path) as study:
        with pytest.raises(QuantizationError, match=r"NOT NULL constraint failed: trials\.metric"):
            study.run(TRIAL.key, lambda: replace(TRIAL, metric=math.nan))
        assert study.trials() == []


def test_threads_share_a_study(tmp_path) -> None:
    measured = []

    def measure(key: str) -> Trial:
        measured.append(key)
        return replace(TRIAL, key=key)

    def work() -> None:
        for key in random.sample(keys, len(keys)):
            study.run(key, lambda key=key: measure(key))

    keys = [f"{number}" for number in range(10)]
    with Study(tmp_path) as study:
        threads = [Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(measured) == keys
        assert sorted(trial.key for trial in study.trials()) == keys


def test_blobs(tmp_path) -> None:
    name, data = "histograms/../of: layer\0" * 20, bytes(range(256)) * 50
    with Study(tmp_path) as study:
        assert study.blob(name) is None
        assert study.once(name, lambda: data) == data
        assert study.once(name, never) == data
        study.keep(name, b"")
        assert study.blob(name) == b""
        assert study.once(name, never) == b""
    with Study(tmp_path) as study:
        assert study.blob(name) == b""


def test_a_key_is_of_what_determines_the_trial_whatever_the_order(monkeypatch) -> None:
    monkeypatch.setattr("octavo.machine.version", lambda package: {"octavo": "0.1", "torch": "2.11"}[package])
    key = trial_key(method="max", layers=["é"], bits=8)
    assert key == trial_key(bits=8, layers=("é",), method="max")
    # printf '%s' '[{"octavo":"0.1","torch":"2.11"},{"bits":8,"layers":["\u00e9"],"method":"max"}]' | sha256sum
    assert key == "61504a07d42cec99e86206fa1a0f902cb63bc5aa90eb5faffe53765270339df6"
    assert key != trial_key(method="max", layers=["é"], bits=8.5)
    with pytest.raises(TypeError):
        trial_key(method=object())
    for package in ("octavo", "torch"):
        others = {"octavo": "0.1", "torch": "2.11"} | {package: "9"}
        monkeypatch.setattr("octavo.machine.version", others.__getitem__)
        assert key != trial_key(method="max", layers=["é"], bits=8)


def test_two_processes_measure_each_trial_once(workers) -> None:
    pair = [workers.start(trials=30, seconds=0.005) for _ in range(2)]
    assert [workers.wait(pid) for pid in pair] == [0, 0]
    keys = [str(number) for number in range(30)]
    assert workers.said("start") == keys
    assert Counter(workers.said("done")) == dict.fromkeys(keys, 2)
    with Study(workers.study) as study:
        assert workers.said("end") == [repr(study.trials())] * 2
        assert [(trial.id, trial.key) for trial in study.trials()] == list(zip(range(1, 31), keys, strict=True))


def test_a_search_that_is_killed_again_and_again_loses_nothing(workers) -> None:
    committed: list[Trial] = []
    for _ in range(8):
        pid = workers.start(trials=40, seconds=0.02)
        time.sleep(random.uniform(0, 0.1))
        workers.kill(pid)
        begun = workers.said("start")
        with Study(workers.study) as study:
            before, committed = committed, study.trials()
        assert committed[: len(before)] == before
        assert len(set(begun)) - len(committed) in (0, 1)  # all but the one that was being measured
    assert workers.wait(workers.start(trials=40, seconds=0.02)) == 0
    started = workers.said("start")
    assert started[len(begun) :] == [str(number) for number in range(len(committed), 40)]
    assert list(dict.fromkeys(started)) == [str(number) for number in range(40)]
    assert len(started) <= 40 + 8  # every kill costs the trial that it interrupts, and no other
    with Study(workers.study) as study:
        assert [(trial.id, trial.key) for trial in study.trials()] == [(n + 1, str(n)) for n in range(40)]
        assert study.trials()[: len(committed)] == committed
        assert set(workers.said("end")) == {repr(study.trials())}  # one may end before it is killed, if it has time


def test_a_lock_is_free_at_once_when_its_holder_is_killed(workers) -> None:
    pid = workers.start(trials=1, seconds=60)
    while workers.said("start") != ["0"]:
        time.sleep(0.005)
    with Study(workers.study) as study:
        waiting = Thread(target=study.run, args=("0", lambda: replace(TRIAL, key="0")))
        waiting.start()
        waiting.join(timeout=0.3)
        assert waiting.is_alive()
        assert study.trials() == []
        start = time.monotonic()
        workers.kill(pid)
        waiting.join(timeout=10)
        assert time.monotonic() - start < 0.5
        assert study.trials() == [replace(TRIAL, key="0", id=1)]


def test_a_study_that_was_killed_while_it_was_created(tmp_path) -> None:
    (tmp_path / "study.sqlite").touch()
    with sqlite3.connect(tmp_path / "study.sqlite") as database:
        database.execute("PRAGMA journal_mode = WAL")
    database.close()
    with Study(tmp_path) as study:
        assert study.run(TRIAL.key, lambda: TRIAL).id == 1


def altered(folder: Path, *statements: str) -> Path:
    """The file of a study of one trial and one blob, after these statements."""
    with Study(folder) as study:
        study.run(TRIAL.key, lambda: TRIAL)
        study.keep("stats", pack_stats({"a": Histogram()}))
    database = sqlite3.connect(folder / "study.sqlite", isolation_level=None)
    for statement in statements:
        database.execute(statement)
    database.close()
    return folder / "study.sqlite"


@pytest.mark.parametrize("schema", [2, 3, 4])
def test_an_older_schema_is_brought_up_to_date(tmp_path, schema) -> None:
    """Schemas 2 and 3 called a stage a rung, and 2 knew nothing of rows; 4 had scales of channels alone."""
    without = ["ALTER TABLE trials DROP COLUMN channels"]
    without += ["ALTER TABLE trials RENAME COLUMN stage TO rung"] * (schema < 4)
    without += ["ALTER TABLE trials DROP COLUMN rows"] * (schema < 3)
    altered(tmp_path, *without, f"PRAGMA user_version = {schema}")
    for _ in range(2):
        with Study(tmp_path) as study:
            assert [replace(trial, id=None) for trial in study.trials()] == [TRIAL]
            assert study.blob("stats") is not None
    with Study(tmp_path) as study:
        assert study.run("other", lambda: replace(TRIAL, key="other", rows=True, channels=False)) == replace(
            TRIAL, id=2, key="other", rows=True, channels=False
        )


def test_a_newer_schema(tmp_path) -> None:
    file = altered(tmp_path, "PRAGMA user_version = 99")
    with pytest.raises(QuantizationError) as error:
        Study(tmp_path)
    assert str(error.value) == (
        f"{file}: asked to use the study, but its schema is version 99 and this Octavo reads version 5; "
        "see that the folder can be written and has room, update Octavo, or search in another folder."
    )


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE trials (id)", "PRAGMA user_version = 1", "PRAGMA application_id=7"]
)
def test_the_database_of_another_program_is_left_as_it_is(tmp_path, statement) -> None:
    database = sqlite3.connect(tmp_path / "study.sqlite", isolation_level=None)
    database.execute(statement)
    database.close()
    before = (tmp_path / "study.sqlite").read_bytes()
    with pytest.raises(QuantizationError, match="asked to use the study, but it is the database of another program; "):
        Study(tmp_path)
    assert (tmp_path / "study.sqlite").read_bytes() == before


def test_a_file_that_is_no_database(tmp_path) -> None:
    (tmp_path / "study.sqlite").write_text("Dear diary, " * 100)
    with pytest.raises(QuantizationError, match=r"study.sqlite: .* SQLite reports: file is not a database; "):
        Study(tmp_path)
    assert (tmp_path / "study.sqlite").read_text() == "Dear diary, " * 100


def test_a_folder_that_is_a_file(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QuantizationError, match=r"asked to use the study, but .*Not a directory"):
        Study(tmp_path / "file")


@pytest.mark.parametrize(
    "damage",
    ["scores = x'00112233445566'", "kept_float = '[\"a'", "kept_float = '7'", "versions = ''"],
)
def test_a_damaged_row(tmp_path, damage) -> None:
    altered(tmp_path, f"UPDATE trials SET {damage}")
    with Study(tmp_path) as study:
        for read in (study.trials, lambda: study.run(TRIAL.key, never)):
            with pytest.raises(QuantizationError, match="asked to use the study, but a row of it is damaged"):
                read()


def test_a_truncated_file(tmp_path) -> None:
    file = altered(tmp_path)
    os.truncate(file, file.stat().st_size // 2)
    with (
        pytest.raises(QuantizationError, match="SQLite reports: database disk image is malformed"),
        Study(tmp_path) as study,
    ):
        study.trials()


def test_a_truncated_blob(tmp_path) -> None:
    altered(tmp_path, "UPDATE blobs SET data = substr(data, 1, length(data) - 1)")
    with Study(tmp_path) as study, pytest.raises(QuantizationError, match="statistics, but their bytes are damaged"):
        unpack_stats(study.blob("stats"))


def filled(*values: float) -> Histogram:
    histogram = Histogram()
    histogram.update(torch.tensor(values))
    return histogram


def test_statistics_come_back_and_shared_ones_stay_shared() -> None:
    one, other = filled(0.5, -3.0, 0.0), Histogram()
    other.update(torch.randn(1000))
    stats = {"b.input": one, "a/ü": other, "sites": one, "empty": Histogram(), "": filled(1e-30, 1e30)}
    data = pack_stats(stats)
    found = unpack_stats(data)
    assert list(found) == list(stats)
    assert found == stats
    assert found["b.input"] is found["sites"]
    assert len({id(histogram) for histogram in found.values()}) == 4
    names = {f"{number}.{part}" for number in range(4) for part in ("buckets", "counts", "bounds")}
    assert set(safetensors.torch.load(data[32:])) == {"sites", *names}
    found["b.input"].update(torch.ones(3))
    assert found["sites"].count == 6
    assert one.count == 3


def test_equal_histograms_that_are_not_shared_stay_apart() -> None:
    found = unpack_stats(pack_stats({"a": filled(1.0), "b": filled(1.0)}))
    assert found["a"] == found["b"]
    assert found["a"] is not found["b"]


def test_no_statistics() -> None:
    assert unpack_stats(pack_stats({})) == {}


def test_statistics_with_any_bit_changed_or_byte_missing_are_refused() -> None:
    data = pack_stats({"a": filled(0.5, -3.0)})
    flips = (data[:n] + bytes([data[n] ^ 1 << bit]) + data[n + 1 :] for n in range(len(data)) for bit in range(8))
    cuts = (data[:n] for n in range(len(data)))
    refused = 0
    for damaged in [*flips, *cuts, data + b"\0"]:
        try:
            unpack_stats(damaged)
        except QuantizationError:
            refused += 1
    assert refused == 9 * len(data) + 1


def flip_a_bit(tensor: torch.Tensor) -> None:
    flat = tensor.detach().view(torch.uint8).view(-1)
    flat[int(torch.randint(len(flat), ()))] ^= 1 << int(torch.randint(8, ()))


DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_digest_is_of_names_dtypes_shapes_and_bits(dtype) -> None:
    x = (10 * torch.randn(4, 6)).to(dtype)
    digest = digest_of_tensors([("x", x)])
    assert digest == digest_of_tensors(iter([("x", x.clone())]))
    assert digest == digest_of_tensors([("x", x.T.contiguous().T)])
    assert len(digest) == 64
    flipped = x.clone()
    flip_a_bit(flipped)
    others = [
        [("y", x)],
        [("x", flipped)],
        [("x", x.reshape(6, 4))],
        [("x", x.view(torch.uint8))],
        [("x", x), ("x", x)],
        [("x", x), ("y", x)],
        [("y", x), ("x", x)],
        [("x", x[:3])],
        [],
    ]
    assert len({digest, *map(digest_of_tensors, others)}) == 1 + len(others)


def test_zeros_of_another_sign_or_type_are_others() -> None:
    zeros = [torch.zeros(2), -torch.zeros(2), torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.float16)]
    empty = [torch.zeros(0), torch.zeros(0, 3), torch.zeros(()), torch.tensor(False), torch.tensor(True)]
    assert len({digest_of_tensors([("x", x)]) for x in zeros + empty}) == 9


def test_batches() -> None:
    ids, mask = torch.arange(6).reshape(2, 3), torch.ones(2, 3)
    assert digest_of_batch({"ids": ids, "mask": mask}) == digest_of_batch({"mask": mask.clone(), "ids": ids})
    assert digest_of_batch((ids, [1, 2.5, "x", None])) == digest_of_batch([ids, (1, 2.5, "x", None)])
    assert digest_of_batch(ids) == digest_of_batch(ids.numpy()) == digest_of_batch(ids.numpy()[::-1][::-1])
    others = [
        {"ids": ids, "mask": mask},
        {"ids": mask, "mask": ids},
        {"ids": ids},
        (ids, mask),
        ((ids, mask),),
        ((ids,), mask),
        ids,
        (ids,),
        (ids, 1),
        (ids, 1.0),
        (ids, True),
        (ids, "1"),
        (ids, b"1"),
        (ids, None),
        (ids, float("nan")),
        (ids, "11"),
        (ids, "1", "1"),
        (),
        {},
        "",
        ["ab", "c"],
        ["a", "bc"],
    ]
    assert len({digest_of_batch(batch) for batch in others}) == len(others)


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["a"]), np.array([None])])
def test_a_batch_of_what_has_no_bytes(value) -> None:
    with pytest.raises(QuantizationError, match=f"but it holds a {type(value).__name__}; give tensors, arrays and"):
        digest_of_batch({"ids": [torch.ones(2), value]})


def test_the_digest_of_a_graph(network) -> None:
    layer = nn.Linear(2, 2)

    def captured(function, **children: nn.Module):
        return capture(network(function, **children or {"a": layer}), torch.randn(2, 2))

    graph = captured(lambda s, x: s.a(x).relu())
    digest = digest_of_graph(graph)
    assert digest == digest_of_graph(clone(graph)) == digest_of_graph(captured(lambda s, y: s.a(y).relu()))
    others = [clone(graph) for _ in range(2)]
    flip_a_bit(next(others[0].module.parameters()))
    others[1].module.double()
    others += [
        captured(lambda s, x: s.b(x).relu(), b=layer),
        captured(lambda s, x: s.a(x).tanh()),
        captured(lambda s, x: s.a(x).relu() + torch.tensor([1.0])),  # constants are no parameters and no buffers
        captured(lambda s, x: s.a(x).relu() + torch.tensor([2.0])),
        captured(lambda s, x: {"first": x.relu(), "second": s.a(x)}),
        captured(lambda s, x: {"second": x.relu(), "first": s.a(x)}),
    ]
    assert len({digest, *map(digest_of_graph, others)}) == 1 + len(others)


CAPTURE = """
import torch
from torch import nn
from octavo.network.graph import capture
from octavo.network.digest import digest_of_graph
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
model(torch.ones(2, 3, 8, 8))
print(digest_of_graph(capture(model, torch.ones(2, 3, 8, 8))))
"""


def test_a_later_process_recognizes_the_graph() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CAPTURE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in "12"
    ]
    first, second = (run.communicate(timeout=60)[0] for run in runs)
    assert first == second
    assert len(first.strip()) == 64
