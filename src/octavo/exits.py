"""How every command ends: one table of exit codes, which programs can rely on.

0    met: the goal is kept; of a command without one, it did what it was asked
1    not met
2    used wrongly: an argument, a file, or data that cannot be worked with; one error says what to do
3    could not tell: too few samples
70   something else failed, in a recipe or in Octavo: a traceback says what
130  interrupted by Ctrl-C
"""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from enum import IntEnum
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from octavo.errors import QuantizationError

GRACE_S = 1.0  # for what a library does not leave at once


class Exit(IntEnum):
    """The codes. Shells say 130 of what Ctrl-C ended, sysexits.h says 70 of an internal error."""

    MET = 0
    NOT_MET = 1
    USED_WRONGLY = 2
    COULD_NOT_TELL = 3
    FAILED = 70
    INTERRUPTED = 130


def ending(
    console: Console, work: Callable[[], Exit], *, wrong: Callable[[QuantizationError], object] = lambda error: None
) -> int:
    """The code that a command ends by: what `work` returns, or that of what it raises, which is printed.

    wrong  what else to do about an error of the user's
    """
    try:
        return int(work())
    except QuantizationError as error:
        _say(console, error)
        try:
            wrong(error)
        except QuantizationError as another:  # of where it was to be written
            _say(console, another)
        return Exit.USED_WRONGLY
    except KeyboardInterrupt:
        console.print("interrupted")
        return Exit.INTERRUPTED
    except Exception:
        traceback.print_exc()
        return Exit.FAILED


def _say(console: Console, error: QuantizationError) -> None:
    said = "\n".join(map(printable, str(error).split("\n")))
    console.print(f"[red]error[/red] {escape(said)}", highlight=False)


def printable(text: str) -> str:
    """Text without characters that steer a terminal: names in it may be a file's own."""
    return "".join(one if one.isprintable() else "�" for one in text)


def promptly(run: Callable[[], int]) -> int:
    """What `run` returns; within two seconds of Ctrl-C the process ends by 130, whatever a library is at just then.

    All that is written is whole or not there (`files.py`), so nothing is lost by that.
    """
    if threading.current_thread() is not threading.main_thread():
        return run()
    mine, its = socket.socketpair()
    its.setblocking(False)
    former = signal.set_wakeup_fd(its.fileno(), warn_on_full_buffer=False)
    watching = threading.Thread(target=_watch, args=(mine,), daemon=True)
    watching.start()
    try:
        code = run()
        if code == Exit.INTERRUPTED:
            _leave()  # libraries take their time to end, too
        return code
    finally:
        signal.set_wakeup_fd(former)
        its.close()
        watching.join()
        mine.close()


def _leave() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(Exit.INTERRUPTED)


def _watch(signals: socket.socket) -> None:
    """Wait for the interrupt; then for the block to end, and if it does not, end the process."""
    while received := signals.recv(1):
        if received[0] == signal.SIGINT:
            break
    else:
        return
    signals.settimeout(GRACE_S)
    deadline = time.monotonic() + GRACE_S
    try:
        while time.monotonic() < deadline:
            if not signals.recv(1):
                return
    except TimeoutError:
        pass
    sys.stderr.write("interrupted\n")
    _leave()
