"""The outside of a saved network: named files in a zip or a folder, written whole or not at all, checked when read."""

import zipfile
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from octavo.errors import QuantizationError
from octavo.files import replaced

MANIFEST = "manifest.json"
SCHEMA = 2  # raised when files written before cannot be read any more, or older versions cannot read new ones
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every entry of a zip: the same network gives the same file
MEGABYTE = 2**20
# The most that is read of a part. What is compressed may grow a thousandfold, and a byte of JSON or of ONNX a
# hundredfold in memory; the rest is stored as it is, and no longer than the file.
LARGEST = {".json": 16 * MEGABYTE, ".onnx": 8 * MEGABYTE}
PARTS = 16
BRACKETS = 400_000  # lists and dicts of one JSON: an empty one takes two bytes there, and 300 while it is parsed
_DEFLATED = {".json": zipfile.ZIP_DEFLATED, ".onnx": zipfile.ZIP_DEFLATED}


class FileFacts(BaseModel):
    """The size and digest of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, StringConstraints(max_length=64)]


class Manifest(BaseModel):
    """What an artifact is. `schema_version` comes first in every version that there will be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["octavo"] = "octavo"
    schema_version: Annotated[int, Field(ge=0)]
    engine: str
    versions: dict[str, str]
    files: dict[str, FileFacts]

    @property
    def digest(self) -> str:
        """The SHA-256 of all that the files hold."""
        return sha256(self.model_dump_json(include={"files"}).encode()).hexdigest()


class _Version(BaseModel):
    """As much of a manifest as any version of Octavo can read."""

    format: Literal["octavo"]
    schema_version: Annotated[int, Field(ge=0, le=10**6)]


def write_container(
    path: Path, files: dict[str, bytes], *, form: Literal["file", "folder"], engine: str, versions: dict[str, str]
) -> None:
    """Write `files` and their manifest to `path`."""
    check_free(path, form)
    facts = {name: FileFacts(size=len(data), sha256=sha256(data).hexdigest()) for name, data in files.items()}
    manifest = Manifest(schema_version=SCHEMA, engine=engine, versions=versions, files=facts)
    files = {MANIFEST: manifest.model_dump_json(indent=1).encode(), **files}
    with replaced(path) as new:
        (_write_zip if form == "file" else _write_folder)(new, files)


def check_free(path: Path, form: str) -> None:
    """Raise QuantizationError for a path where something else lies: nothing but an artifact is ever replaced."""
    if not path.exists() or path.is_dir() == (form == "folder"):
        try:
            if path.exists():
                _manifest(path, _bytes_of(path, MANIFEST, MEGABYTE))
            return
        except QuantizationError:
            pass
    raise QuantizationError(
        asked="save a network",
        seen="there is something that is no saved network" if path.is_file() or form == "folder" else "it is a folder",
        remedy="choose another path, or remove it",
        site=str(path),
    )


def _write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            archive.writestr(entry, data, compress_type=_DEFLATED.get(Path(name).suffix, zipfile.ZIP_STORED))


def _write_folder(path: Path, files: dict[str, bytes]) -> None:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)


def read_container(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and all the files that it names, each as long as it says and with its digest.

    raises  QuantizationError for a path that does not exist, and what is truncated, altered, foreign, too new or larger
            than any part of a network is
    """
    manifest = _manifest(path, _bytes_of(path, MANIFEST, MEGABYTE))
    if len(manifest.files) > PARTS:
        raise _damaged(path, f"it names {len(manifest.files)} files")
    files = {}
    for name, facts in manifest.files.items():
        data = _bytes_of(path, name, facts.size)
        if len(data) != facts.size or sha256(data).hexdigest() != facts.sha256:
            raise _damaged(path, f"{name} is not what was saved: it was truncated or altered")
        if name.endswith(".json") and data.count(b"[") + data.count(b"{") > BRACKETS:
            raise _damaged(path, f"{name} holds more lists than any network has")
        files[name] = data
    return manifest, files


def _manifest(path: Path, data: bytes) -> Manifest:
    try:
        version = _Version.model_validate_json(data).schema_version
        if version > SCHEMA:
            raise QuantizationError(
                asked="load a saved network",
                seen=f"it has schema version {version}, and this Octavo reads up to {SCHEMA}",
                remedy="install a newer Octavo",
                site=str(path),
            )
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise _damaged(path, f"{MANIFEST} is none of Octavo's") from error


# What zipfile raises for bytes that it cannot unpack: RuntimeError for a password or a compression that it lacks.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)


def _bytes_of(path: Path, name: str, most: int) -> bytes:
    """The part called `name`, if it has no more than `most` bytes."""
    if not path.exists():
        raise QuantizationError(
            asked="load a saved network", seen="there is nothing at this path", remedy="check it", site=str(path)
        )
    if "/" in name or "\\" in name or name.startswith("."):
        raise _damaged(path, f"it names the file {name!r}, which would lie elsewhere")
    most = min(most, LARGEST.get(Path(name).suffix, most))
    try:
        if path.is_dir():
            return _of_folder(path, name, most)
        if not path.is_file():
            raise _damaged(path, "it is neither a file nor a folder")
        return _of_zip(path, name, most)
    except (OSError, KeyError) as error:
        raise _damaged(path, f"it holds no {name}") from error
    except UNREADABLE as error:
        raise _damaged(path, f"it is not a zip that can be read ({error})") from error


def _of_folder(path: Path, name: str, most: int) -> bytes:
    part = path / name
    if part.exists() and not part.is_file():  # a pipe, a device: reading it may never end
        raise _damaged(path, f"{name} is no file")
    if part.stat().st_size > most:
        raise _too_long(path, name, part.stat().st_size, most)
    return part.read_bytes()


def _of_zip(path: Path, name: str, most: int) -> bytes:
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(name)
        stored = entry.compress_type == zipfile.ZIP_STORED
        if entry.file_size > most or (stored and entry.file_size > path.stat().st_size):
            raise _too_long(path, name, entry.file_size, most)
        if not stored and Path(name).suffix not in _DEFLATED:
            raise _damaged(path, f"{name} is compressed, which octavo.save does not do")
        with archive.open(entry) as part:
            return part.read(most + 1)


def _too_long(path: Path, name: str, size: int, most: int) -> QuantizationError:
    return _damaged(path, f"{name} is {size} bytes long, and no more than {most} were expected")


def _damaged(path: Path, seen: str) -> QuantizationError:
    return QuantizationError(
        asked="load a saved network",
        seen=seen,
        remedy="copy or save it again; what octavo.save writes is a folder or a zip",
        site=str(path),
    )
