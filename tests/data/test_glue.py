"""The tasks of GLUE from files in its format, a few records made for this test."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import CommandLine, read, records
from helpers.glue_files import Record, write_glue
from hydra import compose, initialize_config_dir

from lora_jax.commands.composition import CONF
from lora_jax.data.bounded import LARGEST
from lora_jax.data.held_out import AT_MOST, cut_validation
from lora_jax.data.tasks import TASKS, load_task
from lora_jax.data.tasks.glue import GLUE
from lora_jax.data.tasks.glue.table import TABLE
from lora_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("private_cache")

# In the order of Hugging Face's `datasets`.
CLASSES = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
    "qnli": ("entailment", "not_entailment"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "mnli_mismatched": ("entailment", "neutral", "contradiction"),
    "qqp": ("not_duplicate", "duplicate"),
    "stsb": (),
}
SINGLE = ("cola", "sst2")
WORDS = {"rte": CLASSES["rte"], "qnli": CLASSES["qnli"], "mnli": CLASSES["mnli"], "mnli_mismatched": CLASSES["mnli"]}
SCORES = ("1.250", "0.800", "4.600")  # nearest to 1, 1 and 5
ARCHIVES = {row.name: (row.archive, [raw.name for raw in row.files]) for row in TABLE if row.archive}


def raw_labels(task: str) -> tuple[str, ...]:
    """Returns the values of the label's column, in the order of classes."""
    return SCORES if task == "stsb" else WORDS.get(task, ("0", "1"))


def made_up(task: str, prefix: str, n: int) -> list[Record]:
    """Returns n records of `task`, with every label in turn. Quotes are letters like any other."""
    labels = raw_labels(task)
    texts = [(f'{prefix} "{i}  A.', f'The " {prefix} B{i} ')[: 1 if task in SINGLE else 2] for i in range(n)]
    return [(*text, labels[i % len(labels)]) for i, text in enumerate(texts)]


@pytest.fixture
def write(tmp_path):
    """Writes the files of a task: 60 training records and 10 of the development set."""

    def write(task: str, folder: str = "raw") -> Path:
        return write_glue(task, tmp_path / folder, made_up(task, "dog", 60), made_up(task, "cat", 10))

    return write


def test_glue_has_these_tasks():
    assert set(GLUE) == set(CLASSES)


@pytest.mark.parametrize("task", CLASSES)
def test_the_development_set_is_the_test_split_and_a_tenth_of_each_class_validates(write, task):
    data = load_task(task, write(task))
    assert data.labels == CLASSES[task]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 54, "valid": 6, "test": 10}
    expected = made_up(task, "cat", 10)
    test = data.splits["test"]
    columns = [test.texts, *([] if task in SINGLE else [test.pairs])]
    assert (test.pairs is None) == (task in SINGLE)
    values = [float(raw) if task == "stsb" else raw_labels(task).index(raw) for *_, raw in expected]
    rows = list(zip(*columns, np.asarray(test.labels).tolist(), strict=True))
    wanted = [(*texts, float(np.float32(value))) for (*texts, _), value in zip(expected, values, strict=True)]
    # TFDS shuffles CoLA's splits. All others are in the order of the files.
    assert sorted(rows) == sorted(wanted) if task == "cola" else rows == wanted
    valid, train = data.splits["valid"], data.splits["train"]
    assert not set(valid.texts) & set(train.texts)
    if task == "stsb":
        assert test.labels.dtype == np.float32
    else:
        assert len(set(np.bincount(valid.labels))) == 1


@pytest.mark.parametrize("task", [task for task in CLASSES if task != "cola"])
def test_the_rest_of_the_training_set_stays_in_order(write, task):
    data = load_task(task, write(task))
    order = [texts[0] for texts in made_up(task, "dog", 60)]
    for name in ("train", "valid"):
        places = [order.index(text) for text in data.splits[name].texts]
        assert places == sorted(places)


@pytest.mark.parametrize("task", ARCHIVES)
def test_glues_zip_file_is_read_too(write, tmp_path, task):
    archive, names = ARCHIVES[task]
    folder = write(task)
    other = tmp_path / "other"
    other.mkdir()
    with zipfile.ZipFile(other / archive, "w") as zipped:
        for name in names:
            zipped.write(folder / name, f"{folder.name}/{name}")
            zipped.writestr(f"__MACOSX/{folder.name}/._{name}", "x")
        zipped.writestr(f"{folder.name}/original/notes.txt", "x")
    assert load_task(task, other).fingerprint == load_task(task, folder).fingerprint


@pytest.mark.parametrize("task", CLASSES)
def test_the_settings_of_each_task_name_it(task):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("run", [f"task={task}"])
    assert config.task.name == task and 0 < config.task.steps <= 3000


def test_mrpc_is_split_by_its_pairs_of_ids(write):
    folder = write("mrpc")
    data = load_task("mrpc", folder)
    assert {text.split()[0] for text in data.splits["test"].texts} == {"cat"}
    (folder / "dev_ids.tsv").write_text("100\t900\n100\t901\n")
    with pytest.raises(
        UserError, match=r"dev_ids\.tsv, line 2: #1 ID='100'; expected with #2 ID the ids of a pair in msr_paraphrase"
    ):
        load_task("mrpc", folder)


