"""Whatever settings, target expressions and records hold, they work or are refused by a UserError, within a second.

LORA_JAX_FUZZ_EXAMPLES sets the number of examples of each test, 30 by default. The examples are the same every time.
"""

import copy
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers.made_up import write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from lora_jax.config import parse
from lora_jax.errors import UserError
from lora_jax.models import bert
from lora_jax.models.heads import Classifier
from lora_jax.records import read_json, read_metrics, read_run, read_summary
from lora_jax.records.sealed import seal, seal_line
from lora_jax.report import build_report, load_rows, terminal_table
from lora_jax.report.compare import finding
from lora_jax.report.page import render
from lora_jax.report.tables import markdown, raw_csv
from lora_jax.targets import place, select, sites

EXAMPLES = int(os.environ.get("LORA_JAX_FUZZ_EXAMPLES", "30"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=1000,  # milliseconds
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
MODEL = jax.eval_shape(lambda: Classifier(bert.Bert(bert.BertConfig()), 384, 77))

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e39, 1e-320, 1e308, -1e308, 0.99999999999, 1e-45]),
)
words = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "auto", "none", "2r", "1e-400r", "nan", "inf", "1e5", "true", "null", "\0", "=1+1", "|", "x" * 5000]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=8,
)

ODD = st.sampled_from([True, 7, 10**400, float("nan"), float("inf"), "x", "\ud800", [], [1], [[]], {}, {"a": []}]).map(
    copy.deepcopy
)


def paths(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all members of a tree of JSON, at any depth."""
    members = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in members for path in [(*prefix, key), *paths(value, (*prefix, key))]]


@st.composite
def changed(draw: Callable, tree: dict[str, Any]) -> dict[str, Any]:
    """Draws a copy of `tree` in which some members are replaced, removed or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(paths(tree) or [("new",)]))
        owner = tree
        for key in parents:
            owner = owner[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if action == "remove" and tree:
            del owner[last]
        elif action == "add" and isinstance(owner, dict):
            owner[draw(words)] = draw(ODD | values)
        else:
            owner[last] = draw(ODD | values)
    return tree


@st.composite
def damaged(draw: Callable, content: bytes) -> bytes:
    """Draws `content` with some bytes replaced, removed or added."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = draw(st.one_of(st.integers(start, min(len(content), start + 4)), st.just(len(content))))
        content = content[:start] + draw(st.binary(max_size=8)) + content[stop:]
    return content


def works_or_is_refused(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except UserError as error:
        message = str(error)
        assert message and len(message) < 10_000 and "Traceback" not in message and "pydantic" not in message
        message.encode()
        return None


# ---- settings


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("method", ["lora", "full", "bitfit"])
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
