"""Small data sets of a user, as files of every format."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from lora_jax.config import TaskConfig
from lora_jax.data.task import TaskData
from lora_jax.data.tasks import load_data

TEXT_LABEL = {"text": "question", "label": "intent"}
CHAT = {"kind": "chat", "messages": "messages"}
REGRESSION = {**TEXT_LABEL, "kind": "regression"}
GENERATION = {**TEXT_LABEL, "kind": "generation"}
ROWS = [{"question": f"How {i}?", "intent": ("ask", "buy")[i % 2]} for i in range(40)]
NUMBERS = [{"question": f"How {i}?", "intent": i / 2} for i in range(40)]


def settings(name: str, data_dir: Path | None, **columns: str) -> TaskConfig:
    return TaskConfig.model_validate({"name": name, "steps": 1, "data_dir": data_dir and str(data_dir), **columns})


def load(name: str, data_dir: Path | None, **columns: str) -> TaskData:
    return load_data(settings(name, data_dir, **columns))


def as_csv(rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def features_of(names: Sequence[str]) -> dict[str, Any]:
    return {"question": {"dtype": "string", "_type": "Value"}, "intent": {"names": list(names), "_type": "ClassLabel"}}


def as_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> pa.Table:
    """A table as `datasets` makes it: classes are numbers, and their names are in the schema's metadata."""
    if names is None:
        return pa.Table.from_pylist(list(rows) or list(ROWS)).slice(0, len(rows))
    table = pa.Table.from_pylist([{**row, "intent": list(names).index(row["intent"])} for row in rows])
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features_of(names)}})})


def as_parquet(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> bytes:
    out = io.BytesIO()
    parquet.write_table(as_table(rows, names), out)
    return out.getvalue()


def as_arrow(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None, *, indexed: bool = False) -> bytes:
    out, table = io.BytesIO(), as_table(rows, names)
    with (pa.ipc.new_file if indexed else pa.ipc.new_stream)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return out.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


CHATS = [{"messages": turns(f"Hi {i}", f"Hello {i}", "Bye", f"Goodbye {i}")} for i in range(30)]
