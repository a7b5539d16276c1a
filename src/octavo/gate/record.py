"""What a check found, as JSON with a version and a schema: `docs/check.schema.json`."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from octavo.errors import QuantizationError
from octavo.gate.measures import Name
from octavo.gate.verdict import Word

Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A part of a record: nothing is left out, nothing unknown is in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Layer(Part):
    """A compute-heavy operation that ran in float, and the kernel that ran it."""

    layer: str
    kernel: str


class Ran(Part):
    """What ran on integers, as the runtime tells. Without products it does not tell, or there is nothing to tell of."""

    by: str
    products: int | None
    on_integers: int | None
    share_of_multiplications: Share | None
    in_float: list[Layer]


class Side(Part):
    """One of the two networks. Megabytes are 10⁶ bytes."""

    name: str
    kind: str
    runtime: str
    size_mb: float | None
    ran: Ran


class Input(Part):
    """What both networks read; null for an axis whose size varies."""

    dtype: str
    shape: list[int | None]


class Data(Part):
    """What both were run on."""

    source: str
    samples: int
    labels: bool
    inputs: dict[str, Input]


class Asked(Part):
    """What may be lost: a share of the float score if relative, else in its unit; and what has to run on integers."""

    max_drop: float
    relative: bool
    confidence: float
    min_int8: Share


class Score(Part):
    """The measure that judged, of which output and why, and what both networks score. Intervals are paired."""

    measure: Name
    output: str | None
    why: str
    higher_is_better: bool
    float_score: float
    int8_score: float
    drop: float
    allowed: float
    interval: tuple[float, float] | None
    samples: int | None
    samples_needed: int | None


class Output(Part):
    """How far one output of the two lies apart. sqnr_db is null where they are identical."""

    name: str
    dtype: str
    shape: list[int | None]
    sqnr_db: float | None
    identical: bool
    agreement: float | None
    largest_error: float
    fidelity: float | None


class Sample(Part):
    """A sample, by its number in the data (of evaluate: in its scores): what both score, and the classes chosen."""

    sample: int
    float_score: float
    int8_score: float
    sqnr_db: float | None
    label: int | None = None
    float_class: int | None = None
    int8_class: int | None = None


class Class(Part):
    """Of the samples of one class, per cent that the two get right."""

    label: int
    samples: int
    float_recall: float
    int8_recall: float


class Times(Part):
    """Milliseconds of a call: the median, and between which eight of ten lie."""

    median_ms: float
    p10_ms: float
    p90_ms: float


class Latency(Part):
    """Both timed in one interleaved run. int8_is_faster_by: the ratio of the medians, above 1 where int8 is faster."""

    batch: int
    rounds: int
    float_times: Times
    int8_times: Times
    int8_is_faster_by: float


class Check(Part):
    """What `octavo check` found."""

    schema_version: Literal[1] = 1
    verdict: Word
    exit_code: int
    reason: str
    float_network: Side
    int8_network: Side
    data: Data
    asked: Asked
    score: Score | None
    outputs: list[Output]
    broken_samples: list[int]
    worst_samples: list[Sample]
    worst_classes: list[Class]
    latency: Latency | None
    notes: list[str]
    versions: dict[str, str]
    machine: dict[str, Any]

    @property
    def met(self) -> bool:
        """Whether the goal is kept, for sure."""
        return self.verdict == "met"

    @property
    def card(self) -> str:
        """The record as Markdown, to be pasted into the page of a model or a pull request."""
        from octavo.gate.card import card  # noqa: PLC0415 (it reads this class)

        return card(self)


class Failed(Part):
    """What is written in place of a record where the command was used wrongly."""

    schema_version: Literal[1] = 1
    exit_code: Literal[2] = 2
    asked: str
    seen: str
    remedy: str
    site: str | None

    @classmethod
    def of(cls, error: QuantizationError) -> "Failed":
        """That of an error."""
        return cls(asked=error.asked, seen=error.seen, remedy=error.remedy, site=error.site)


def schema() -> dict[str, Any]:
    """The JSON schema of what `--json` writes: a `Check`, or `Failed`."""
    found: dict[str, Any] = TypeAdapter(Check | Failed).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "octavo check --json"} | found


def finite(value: float) -> float | None:
    """`value`, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def json_text(record: Check | Failed) -> str:
    """A record as JSON."""
    return json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
