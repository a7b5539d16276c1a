"""The study: an SQLite journal of a search. Nothing is measured twice, and whatever kills a run, the next goes on."""

import json
import sqlite3
import threading
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Self, TypeVar

from filelock import FileLock
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)
from pydantic_core import from_json

from octavo.errors import QuantizationError
from octavo.machine import versions_of

APPLICATION = int.from_bytes(b"Octv", "big")  # in the file's header: tells a study from another program's database
SCHEMA = 5
TABLES = (
    """CREATE TABLE trials (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, stage TEXT NOT NULL, method TEXT NOT NULL,
    engine TEXT NOT NULL, repairs TEXT NOT NULL, trained INTEGER NOT NULL, kept_float TEXT NOT NULL,
    metric REAL NOT NULL, scores BLOB, abandoned INTEGER NOT NULL, error TEXT, seconds REAL NOT NULL,
    versions TEXT NOT NULL, model TEXT NOT NULL, data TEXT NOT NULL, rules TEXT NOT NULL,
    rows INTEGER NOT NULL DEFAULT 0, channels INTEGER NOT NULL DEFAULT 1)""",
    "CREATE TABLE blobs (name TEXT PRIMARY KEY, data BLOB NOT NULL)",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
)
# What an earlier schema lacks.
_CHANNELS = ("ALTER TABLE trials ADD COLUMN channels INTEGER NOT NULL DEFAULT 1", f"PRAGMA user_version = {SCHEMA}")
_STAGE = ("ALTER TABLE trials RENAME COLUMN rung TO stage", *_CHANNELS)
UPDATES = {
    2: ("ALTER TABLE trials ADD COLUMN rows INTEGER NOT NULL DEFAULT 0", *_STAGE),
    3: _STAGE,
    4: _CHANNELS,
}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate and its score (never NaN: SQLite stores none).

    key          what determines the result: `trial_key`
    rows         whether linears and matmuls read every row on a scale of its own
    channels     whether depthwise convolutions read a scale for each channel, where the target has that
    repairs      names in REPAIRS, in the order in which they were made; trained: whether it was trained with rounding
    kept_float   layers left in float; `rules` placed the quantizers in all others
    scores       of the samples, float64 bit for bit; None where the metric is one number
    abandoned    left half-way, because the goal was out of reach
    error        why there is no network to score, None where there is one
    model, data  digests of what was quantized, and of what it was calibrated with and compared to
    id           its place in the order of completion, given by the study; None before
    """

    key: str
    stage: str
    method: str
    engine: str
    kept_float: tuple[str, ...]
    metric: float
    scores: tuple[float, ...] | None
    abandoned: bool
    error: str | None
    seconds: float
    versions: Mapping[str, str]
    model: str
    data: str
    rules: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    trained: bool = False
    rows: bool = False
    channels: bool = True
    id: int | None = None


COLUMNS = tuple(field.name for field in fields(Trial))


def trial_key(**determines: Any) -> str:
    """The SHA-256 (hexadecimal) of these values, of any type that JSON knows, whatever their order.

    The versions of Octavo and torch belong to them: whatever is kept was computed by those.
    """
    text = json.dumps([versions_of("octavo", "torch"), determines], sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


class Study:
    """The trials and blobs committed in `folder`; any number of processes and threads may share it.

    What is committed survives the loss of power. The kernel frees the locks of a process that is killed, so another
    takes over at once what that one was measuring.

    raises  QuantizationError, also in its methods, for a file it cannot read or write, and why
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._locks = folder / "study.sqlite", folder / "locks"
        self._statement = threading.Lock()
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._file, timeout=60, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(str(error)) from error
        try:
            with FileLock(self._locks / "open.lock"):  # SQLite does not wait for others while it changes to WAL
                self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        self._database.close()

    def run(self, key: str, measure: Callable[[], Trial]) -> Trial:
        """The committed trial of `key`; if there is none, what `measure` returns, committed.

        While one process measures, others that ask for the same key wait. If `measure` raises, nothing is committed.
        """

        def commit() -> None:
            trial = measure()
            assert trial.key == key, "what was measured is another trial than the one asked for"
            names, places = ", ".join(COLUMNS), ", ".join(f":{name}" for name in COLUMNS)
            self._execute(f"INSERT INTO trials ({names}) VALUES ({places})", _row(replace(trial, id=None)))

        return self._committed(key, lambda: next(iter(self._select("WHERE key = :key", {"key": key})), None), commit)

    def trials(self) -> list[Trial]:
        """All trials, in the order of completion."""
        return self._select("ORDER BY id", {})

    def blob(self, name: str) -> bytes | None:
        """The bytes kept under `name`, None if there are none."""
        rows = self._execute("SELECT data FROM blobs WHERE name = :name", {"name": name})
        return bytes(rows[0][0]) if rows else None

    def keep(self, name: str, data: bytes) -> None:
        """Commit bytes under `name`, in place of those that were there."""
        self._execute("INSERT OR REPLACE INTO blobs VALUES (:name, :data)", {"name": name, "data": data})

    def once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The bytes kept under `name`; if there are none, what `make` returns, committed, as with `run`."""
        lock = "blob-" + sha256(name.encode()).hexdigest()  # a name may hold what a file's name may not
        return self._committed(lock, lambda: self.blob(name), lambda: self.keep(name, make()))

    def _committed(self, lock: str, look: Callable[[], T | None], commit: Callable[[], None]) -> T:
        found = look()
        if found is None:
            with FileLock(self._locks / f"{lock}.lock"):
                found = look()  # another process may have committed it while this one waited
                if found is None:
                    commit()
                    found = look()
        assert found is not None
        return found

    def _prepare(self) -> None:
        tables = "(SELECT count(*) FROM sqlite_master)"
        ((application, schema, count),) = self._execute(
            f"SELECT application_id, user_version, {tables} FROM pragma_application_id, pragma_user_version"
        )
        new = (application, schema, count) == (0, 0, 0)  # or left empty by a process that was killed right here
        older = UPDATES.get(schema, ()) if application == APPLICATION else ()
        if not new and not older and (application, schema) != (APPLICATION, SCHEMA):
            versions = f"its schema is version {schema} and this Octavo reads version {SCHEMA}"
            raise self._unusable(versions if application == APPLICATION else "it is the database of another program")
        with suppress(QuantizationError):  # not every filesystem allows it; the rollback journal is as safe
            self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = EXTRA")  # FULL, and without WAL the folder is synced too
        self._execute("PRAGMA fullfsync = ON")  # macOS: through the disk's own cache
        statements = TABLES if new else older
        for statement in ("BEGIN IMMEDIATE", *statements, "COMMIT") if statements else ():
            self._execute(statement)

    def _select(self, which: str, values: Mapping[str, Any]) -> list[Trial]:
        rows = self._execute(f"SELECT {', '.join(COLUMNS)} FROM trials {which}", values)
        try:
            return [_trial(row) for row in rows]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise self._unusable(f"a row of it is damaged ({where}: {first['msg']})") from error

    def _execute(self, sql: str, values: Mapping[str, Any] = MappingProxyType({})) -> list[tuple[Any, ...]]:
        try:
            with self._statement:
                return self._database.execute(sql, dict(values)).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # of a damaged file SQLite quotes what is no text
            raise self._unusable(f"SQLite reports: {error}") from error

    def _unusable(self, seen: str) -> QuantizationError:
        return QuantizationError(
            asked="use the study",
            seen=seen,
            remedy="see that the folder can be written and has room, update Octavo, or search in another folder",
            site=str(self._file),
        )


def _row(trial: Trial) -> dict[str, Any]:
    return vars(trial) | {
        "kept_float": json.dumps(trial.kept_float),
        "repairs": json.dumps(trial.repairs),
        "rules": json.dumps(trial.rules),
        "scores": None if trial.scores is None else array("d", trial.scores).tobytes(),
        "versions": json.dumps(dict(trial.versions)),
    }


def _trial(row: tuple[Any, ...]) -> Trial:
    return Trial(**vars(_Row.model_validate(dict(zip(COLUMNS, row, strict=True)))))


def _json(text: Any) -> Any:
    if not isinstance(text, str):
        raise ValueError("it is no text")
    return from_json(text)


Names = Annotated[tuple[str, ...], BeforeValidator(_json)]


def _numbers(data: Any) -> tuple[float, ...] | None:
    if data is not None and (not isinstance(data, bytes) or len(data) % 8):
        raise ValueError("it is no whole number of float64")
    return None if data is None else tuple(array("d", data))


class _Row(BaseModel):
    """What SQLite returns, which stores anything in any column, as what a trial holds."""

    model_config = ConfigDict(extra="forbid")

    id: StrictInt
    key: StrictStr
    stage: StrictStr
    method: StrictStr
    engine: StrictStr
    repairs: Names
    trained: bool
    kept_float: Names
    metric: StrictFloat
    scores: Annotated[tuple[float, ...] | None, BeforeValidator(_numbers)]
    abandoned: bool
    error: StrictStr | None
    seconds: StrictFloat
    versions: Annotated[dict[str, str], BeforeValidator(_json)]
    model: StrictStr
    data: StrictStr
    rules: Names
    rows: bool
    channels: bool
