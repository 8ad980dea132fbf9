"""Reports of runs that kept what they answered to every test example: intervals, standard errors, what is paired."""

import io
import math
import re

import numpy as np
import pytest
from helpers.made_up import figures, table, write_run
from rich.console import Console

from lora_jax.records.outcomes import Outcomes, write_outcomes
from lora_jax.report import build_report, load_rows, terminal_table
from lora_jax.report.compare import finding
from lora_jax.report.tables import headline, over_seeds
from lora_jax.statistics import compare_means

EXAMPLES = "a" * 64


def answered(both, only, other, wrong):
    """Whether each of 1,000 examples is right: for a run that has `only` right where another has not."""
    outcomes = np.repeat([True, True, False, False], [both, only, other, wrong])
    assert len(outcomes) == 1000
    return outcomes


def write_answers(root, overrides, right, *, fingerprint=EXAMPLES, **summary):
    folder = write_run(root, overrides, **figures(float(right.mean())) | summary)
    write_outcomes(folder, Outcomes(fingerprint, len(right), {"accuracy": right}))
    return folder


def pair(root, better, worse, **of_the_worse):
    """Rank 8 has `better` examples right that full fine-tuning has not, which has `worse`."""
    lora = answered(880, better, worse, 120 - better - worse)
    write_answers(root, {"rank": 8}, lora)
    full = np.concatenate([lora[:880], ~lora[880 : 880 + better + worse], lora[880 + better + worse :]])
    write_answers(root, {"method": "full"}, full, **of_the_worse)
    return lora, full


@pytest.mark.parametrize(
    "better, worse, clause",
    [
        (37, 17, "full fine-tuning reaches 0.897 test accuracy (2.0 points lower, 95% CI 0.5 to 3.5)."),
        (17, 37, "full fine-tuning reaches 0.917 test accuracy (2.0 points higher, 95% CI 0.5 to 3.5)."),
        (19, 17, "(0.2 points lower, not distinguishable: 95% CI -1.0 to 1.4)."),
        (17, 19, "(0.2 points higher, not distinguishable: 95% CI -1.0 to 1.4)."),
        (17, 17, "(the same, not distinguishable: 95% CI -1.2 to 1.2)."),
    ],
)
def test_the_finding_has_an_interval(tmp_path, better, worse, clause):
    pair(tmp_path, better, worse)
    text = finding(load_rows(tmp_path))
    assert text.endswith(clause)
    assert text in build_report(tmp_path).read_text()


@pytest.mark.parametrize("better, worse, cell", [(37, 17, "+2.0 [0.5, 3.5]"), (17, 37, "−2.0 [−3.5, −0.5]")])
def test_tables_have_the_interval_and_the_standard_error(tmp_path, better, worse, cell):
    lora, full = pair(tmp_path, better, worse)
    page = build_report(tmp_path).read_text()
    markdown = (tmp_path / "report" / "table.md").read_text()
    titles, _, *lines = (line.strip("|").split("|") for line in markdown.splitlines()[:4])
    cells = [dict(zip(titles, line, strict=True)) for line in lines]
    assert [line["vs full fine-tuning"] for line in cells] == [cell, "–"]
    assert [line["standard error"] for line in cells] == [
        f"{math.sqrt(right.mean() * (1 - right.mean()) / 1000):.3f}" for right in (lora, full)
    ]
    assert f"<td>{cell}</td>" in page
    for text in (page, markdown):
        assert "Vs full fine-tuning: the score minus that of full fine-tuning at its best learning rate" in text
    rows = table(tmp_path / "report" / "table.csv")
    expected = compare_means(lora[None], full[None])
    row = rows["rank=8"]
    assert float(row["test_se"]) == pytest.approx(math.sqrt(lora.mean() * (1 - lora.mean()) / 1000))
    assert float(row["difference"]) == pytest.approx(expected.value)
    for column, value in (("low", expected.low), ("high", expected.high), ("p", expected.p)):
        assert float(row[f"difference_{column}"]) == value
    assert row["distinguishable"] == "True"
    assert {rows["method=full"][key] for key in ("difference", "difference_low", "distinguishable")} == {""}


def test_a_cell_says_what_is_not_distinguishable(tmp_path):
    pair(tmp_path, 19, 17)
    text = headline(load_rows(tmp_path))
    assert text.lines[0][text.titles.index("vs full fine-tuning")] == "+0.2 [−1.0, 1.4] not distinguishable"
    build_report(tmp_path)
    assert table(tmp_path / "report" / "table.csv")["rank=8"]["distinguishable"] == "False"


def test_the_terminals_table_stays_narrow(tmp_path):
    pair(tmp_path, 19, 17)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(load_rows(tmp_path)))
    shown = console.export_text()
    assert "0.899" in shown and "[−1.0" not in shown and "standard error" not in shown.splitlines()[0]


@pytest.mark.parametrize("lost", ["one run's file", "other examples", "another metric"])
def test_runs_that_cannot_be_paired_are_compared_as_before(tmp_path, lost):
    pair(tmp_path, 37, 17, fingerprint="b" * 64 if lost == "other examples" else EXAMPLES)
    if lost == "one run's file":
        (tmp_path / "rank=8" / "outcomes.npz").unlink()
    if lost == "another metric":
        write_outcomes(tmp_path / "rank=8", Outcomes(EXAMPLES, 1000, {}))
    rows = load_rows(tmp_path)
    assert finding(rows).endswith("(2.0 points lower, one seed each).")
    text = headline(rows)
    assert text.lines[0][text.titles.index("vs full fine-tuning")] == "+2.0"
    build_report(tmp_path)
    row = table(tmp_path / "report" / "table.csv")["rank=8"]
    assert float(row["difference"]) == pytest.approx(0.02)
    assert {row[key] for key in ("difference_low", "difference_high", "difference_p", "distinguishable")} == {""}


