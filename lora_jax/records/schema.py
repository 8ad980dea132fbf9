"""The fields of run.json, metrics.jsonl and summary.json, written down once.

A field that is None is not known: the run is not over, or its file comes from a program that did not record it. Keys
that the schema does not know are ignored.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

RECORD_VERSION: Literal[3] = 3
SEALED_SINCE = 3  # from this version on, files carry a hash of their content

Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Status = Literal["finished", "stopped", "diverged", "failed"]
Figures = Mapping[str, Integer | float]  # metrics by name; validation figures also have the "step" of their validation


class Record(BaseModel):
    """A frozen record. NaN and Infinity are values like any other: a run may diverge."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON's types, under the keys that the files use."""
        return self.model_dump(mode="json", by_alias=True)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed. The changes are validated."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(values | changes)


class Axes(Record):
    """What tells a run from the others of its sweep. All of it is known before training.

    A method does not read every axis: `rank`, `alpha` and `targets` are None where they make no difference.
    """

    model: str | None = None
    task: str | None = None
    method: str
    method_title: str  # the method as reports write it
    trains_base: bool  # whether every weight of the base trains, as in full fine-tuning, which is the baseline
    rank: Integer | None = None
    alpha: float | None = None
    targets: str | None = None
    lr: float | None = None
    seed: Integer | None = None


class Device(Record):
    platform: str | None = None
    kind: str | None = None
    count: Integer | None = None


class Base(Record):
    source: str | None = None
    fingerprint: str | None = None
    parameters: Integer | None = None
    adapter: str | None = None  # SHA-256 of the adapter that the run started from; None: it started anew


class Data(Record):
    name: str | None = None
    fingerprint: str | None = None
    examples: Mapping[str, Integer] = Field(default_factory=dict)  # by split


class RunRecord(Record):
    """run.json: what the run is, what was typed for it, and where it ran."""

    version: Literal[3] = RECORD_VERSION
    name: str  # unique within the sweep
    axes: Axes
    config: Mapping[str, Any] = Field(default_factory=dict)  # the settings, resolved
    overrides: tuple[str, ...] = ()  # ("rank=8",)
    versions: Mapping[str, str | None] = Field(default_factory=dict)  # of Python and packages
    device: Device = Device()
    base: Base = Base()
    data: Data = Data()
    commit: str | None = None
    command: str | None = None
    # ISO 8601, UTC; the files call it "started".
    start_time: str | None = Field(
        None, validation_alias=AliasChoices("started", "start_time"), serialization_alias="started"
    )


class MetricsRecord(Record):
    """A line of metrics.jsonl: some metrics after `step` updates. The metrics are an open set of extra keys.

    ``MetricsRecord(step=10, tokens=4096, **{"train/loss": 0.5})``
    """

    model_config = ConfigDict(extra="allow")

    step: Integer
    tokens: Integer  # that this run has trained on by then, without padding

    def figure(self, name: str) -> float | None:
        """Returns the metric `name`, such as "train/loss", or None where this record has no such number."""
        value = (self.model_extra or {}).get(name)
        if isinstance(value, int):
            return value if abs(value) < 2**63 and not isinstance(value, bool) else None
        return value if isinstance(value, float) else None


class PackRecord(Record):
    """The pack that a run trained in."""

    index: Integer
    runs: Integer = 1  # how many runs shared it


class Results(Axes):
    """How a run went."""

    name: str
    error: str | None = None
    steps: Integer | None = None
    trainable: Integer | None = None  # parameters, the head's among them
    adapter_parameters: Integer | None = None
    head_parameters: Integer | None = None
    base_parameters: Integer | None = None
    trainable_share: float | None = None  # of the base's parameters
    metric: str | None = None  # the task's headline
    select: str | None = None  # the validation metric that chooses the best step
    test: Figures | None = None
    valid_best: Figures | None = None
    train_loss: float | None = None
    tokens: Integer | None = None
    seconds: float | None = None
    tokens_per_s: float | None = None
    compile_seconds: float | None = None
    peak_memory_bytes: Integer | None = None
    adapter_bytes: Integer | None = None
    pack: PackRecord | None = None

    def score(self, split: str) -> float | None:
        """Returns the headline metric on "test", or the best on "valid"; None if it is not a finite number."""
        return _finite((self.test if split == "test" else self.valid_best) or {}, self.metric)

    def selection_score(self) -> float | None:
        """Returns the validation figure that chooses between runs; None if it is not a finite number."""
        return _finite(self.valid_best or {}, self.select or self.metric)


class Summary(Results):
    """summary.json. A run without one is running or was interrupted."""

    version: Literal[3] = RECORD_VERSION
    status: Status
    metrics_sha256: str | None = None  # of metrics.jsonl, when the run was over


def _finite(figures: Figures, name: str | None) -> float | None:
    value = figures.get(name or "")
    return value if value is not None and math.isfinite(value) else None