def test_rows_of_qqp_that_fell_apart_are_left_out_and_empty_questions_kept(tmp_path, caplog):
    train = made_up("qqp", "dog", 20)
    folder = write_glue("qqp", tmp_path / "raw", [*train, ("How?", "", "0")], [("Why?", "", "0"), ("When?", "", "1")])
    with (folder / "train.tsv").open("a") as file:
        file.write('99\t198\t199\tA question with a "\n"\tWas it?\t0\n')
    data = load_task("qqp", folder)
    assert len(data.splits["train"]) + len(data.splits["valid"]) == 21
    assert data.splits["test"].pairs == ["", ""]
    assert "train.tsv: 2 rows have fewer than 6 columns, and are left out" in caplog.text


@pytest.mark.parametrize(
    ("task", "file", "line", "complaint"),
    [
        ("cola", "dev.tsv", "gj04\t2\t\tA label that is none.", r"line 11: label='2'; expected 0 or 1"),
        ("cola", "train.tsv", "gj04\t1\t\t ", r"line 61: sentence=' '; expected a text"),
        ("sst2", "dev.tsv", "a film\tgood", r"line 12: label='good'; expected 0 or 1"),
        ("sst2", "train.tsv", "a film", r"line 62: 1 columns, 'a film'; expected 2: sentence, label"),
        ("stsb", "train.tsv", "9\tn\tM\t2\t0\tx\tx\ta\tb\t5.1", r"line 62: score='5\.1'; expected a score from 0 to 5"),
        ("stsb", "dev.tsv", "9\tn\tM\t2\t0\tx\tx\ta\tb\t-0.1", r"line 12: score='-0\.1'; expected a score from 0 to 5"),
        ("stsb", "dev.tsv", "9\tn\tM\t2\t0\tx\tx\ta\tb\tnan", r"line 12: score='nan'; expected a finite number"),
        ("rte", "dev.tsv", "9\ta\tb\tneutral", r"line 12: label='neutral'; expected entailment or not_entailment"),
        ("wnli", "dev.tsv", "9\ta\t\t1", r"line 12: sentence2=''; expected a text"),
        ("qnli", "train.tsv", "9\ta\tb\tc\tentailment", r"line 62: 5 columns, .*; expected 4: index, question"),
        ("mnli", "dev_matched.tsv", "\t".join("x" * 8 + "ab" + "nnnnn-"), r"line 12: gold_label='-'; expected entail"),
        ("mrpc", "msr_paraphrase_train.txt", "2\t1\t2\ta\tb", r"line 72: Quality='2'; expected 0 or 1"),
        ("mrpc", "dev_ids.tsv", "1", r"line 11: 1 columns, '1'; expected 2: #1 ID, #2 ID"),
        ("qqp", "train.tsv", "9\t1\t2\ta\tb\tyes", r"line 62: is_duplicate='yes'; expected 0 or 1"),
    ],
)
def test_a_malformed_line_is_named(write, task, file, line, complaint):
    folder = write(task)
    with (folder / file).open("a") as raw:
        raw.write(f"{line}\n")
    with pytest.raises(UserError, match=rf"{file}, {complaint}"):
        load_task(task, folder)


@pytest.mark.parametrize("row", [row for row in TABLE if not row.columns], ids=lambda row: row.name)
def test_a_header_without_a_column_is_refused(write, row):
    folder = write(row.name)
    header, _, rest = (folder / row.train).read_text(encoding="utf-8").partition("\n")
    (folder / row.train).write_text(f"{header.replace(row.label, 'other')}\n{rest}", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{row.train}, line 1: the header .* has no column {row.label}; expected"):
        load_task(row.name, folder)


@pytest.mark.parametrize(
    ("task", "complaint"), [("rte", rf"has {LARGEST + 1} bytes; expected at most {LARGEST}"), ("qqp", "has a NUL")]
)
def test_only_large_data_sets_have_files_beyond_the_usual_size(write, task, complaint):
    folder = write(task)
    with (folder / "train.tsv").open("r+b") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match=rf"train\.tsv.* {complaint}"):
        load_task(task, folder)


def test_pairs_that_differ_in_case_or_spacing_fall_on_the_same_side():
    rows = [(text, f"Answer {i}", "yes") for i in range(100) for text in (f"Why {i}?", f"why  {i}? ")]
    train, valid = cut_validation(rows)
    assert len(train) == 180 and len(valid) == 20
    assert {answer for _, answer, _ in train}.isdisjoint(answer for _, answer, _ in valid)


def test_a_validation_split_has_at_most_2000_rows_and_keeps_the_shares_of_the_classes():
    texts = [i // 2 if i < 9000 else i for i in range(30_000)]
    rows = [(f"text {text}", "no" if text % 3 else "yes") for text in texts]
    train, valid = cut_validation(rows)
    assert len(train) + len(valid) == len(rows)
    assert AT_MOST - 20 <= len(valid) <= AT_MOST
    assert np.mean([label == "yes" for _, label in valid]) == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.slow
def test_matthews_correlation_selects_and_heads_the_table(command: CommandLine, tmp_path):
    train = [(f"A {i} dog sleeps." if i % 2 else f"Sleeps {i} a dog the.", str(i % 2)) for i in range(200)]
    folder = write_glue("cola", tmp_path / "raw", train, train[:10])
    assert TASKS["cola"].select == TASKS["cola"].metric == "matthews"
    done = command.sweep(tmp_path / "sweep", "task=cola", f"task.data_dir={folder}", "rank=2", "baseline=none")
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    summary = read(run / "summary.json")
    assert (summary["metric"], summary["select"]) == ("matthews", "matthews")
    assert set(summary["test"]) == {"matthews", "accuracy", "loss"}
    scored = [record for record in records(run) if "valid/matthews" in record]
    assert scored and all(-1 <= record["valid/matthews"] <= 1 for record in scored)
    assert "test matthews" in done.stdout or "test Matthews" in done.stdout, json.dumps(done.stdout)
