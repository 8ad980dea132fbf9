"""Whatever settings, target expressions and records hold, they work or are refused by a UserError, within a second."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import pytest
from faults.fuzzing import EXAMPLES, changed, damaged, fuzzed, works_or_is_refused
from helpers.made_up import write_run
from helpers.slow import sometimes
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lora_jax.config import parse
from lora_jax.methods import METHODS
from lora_jax.models import bert
from lora_jax.models.heads import Classifier
from lora_jax.records import read_json, read_metrics, read_run, read_summary
from lora_jax.records.sealed import seal, seal_line
from lora_jax.report import build_report, load_rows, terminal_table
from lora_jax.report.compare import finding
from lora_jax.report.page import render
from lora_jax.report.tables import markdown, raw_csv
from lora_jax.targets import place, select, sites

MODEL = jax.eval_shape(lambda: Classifier(bert.Bert(bert.BertConfig()), 384, 77))

# ---- settings


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("method", sometimes(METHODS, "lora", "full", "adapter_h", "preembed"))
def test_settings(configure, method, data):
    tree = configure(method).model_dump(mode="json")
    tree |= {"baseline": "full", "resume": None, "pack": "auto"}
    tree["task"]["decode"] = {"new_tokens": 64, "beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0}
    run = works_or_is_refused(parse, data.draw(changed(tree)))
    if run is not None:
        works_or_is_refused(run.steps_of, 281)
        assert 0 < run.alpha_of(run.rank) < float("inf")
        assert (
            run.program_key()
            and run.identity()
            and parse(json.loads(run.model_dump_json())).identity() == run.identity()
        )


# ---- targets

PIECES = r"q qv all mlp embed re: attn/ layers/ @ : + - 0 5 12 ٣ . * ? {3} {2,} ( ) (?: (?= (?P<a> \1 [ ] ^ $ | a \d"
expressions = st.one_of(
    st.lists(st.sampled_from(PIECES.split()), max_size=25).map("".join),
    st.lists(st.sampled_from(PIECES.split()), max_size=25).map(lambda parts: "re:" + "".join(parts)),
    st.text(max_size=40),
)


@fuzzed
@given(expression=expressions)
def test_target_expressions(expression):
    works_or_is_refused(select, sites(MODEL), expression)


@fuzzed
@given(
    targets=expressions | st.just("all"), pattern=st.dictionaries(expressions, st.integers(1, 2**31 - 1), max_size=2)
)
def test_patterns(targets, pattern):
    works_or_is_refused(place, MODEL, targets, 8, float, pattern, pattern)


# ---- records


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> dict[str, Any]:
    """The content of a run's files, before they are damaged."""
    folder = write_run(tmp_path_factory.mktemp("valid"), {"rank": 8}, records=5)
    files = {name: (folder / name).read_bytes() for name in ("run.json", "summary.json", "metrics.jsonl")}
    return files | {"plan.json": json.dumps(seal({"packs": [{"index": 0, "runs": ["rank=8"]}]})).encode()}


def read_all(sweep: Path) -> None:
    """Reads the run in `sweep` in every way that needs no charts."""
    for read in (read_run, read_summary, read_metrics):
        works_or_is_refused(read, sweep / "rank=8")
    rows = works_or_is_refused(load_rows, sweep)
    for table in (markdown, raw_csv, finding, lambda rows: render(sweep, rows, [])):
        table(rows).encode()
    Console(file=io.StringIO(), width=100).print(terminal_table(rows))


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Two runs and a baseline. Tests replace files of rank=8."""
    for overrides in ({"rank": 8}, {"rank": 4}, {"method": "full"}):
        write_run(tmp_path, overrides, records=2)
    return tmp_path


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("name", ["run.json", "summary.json", "metrics.jsonl"])
def test_damaged_bytes(sweep, valid, name, data):
    (sweep / "rank=8" / name).write_bytes(data.draw(damaged(valid[name])))
    read_all(sweep)


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", ["run.json", "summary.json"])
def test_records_of_other_content(sweep, valid, name, version, data):
    """The hash fits the content: another program may have written it."""
    tree = json.loads(valid[name]) | {"version": version}
    if version == 1:
        del tree["version"]
    tree = data.draw(changed(tree))
    (sweep / "rank=8" / name).write_text(json.dumps(seal(tree) if version == 3 else tree))
    read_all(sweep)


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("sealed", [True, False])
def test_metrics_of_other_content(sweep, valid, sealed, data):
    first, *lines = [json.loads(line) for line in valid["metrics.jsonl"].splitlines()]
    lines = [data.draw(changed(first)), *lines]
    text = "".join(seal_line(line) if sealed else json.dumps(line) + "\n" for line in lines)
    (sweep / "rank=8/metrics.jsonl").write_text(text)
    (sweep / "rank=8/summary.json").unlink(missing_ok=True)  # its steps and tokens are then those of the metrics
    read_all(sweep)


@fuzzed
@given(data=st.data())
def test_a_damaged_plan(tmp_path, valid, data):
    path = tmp_path / "plan.json"
    path.write_bytes(data.draw(damaged(valid["plan.json"])))
    works_or_is_refused(read_json, path)


@pytest.mark.slow
@settings(fuzzed, max_examples=max(10, EXAMPLES // 10), deadline=None)
@given(data=st.data())
def test_charts_of_other_content(sweep, valid, data):
    for name in ("run.json", "summary.json"):
        (sweep / "rank=8" / name).write_text(json.dumps(seal(data.draw(changed(json.loads(valid[name]))))))
    lines = [json.loads(line) for line in valid["metrics.jsonl"].splitlines()]
    text = "".join(seal_line(data.draw(changed(line))) for line in lines)
    (sweep / "rank=8/metrics.jsonl").write_text(text)
    assert build_report(sweep).exists()
