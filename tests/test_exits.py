"""How commands end: one table of codes."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from octavo.errors import QuantizationError
from octavo.exits import Exit, ending

WRONG = QuantizationError(asked="do it", seen="a name is [bold]\x1b[31m[/bold]", remedy="do another thing")


def raising(error: BaseException):
    def work() -> Exit:
        raise error

    return work


def test_the_codes() -> None:
    assert {one.name: one.value for one in Exit} == {
        "MET": 0, "NOT_MET": 1, "USED_WRONGLY": 2, "COULD_NOT_TELL": 3, "FAILED": 70, "INTERRUPTED": 130,
    }  # fmt: skip


@pytest.mark.parametrize("code", list(Exit))
def test_a_command_ends_by_what_its_work_returns(code) -> None:
    assert ending(Console(), lambda: code) == code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (WRONG, 2, "error asked to do it, but a name is [bold]�[31m[/bold]; do another thing."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("nothing"), 70, "ZeroDivisionError: nothing"),
    ],
)
def test_what_is_raised_has_a_code_and_is_said(error, code, said, capsys) -> None:
    assert ending(Console(width=200), raising(error)) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_an_error_is_handed_on() -> None:
    seen: list[QuantizationError] = []
    ending(Console(), raising(WRONG), wrong=seen.append)
    assert seen == [WRONG]


BUSY = """
import hashlib, pathlib

def f(x):
    pathlib.Path(__file__).with_name("ready").touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, without Python's lock
    return x
"""
WAITING = BUSY.replace('hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)', "__import__('time').sleep(600)")


@pytest.mark.parametrize("code", [BUSY, WAITING], ids=["in a library", "in Python"])
def test_ctrl_c_ends_a_check_within_two_seconds(code, tmp_path) -> None:
    (tmp_path / "slow.py").write_text(code)
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2), np.float32))
    network = f"{tmp_path / 'slow.py'}:f"
    # Of a process that a shell started in the background, children ignore Ctrl-C, if nobody says otherwise.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeding}; from octavo.cli import app; app()"
    command = [sys.executable, "-c", program, "check", network, network, "--data", str(tmp_path / "data.npz")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.01)
        time.sleep(0.2)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
        assert time.monotonic() - begun < 2
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in printed
    assert "Traceback" not in printed
