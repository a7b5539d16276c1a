"""The outside of a saved network, read: named files in a zip or a folder, with their sizes and digests."""

import json
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

from octavo_serve.errors import QuantizationError

MANIFEST = "manifest.json"
SCHEMA = 3  # raised when files written before cannot be read any more, or older versions cannot read new ones
MEGABYTE = 2**20
# The most that is read of a part. What is compressed may grow a thousandfold, and a byte of JSON or of ONNX a
# hundredfold in memory; the rest is stored as it is, and no longer than the file.
LARGEST = {".json": 16 * MEGABYTE, ".onnx": 8 * MEGABYTE}
PARTS = 16
BRACKETS = 400_000  # lists and dicts of one JSON: an empty one takes two bytes there, and 300 while it is parsed
DEFLATED = {".json": zipfile.ZIP_DEFLATED, ".onnx": zipfile.ZIP_DEFLATED}
LONGEST = 64  # characters of a SHA-256 in hexadecimal digits


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """The size and digest of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact is.

    engine    the one that it was saved for
    versions  of the packages that wrote it
    """

    schema_version: int
    engine: str
    versions: Mapping[str, str]
    files: Mapping[str, FileFacts]

    @property
    def digest(self) -> str:
        """The SHA-256 of all that the files hold."""
        facts = {name: [each.size, each.sha256] for name, each in self.files.items()}
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def path_of(path: object) -> Path:
    """`path`, as one; QuantizationError for anything else."""
    if isinstance(path, str | PathLike):
        return Path(path)
    raise QuantizationError(
        asked=f"load a saved network from a {type(path).__name__}",
        seen="that is no path",
        remedy="pass the path that octavo.save wrote to",
        site="path",
    )


def read_container(path: Path, *, wanted: Collection[str] | None = None) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the files that it names, each as long as it says and with its digest.

    wanted  which of them to read, where they are there; None for all
    raises  QuantizationError for a path that does not exist, and what is truncated, altered, foreign, too new or larger
            than any part of a network is
    """
    manifest = read_manifest(path)
    if len(manifest.files) > PARTS:
        raise damaged(path, f"it names {len(manifest.files)} files")
    files = {}
    for name, facts in manifest.files.items():
        if wanted is None or name in wanted:
            data = _bytes_of(path, name, facts.size)
            if len(data) != facts.size or sha256(data).hexdigest() != facts.sha256:
                raise damaged(path, f"{name} is not what was saved: it was truncated or altered")
            if name.endswith(".json") and data.count(b"[") + data.count(b"{") > BRACKETS:
                raise damaged(path, f"{name} holds more lists than any network has")
            files[name] = data
    return manifest, files


def read_manifest(path: Path) -> Manifest:
    """What the artifact at `path` says that it is. raises QuantizationError as `read_container` does."""
    data = _bytes_of(path, MANIFEST, MEGABYTE)
    try:
        facts = json.loads(data)
        version = _version(facts)
        if version > SCHEMA:
            raise QuantizationError(
                asked="load a saved network",
                seen=f"it has schema version {version}, and this Octavo reads up to {SCHEMA}",
                remedy="install a newer Octavo",
                site=str(path),
            )
        return _manifest(facts)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path, f"{MANIFEST} is none of Octavo's") from error


def _version(facts: Any) -> int:
    """The schema version, which stands in every manifest that there will be."""
    version = facts["schema_version"]
    if facts["format"] != "octavo" or type(version) is not int or not 0 <= version <= 10**6:
        raise ValueError("no manifest")
    return version


def _manifest(facts: dict[str, Any]) -> Manifest:
    engine, versions, files = facts["engine"], facts["versions"], facts["files"]
    if facts.keys() != {"format", "schema_version", "engine", "versions", "files"}:
        raise ValueError("other fields than a manifest has")
    if not all(isinstance(text, str) for text in (engine, *versions.values())):
        raise TypeError("a name that is no text")
    return Manifest(
        schema_version=facts["schema_version"],
        engine=engine,
        versions=dict(versions),
        files={name: _facts(**each) for name, each in files.items()},
    )


def _facts(*, size: Any, sha256: Any) -> FileFacts:
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or len(sha256) > LONGEST:
        raise ValueError("no size or no digest")
    return FileFacts(size=size, sha256=sha256)


# What zipfile raises for bytes that it cannot unpack: RuntimeError for a password or a compression that it lacks.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)


def _bytes_of(path: Path, name: str, most: int) -> bytes:
    """The part called `name`, if it has no more than `most` bytes."""
    if not path.exists():
        raise QuantizationError(
            asked="load a saved network", seen="there is nothing at this path", remedy="check it", site=str(path)
        )
    if "/" in name or "\\" in name or name.startswith("."):
        raise damaged(path, f"it names the file {name!r}, which would lie elsewhere")
    most = min(most, LARGEST.get(Path(name).suffix, most))
    try:
        if path.is_dir():
            return _of_folder(path, name, most)
        if not path.is_file():
            raise damaged(path, "it is neither a file nor a folder")
        return _of_zip(path, name, most)
    except (OSError, KeyError) as error:
        raise damaged(path, f"it holds no {name}") from error
    except UNREADABLE as error:
        raise damaged(path, f"it is not a zip that can be read ({error})") from error


def _of_folder(path: Path, name: str, most: int) -> bytes:
    part = path / name
    if part.exists() and not part.is_file():  # a pipe, a device: reading it may never end
        raise damaged(path, f"{name} is no file")
    if part.stat().st_size > most:
        raise _too_long(path, name, part.stat().st_size, most)
    return part.read_bytes()


def _of_zip(path: Path, name: str, most: int) -> bytes:
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(name)
        stored = entry.compress_type == zipfile.ZIP_STORED
        if entry.file_size > most or (stored and entry.file_size > path.stat().st_size):
            raise _too_long(path, name, entry.file_size, most)
        if not stored and Path(name).suffix not in DEFLATED:
            raise damaged(path, f"{name} is compressed, which octavo.save does not do")
        with archive.open(entry) as part:
            return part.read(most + 1)


def _too_long(path: Path, name: str, size: int, most: int) -> QuantizationError:
    return damaged(path, f"{name} is {size} bytes long, and no more than {most} were expected")


def damaged(path: Path, seen: str) -> QuantizationError:
    """That what lies at `path` is no artifact, or no whole one."""
    return QuantizationError(
        asked="load a saved network",
        seen=seen,
        remedy="copy or save it again; what octavo.save writes is a folder or a zip",
        site=str(path),
    )