def test_accuracy_of_older_runs_has_a_standard_error_and_other_metrics_have_none(tmp_path):
    write_run(tmp_path, {"rank": 8}, **figures(0.9))  # of 3,080 test examples
    write_run(tmp_path, {"rank": 4}, metric="bleu", test={"bleu": 69.0}, valid_best=None)
    build_report(tmp_path)
    rows = table(tmp_path / "report" / "table.csv")
    assert float(rows["rank=8"]["test_se"]) == pytest.approx(math.sqrt(0.09 / 3080))
    assert rows["rank=4"]["test_se"] == ""


def test_seeds_count_where_both_sides_have_several(tmp_path):
    draws = np.random.default_rng(0)
    sides = {"lora": draws.random((3, 1000)) < 0.9, "full": draws.random((2, 1000)) < 0.88}
    for method, runs in sides.items():
        for seed, right in enumerate(runs):
            write_answers(tmp_path, {"method": method, "rank": 8, "seed": seed}, right)
    rows, expected = load_rows(tmp_path), compare_means(sides["lora"], sides["full"])
    assert expected.kind == "examples and seeds"
    interval = f"95% CI {100 * expected.low:.1f} to {100 * expected.high:.1f})."
    assert finding(rows).endswith(interval) and "(mean of 2 seeds; " in finding(rows)
    text = over_seeds(rows)
    cells = [line[text.titles.index("vs full fine-tuning")] for line in text.lines]
    assert cells[0].startswith(f"+{100 * expected.value:.1f} [") and cells[1] == "–"
    assert "and over seeds where both have several" in text.caption


def test_the_baseline_is_that_of_the_best_learning_rate_and_of_the_same_axes(tmp_path):
    for steps, base in ((100, 0.6), (300, 0.8)):
        write_run(tmp_path, {"rank": 8, "steps": steps}, **figures(base + 0.1, 0.9))
        for lr, valid, test in ((1e-5, 0.5, 0.9), (1e-4, 0.6, base)):
            write_run(tmp_path, {"method": "full", "steps": steps, "lr": lr}, **figures(test, valid))
    build_report(tmp_path)
    rows = table(tmp_path / "report" / "table.csv")
    assert float(rows["rank=8,steps=100"]["difference"]) == pytest.approx(0.1)
    assert float(rows["rank=8,steps=300"]["difference"]) == pytest.approx(0.1)
    assert rows["lr=0.0001,method=full,steps=300"]["difference"] == ""
    assert "full fine-tuning reaches 0." in finding(load_rows(tmp_path))


def test_a_baseline_alone_and_runs_without_one_have_no_column(tmp_path):
    write_run(tmp_path / "a", {"method": "full"})
    write_run(tmp_path / "b", {"rank": 8})
    for name in "ab":
        assert "vs full fine-tuning" not in headline(load_rows(tmp_path / name)).titles


def write_predictions(root, overrides, wrong, recorded):
    """A run with `wrong` of 500 examples of each of two classes wrong: Matthews' correlation is 1 - wrong / 250."""
    labels = np.arange(1000, dtype=np.int32) % 2
    predicted = labels.copy()
    predicted[: 2 * wrong] ^= 1
    folder = write_run(root, overrides, metric="matthews", test={"matthews": recorded}, valid_best=None)
    write_outcomes(folder, Outcomes(EXAMPLES, 1000, {}, labels, predicted, 2))


def test_a_metric_of_all_examples_is_computed_again_from_what_was_predicted(tmp_path):
    """Runs differ in 100 examples of 1,000: the accuracy's difference has the error sqrt((0.1 - 0.1²) / 1000)."""
    write_predictions(tmp_path, {"rank": 8}, 50, 0.8)
    write_predictions(tmp_path, {"method": "full"}, 100, 0.6)
    rows = load_rows(tmp_path)
    found = re.search(r"\(20\.0 points lower, 95% CI (\d\d\.\d) to (\d\d\.\d)\)\.$", finding(rows))
    half = 100 * 1.96 * 2 * math.sqrt(0.09 / 1000)
    assert [float(end) for end in found.groups()] == pytest.approx([20 - half, 20 + half], abs=0.4)
    text = headline(rows)
    assert float(text.lines[0][text.titles.index("standard error")]) == pytest.approx(0.019, abs=0.001)


def test_a_metric_that_was_recorded_by_another_definition_has_no_interval(tmp_path):
    write_predictions(tmp_path, {"rank": 8}, 50, 0.7)
    write_predictions(tmp_path, {"method": "full"}, 100, 0.6)
    assert finding(load_rows(tmp_path)).endswith("(10.0 points lower, one seed each).")


@pytest.mark.parametrize(
    "content, why",
    [
        (b"no archive", "outcomes.npz is damaged"),
        (None, "outcomes.npz is of another run than summary.json: its accuracy is 0.917, the other's is 0.5"),
    ],
)
def test_outcomes_that_are_damaged_or_of_another_run_make_a_run_unreadable(tmp_path, content, why):
    pair(tmp_path, 37, 17)
    if content is None:
        folder = write_run(tmp_path, {"rank": 4}, **figures(0.5))
        (folder / "outcomes.npz").write_bytes((tmp_path / "rank=8" / "outcomes.npz").read_bytes())
    else:
        folder = write_answers(tmp_path, {"rank": 4}, np.arange(1000) < 500)
        (folder / "outcomes.npz").write_bytes(content)
    rows = {row.name: row for row in load_rows(tmp_path)}
    assert (rows["rank=4"].status, rows["rank=8"].status) == ("unreadable", "finished")
    assert rows["rank=4"].error.startswith(why)
    assert why in (build_report(tmp_path).parent / "table.md").read_text()
