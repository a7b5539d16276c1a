"""Files and folders that are replaced whole or not at all: all that Octavo writes, it writes through here.

What is not finished lies in a scratch folder beside its place, which its writer has locked. The kernel frees the lock
of a process that is killed; the next writer in the same folder removes what that one left.
"""

import ctypes
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from octavo.errors import QuantizationError

PREFIX = ".octavo-part-"
NEW, FORMER, LOCK = "new", "former", ".lock"  # in a scratch folder: what is being written, what it replaces
HERE, EXCHANGE = -100, 2  # Linux: AT_FDCWD, RENAME_EXCHANGE


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A new folder in `parent`, which is gone after the block, or after a kill with the next one there.

    parent  None is the system's folder for what is temporary
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    folder, lock = _claimed(parent)
    try:
        yield folder
    finally:
        _remove(folder, lock)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Where to write the file or folder that takes the place of `path` at the end of the block, at once.

    A folder changes places with the former one where the system can do that in one step (Linux).
    raises  QuantizationError for what the operating system refuses, a full disk above all; `path` is then as it was
    """
    path = path.resolve()
    with said_of(path), scratch(path.parent) as folder:
        new = folder / NEW / path.name
        new.parent.mkdir()
        yield new
        _sync(new)
        if not path.is_dir():
            new.replace(path)
        elif not _exchanged(new, path):
            (folder / FORMER).mkdir()
            path.rename(folder / FORMER / path.name)  # killed here, the next writer puts it back
            new.rename(path)
        _sync_one(path.parent)


def sweep(parent: Path) -> None:
    """Remove the scratch folders of writers that are gone; what they had set aside goes back to its place."""
    for folder in parent.glob(f"{PREFIX}*"):
        lock = FileLock(folder / LOCK)
        with suppress(OSError, Timeout):
            lock.acquire(timeout=0)
            for former in folder.glob(f"{FORMER}/*"):
                if not (parent / former.name).exists():
                    former.rename(parent / former.name)
            _remove(folder, lock)


def write(path: Path, data: bytes | str) -> None:
    """Write one file, whole or not at all. See `replaced`.

    raises  QuantizationError for a folder of that name, too, which a file must not take the place of
    """
    check_no_folder(path)
    with replaced(path) as new:
        new.write_bytes(data.encode() if isinstance(data, str) else data)


def check_no_folder(path: Path) -> None:
    """Raise QuantizationError if a folder is where a file is to be written."""
    if path.is_dir():
        raise QuantizationError(
            asked=f"write {path.name}", seen="there is a folder of that name", remedy="name a file", site=str(path)
        )


def built(path: Path, build: Callable[[Path], object]) -> Path:
    """`path`, as `build` wrote it: once, whichever processes ask; again, if it is not what was written.

    Its digest lies beside it: a library that was cut short must not be loaded.
    """
    if not _is_whole(path):
        with said_of(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not _is_whole(path):  # another process may have built it meanwhile
                with replaced(path) as new:
                    build(new)
                write(_digest_of(path), _digest(path))
    return path


def _is_whole(path: Path) -> bool:
    try:
        return _digest_of(path).read_text() == _digest(path)
    except (OSError, ValueError):
        return False


def _digest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def said_of(path: Path) -> Iterator[None]:
    """What the operating system refuses about `path`, as one error."""
    try:
        yield
    except OSError as error:
        raise QuantizationError(
            asked=f"write {path.name}",
            seen=error.strerror or str(error),
            remedy="see that its folder can be written and that the disk has room; what was there before is untouched",
            site=str(path),
        ) from error


def _claimed(parent: Path) -> tuple[Path, FileLock]:
    """A new scratch folder and the lock that says that its writer lives.

    Another may sweep the folder before it is locked; then that one removes it, and the writer makes another.
    """
    while True:
        folder = parent / f"{PREFIX}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        except OSError:
            if not folder.exists():
                continue
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if (folder / LOCK).exists():
            return folder, lock
        lock.release()


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove a scratch folder and free its lock, which is held until nothing is left that could be another's."""
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    if os.name == "nt":  # an open file cannot be removed there, nor the folder come back meanwhile
        shutil.rmtree(folder, ignore_errors=True)


def _exchanged(a: Path, b: Path) -> bool:
    """Whether the two have changed places; False where the system or the file system cannot do that in one step."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    return rename is not None and rename(HERE, os.fsencode(a), HERE, os.fsencode(b), EXCHANGE) == 0


def _sync(path: Path) -> None:
    """Have all of `path` on the disk before its name says so."""
    for one in [*path.rglob("*"), path] if path.is_dir() else [path]:
        _sync_one(one)


def _sync_one(path: Path) -> None:
    with suppress(PermissionError, IsADirectoryError):  # a folder cannot be opened on every system
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
