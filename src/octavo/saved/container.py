"""The outside of a saved network, written whole or not at all; `octavo_serve.container` reads it."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Literal

from octavo.errors import QuantizationError
from octavo.files import replaced
from octavo_serve.container import (
    DEFLATED,
    MANIFEST,
    SCHEMA,
    FileFacts,
    Manifest,
    read_container,
    read_manifest,
)

__all__ = ["Manifest", "check_free", "read_container", "write_container"]

EPOCH = (1980, 1, 1, 0, 0, 0)  # of every entry of a zip: the same network gives the same file


def write_container(
    path: Path,
    files: Mapping[str, bytes],
    *,
    form: Literal["file", "folder"],
    engine: str,
    versions: Mapping[str, str],
) -> None:
    """Write `files` and their manifest to `path`."""
    check_free(path, form)
    facts = {name: FileFacts(size=len(data), sha256=sha256(data).hexdigest()) for name, data in files.items()}
    manifest = Manifest(schema_version=SCHEMA, engine=engine, versions=dict(versions), files=facts)
    written = json.dumps({"format": "octavo", **asdict(manifest)}, indent=1).encode()
    with replaced(path) as new:
        (_write_zip if form == "file" else _write_folder)(new, {MANIFEST: written, **files})


def check_free(path: Path, form: str) -> None:
    """Raise QuantizationError for a path where something else lies: nothing but an artifact is ever replaced."""
    if not path.exists() or path.is_dir() == (form == "folder"):
        try:
            if path.exists():
                read_manifest(path)
            return
        except QuantizationError:
            pass
    raise QuantizationError(
        asked="save a network",
        seen="there is something that is no saved network" if path.is_file() or form == "folder" else "it is a folder",
        remedy="choose another path, or remove it",
        site=str(path),
    )


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            archive.writestr(entry, data, compress_type=DEFLATED.get(Path(name).suffix, zipfile.ZIP_STORED))


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
