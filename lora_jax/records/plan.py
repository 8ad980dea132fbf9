"""plan.json: the packs of a sweep."""

from pathlib import Path
from typing import Literal

from lora_jax.records.files import parse_record, read_json, write_json
from lora_jax.records.schema import RECORD_VERSION, Record

PLAN_FILE = "plan.json"

Gemm = Literal["default", "triton", "cublas"]
Lengths = Literal["all", "longest"]
Layers = Literal["default", "unrolled"]


class PlannedPack(Record):
    """A pack in plan.json, with predictions of its cost. `sweep.plan.PackPlan` describes the fields."""

    index: int
    runs: tuple[str, ...]  # names
    bytes: int
    exact: bool
    steps: int
    tokens: int
    flops: float
    lengths: Lengths = "all"
    gemm: Gemm = "default"
    layers: Layers = "default"
    compile_seconds: float = 0.0
    train_seconds: float = 0.0


class Plan(Record):
    """The content of plan.json."""

    version: int = RECORD_VERSION
    packs: tuple[PlannedPack, ...] = ()


def read_plan(home: Path) -> list[PlannedPack]:
    """Returns the packs in ``home/plan.json``; none if there is no such file.

    Raises:
      UserError: the file is damaged, or has a value of a wrong type.
    """
    path = home / PLAN_FILE
    return list(parse_record(Plan, read_json(path), path).packs) if path.exists() else []


def write_plan(home: Path, packs: list[PlannedPack]) -> None:
    """Writes ``home/plan.json``."""
    write_json(home / PLAN_FILE, Plan(packs=tuple(packs)).to_json())
