"""The records that a run leaves in its folder: their schema, and the files that hold them. Needs no JAX.

``run.json`` says what the run is and where it ran. ``metrics.jsonl`` holds one record of metrics a line.
``summary.json`` is written when the run is over. These files are the source of truth: W&B may be off, offline or
broken, and neither training nor the report depends on it.
"""

from lora_jax.records.atomic import TEMPORARY, remove_temporaries, write_atomically
from lora_jax.records.files import (
    METRICS_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    MetricsFile,
    find_runs,
    is_open,
    read_json,
    read_lines,
    read_metrics,
    read_run,
    read_summary,
    remove_summary,
    write_json,
    write_lines,
    write_run,
    write_summary,
)
from lora_jax.records.flat import flat
from lora_jax.records.inputs import base_key, inputs_key
from lora_jax.records.lock import LOCK_FILE, has_lock, locked
from lora_jax.records.plan import PLAN_FILE, PlannedPack, read_plan, write_plan
from lora_jax.records.schema import (
    RECORD_VERSION,
    Axes,
    Base,
    Data,
    Device,
    MetricsRecord,
    PackRecord,
    Record,
    Results,
    RunRecord,
    Status,
    Summary,
)

__all__ = [
    "LOCK_FILE",
    "METRICS_FILE",
    "PLAN_FILE",
    "RECORD_VERSION",
    "RUN_FILE",
    "SUMMARY_FILE",
    "TEMPORARY",
    "Axes",
    "Base",
    "Data",
    "Device",
    "MetricsFile",
    "MetricsRecord",
    "PackRecord",
    "PlannedPack",
    "Record",
    "Results",
    "RunRecord",
    "Status",
    "Summary",
    "base_key",
    "find_runs",
    "flat",
    "has_lock",
    "inputs_key",
    "is_open",
    "locked",
    "read_json",
    "read_lines",
    "read_metrics",
    "read_plan",
    "read_run",
    "read_summary",
    "remove_summary",
    "remove_temporaries",
    "write_atomically",
    "write_json",
    "write_lines",
    "write_plan",
    "write_run",
    "write_summary",
]
