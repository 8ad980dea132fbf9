"""The report of sweeps made up by formula, so that every number in it is known."""

import csv
import html.parser
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.made_up import BASE, accuracy, figures, run_record, table, write_run
from matplotlib.image import imread
from rich.console import Console

from lora_jax.errors import UserError
from lora_jax.records import Axes, MetricsRecord
from lora_jax.report import build_report, load_rows, terminal_table
from lora_jax.report.charts.style import Colours
from lora_jax.report.compare import at_best_lr, configurations, finding, labels
from lora_jax.report.tables import duration, headline, over_seeds, parameters, raw_csv, size
from lora_jax.tracking import Tracker


class Links(html.parser.HTMLParser):
    """The tags of a page, and all that it points to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.targets = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.targets += [value for key, value in attributes if key in ("src", "href")]


@pytest.fixture
def sweep(tmp_path):
    """Ranks 4 to 32 and full fine-tuning, and folders that are no runs."""
    root = tmp_path / "sweep"
    for rank in (32, 8, 16, 4):
        write_run(root, {"rank": rank})
    write_run(root, {"method": "full"})
    (root / ".hydra").mkdir()
    (root / "checkpoints" / "rank=99").mkdir(parents=True)
    (root / "checkpoints" / "rank=99" / "run.json").write_text("{}")
    (root / "no run").mkdir()
    return root


def test_rows_are_sorted_and_only_runs(sweep):
    build_report(sweep)
    assert [row.name for row in load_rows(sweep)] == ["rank=4", "rank=8", "rank=16", "rank=32", "method=full"]


def test_a_report_needs_no_jax_and_draws_with_matplotlib_only_when_built(sweep):
    script = (
        "import sys; from pathlib import Path\n"
        "import lora_jax.analysis.stopping; from lora_jax.report import build_report, load_rows, terminal_table\n"
        "terminal_table(load_rows(Path(sys.argv[1]))); assert 'matplotlib' not in sys.modules\n"
        "build_report(Path(sys.argv[1])); assert not {'jax', 'wandb', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(sweep)], check=True)


def test_csv_has_every_number_as_it_is(sweep):
    build_report(sweep)
    rows = table(sweep / "report" / "table.csv")
    for rank in (4, 8, 16, 32):
        row = rows[f"rank={rank}"]
        assert float(row["test/accuracy"]) == accuracy(rank)
        assert float(row["valid_best/accuracy"]) == accuracy(rank) + 0.01
        assert int(row["trainable"]) == 45_120 * rank + 29_645
        assert float(row["trainable_share"]) == (45_120 * rank + 29_645) / BASE
        assert (float(row["alpha"]), row["targets"], float(row["lr"]), row["seed"]) == (16.0, "all", 3e-3, "0")
    assert rows["method=full"]["rank"] == "" and float(rows["method=full"]["test/accuracy"]) == accuracy(None)


def test_tables_for_people_are_rounded_and_name_what_is_shared_once(sweep):
    page = build_report(sweep).read_text()
    markdown = (sweep / "report" / "table.md").read_text()
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(load_rows(sweep)))
    terminal = console.export_text()
    for text in (page, markdown, terminal):
        assert "391k" in text and "0.830" in text and "1.72%" in text and "45.1 MiB" in text
        assert "seed 0" in text
    titles = markdown.splitlines()[0].strip("|").split("|")
    assert "seed" not in titles and {"rank", "alpha", "targets", "learning rate", "test accuracy"} <= set(titles)
    lines = [line.strip("|").split("|") for line in markdown.splitlines()[2:7]]
    scores = {line[0]: line[titles.index("test accuracy")] for line in lines}
    expected = {f"rank={rank}": f"{accuracy(rank):.3f}" for rank in (4, 8, 16, 32)}
    assert scores == expected | {"method=full": f"{accuracy(None):.3f}"}


def test_page_needs_nothing_but_itself(sweep):
    page = build_report(sweep).read_text()
    links = Links(page)
    assert all(target.startswith("data:") or target in ("table.csv", "table.md") for target in links.targets)
    assert "script" not in links.tags and "link" in links.tags and "@import" not in page and "url(" not in page
    assert links.tags.count("img") == len(list((sweep / "report").glob("*.png"))) == 4
    for text in ("prefers-color-scheme", "abc123", "f00d", "beef", "a CPU", "jax 0.10.2", "experiments.sweep"):
        assert text in page


def test_figures_are_drawn(sweep):
    build_report(sweep)
    for path in (sweep / "report").glob("*.png"):
        image = imread(path)
        assert image.shape[1] > 1000 and image[..., :3].std() > 0.05


def test_building_again_changes_nothing(sweep):
    def content():
        build_report(sweep)
        return {path.name: path.read_bytes() for path in (sweep / "report").iterdir()}

    first = content()
    assert content() == first
    (sweep / "report" / "old.png").write_bytes(b"")
    assert content() == first


def test_what_comes_from_files_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    write_run(tmp_path, {"rank": 8}, name=evil, task=evil, targets=evil, config={"note": evil, evil: 1})
    write_run(tmp_path, {"rank": 4}, status="failed", error=f"{evil} [bold]|x|", task=evil, config={"note": "b"})
    page = build_report(tmp_path).read_text()
    assert "script" not in Links(page).tags and "&lt;script&gt;" in page
    assert "<script" not in (tmp_path / "report" / "table.md").read_text()
    Console(file=io.StringIO()).print(terminal_table(load_rows(tmp_path)))


def test_unfinished_runs_are_rows(tmp_path):
    write_run(tmp_path, {"rank": 4}, status="diverged")
    write_run(tmp_path, {"rank": 8}, status="failed", error="out of memory: " + "x" * 500)
    write_run(tmp_path, {"rank": 16}, status=None)
    run = run_record("rank=32", axes=Axes(method="lora", method_title="LoRA", trains_base=False, rank=32))
    with Tracker(tmp_path / "rank=32", run, group="g") as tracker:
        tracker.log(MetricsRecord(step=7, tokens=700, **{"train/loss": 2.0}))
        rows = {row.name: row for row in load_rows(tmp_path)}
        page = build_report(tmp_path).read_text()
    assert [rows[f"rank={rank}"].status for rank in (4, 8, 16, 32)] == ["diverged", "failed", "interrupted", "running"]
    assert (rows["rank=16"].rank, rows["rank=16"].lr, rows["rank=32"].rank) == (16, 3e-3, 32)
    assert (rows["rank=32"].steps, rows["rank=32"].tokens) == (7, 700)
    assert "loss is not finite" in page and "out of memory" in page and "only training curves" in page
    assert [path.name for path in (tmp_path / "report").glob("*.png")] == ["training-loss.png"]
    assert table(tmp_path / "report" / "table.csv")["rank=8"]["error"] == "out of memory: " + "x" * 500


def test_a_sweep_that_logged_nothing_has_no_charts(tmp_path):
    write_run(tmp_path, {"rank": 4}, status="failed", records=0)
    page = build_report(tmp_path).read_text()
    assert "nothing to draw" in page and "img" not in Links(page).tags


def test_seeds_are_aggregated_as_numpy_does(tmp_path):
    scores = {4: [0.81, 0.83, 0.86], 8: [0.84, 0.85]}
    for rank, values in scores.items():
        for seed, value in enumerate(values):
            test = {"accuracy": value, "loss": 1 - value}
            write_run(tmp_path, {"rank": rank, "seed": seed}, test=test)
    write_run(tmp_path, {"rank": 8, "seed": 2}, status="diverged")
    rows = load_rows(tmp_path)
    for configuration in configurations(rows):
        values = scores[configuration.row.rank]
        assert configuration.mean(lambda row: row.score("test")) == pytest.approx(np.mean(values))
        assert configuration.std(lambda row: row.score("test")) == pytest.approx(np.std(values, ddof=1))
    aggregated = over_seeds(rows)
    column = aggregated.titles.index("test accuracy")
    assert [line[column] for line in aggregated.lines] == [
        f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" for values in scores.values()
    ]
    assert [line[-1] for line in aggregated.lines] == ["3", "2 (1 not finished)"]
    assert "Over seeds" in build_report(tmp_path).read_text()


def test_initial_seeds_are_seeds(tmp_path):
    for init_seed in (0, 1, 2):
        write_run(tmp_path, {"rank": 4, "init_seed": init_seed})
    rows = load_rows(tmp_path)
    assert [len(configuration.rows) for configuration in configurations(rows)] == [3]
    table = headline(rows)
    assert [line[table.titles.index("init seed")] for line in table.lines] == ["0", "1", "2"]
    assert [line["init_seed"] for line in csv.DictReader(raw_csv(rows).splitlines())] == ["0", "1", "2"]


def test_best_learning_rate_is_chosen_on_validation(tmp_path):
    """At rank 4, test alone would choose 1e-2, one lucky survivor 3e-2; validation over both seeds says 1e-3."""
    for lr, valid, test in ((1e-3, 0.9, 0.80), (1e-2, 0.85, 0.88), (3e-2, 0.99, 0.99)):
        for seed in (0, 1):
            lost = lr == 3e-2 and seed == 1
            figures = {} if lost else {"test": {"accuracy": test}, "valid_best": {"accuracy": valid + 0.001 * seed}}
            write_run(
                tmp_path, {"rank": 4, "lr": lr, "seed": seed}, status="diverged" if lost else "finished", **figures
            )
    write_run(tmp_path, {"method": "full", "lr": 1e-5}, valid_best=None, test={"accuracy": 0.7})
    write_run(tmp_path, {"method": "full", "lr": 1e-4}, valid_best=None, test={"accuracy": 0.75})
    rows = load_rows(tmp_path)
    assert {best.row.method: best.row.lr for best in at_best_lr(rows)} == {"lora": 1e-3, "full": 1e-4}
    assert "at learning rate 0.001 reaches 0.800" in finding(rows)
    page = build_report(tmp_path).read_text()
    assert "own best learning rate, by mean validation accuracy" in page
    assert (tmp_path / "report" / "quality-by-lr.png").exists()


def test_methods_of_one_rank_have_colours_of_their_own(tmp_path):
    for method, title in (("lora", "LoRA"), ("vera", "VeRA")):
        write_run(tmp_path, {"method": method, "rank": 8}, method_title=title)
    rows = load_rows(tmp_path)
    colours = Colours(rows)
    assert [text for text, _ in colours.entries()] == ["LoRA", "VeRA"]
    assert len({colours.of(row) for row in rows}) == 2


def test_the_lower_loss_is_chosen(tmp_path):
    """Where texts are generated, runs are chosen by validation loss and compared by test BLEU."""
    for lr, loss, score in ((1e-3, 1.1, 60.0), (1e-2, 1.3, 66.0)):
        results = {
            "metric": "bleu",
            "select": "loss",
            "test": {"bleu": score, "loss": 1.2},
            "valid_best": {"loss": loss},
        }
        write_run(tmp_path, {"rank": 4, "lr": lr}, **results)
        write_run(tmp_path, {"rank": 8, "lr": lr}, **results)
    rows = load_rows(tmp_path)
    assert {best.row.lr for best in at_best_lr(rows)} == {1e-3}
    assert "at learning rate 0.001 reaches 60.00 test bleu" in finding(rows)
    assert "own best learning rate, by mean validation loss" in build_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (
            [
                ({"rank": 4}, figures(0.85, 0.8)),
                ({"rank": 8}, figures(0.84, 0.9)),
                ({"method": "full"}, figures(0.848)),
            ],
            "Best on validation: rank 8 (targets all) reaches 0.840 test accuracy with 1.72% of the parameters "
            "trained; full fine-tuning reaches 0.848 test accuracy (0.8 points higher, one seed each).",
        ),
        (
            [({"rank": 4}, figures(0.85)), ({"rank": 8}, figures(0.84)), ({"method": "full"}, figures(0.83))],
            "Best: rank 4 (targets all) reaches 0.850 test accuracy with 0.925% of the parameters trained; "
            "full fine-tuning reaches 0.830 test accuracy (2.0 points lower, one seed each).",
        ),
        (
            [({"rank": 8}, figures(0.5)), ({"rank": 4}, figures(0.5)), ({"method": "full"}, figures(0.5))],
            "Best: rank 4 (targets all) reaches 0.500 test accuracy with 0.925% of the parameters trained (tied with "
            "rank 8 (targets all); fewest parameters named first); full fine-tuning reaches 0.500 test accuracy "
            "(the same).",
        ),
        (
            [({"rank": 8}, figures(0.5))],
            "Rank 8 (targets all) reaches 0.500 test accuracy with 1.72% of the parameters trained; "
            "there is no full fine-tuning to compare it with.",
        ),
        (
            [({"rank": 8}, figures(0.5)), ({"method": "full"}, {"status": "diverged"})],
            "Rank 8 (targets all) reaches 0.500 test accuracy with 1.72% of the parameters trained; "
            "full fine-tuning has not finished, so there is nothing to compare it with. Not finished: 1 diverged.",
        ),
        ([({"method": "full"}, figures(0.5))], "Only full fine-tuning has finished: it reaches 0.500 test accuracy."),
        (
            [({"rank": 8}, {"status": "failed"}), ({"rank": 4}, {"status": "failed"}), ({"rank": 2}, {"status": None})],
            "No run has finished: 2 failed, 1 interrupted.",
        ),
        (
            [({"rank": 8}, {"test": None, "valid_best": None})],
            "The finished runs have no test and no validation figure, so there is nothing to compare.",
        ),
        (
            [({"rank": 8}, {"test": None, "valid_best": {"accuracy": 0.9}})],
            "Rank 8 (targets all) reaches 0.900 best validation accuracy with 1.72% of the parameters trained; "
            "there is no full fine-tuning to compare it with.",
        ),
        (
            [
                ({"rank": 8}, {"metric": "bleu", "test": {"bleu": 69.57}, "valid_best": None}),
                ({"method": "full"}, {"metric": "bleu", "test": {"bleu": 68.2}, "valid_best": None}),
            ],
            "Rank 8 (targets all) reaches 69.57 test bleu with 1.72% of the parameters trained; "
            "full fine-tuning reaches 68.20 test bleu (1.4 points lower, one seed each).",
        ),
    ],
)
def test_finding(tmp_path, runs, sentence):
    for overrides, summary in runs:
        write_run(tmp_path, overrides, **summary)
    assert finding(load_rows(tmp_path)) == sentence
    assert html.unescape(sentence) in html.unescape(build_report(tmp_path).read_text())


def test_finding_weighs_the_spread_of_seeds(tmp_path):
    for seed, (lora, full) in enumerate(((0.80, 0.86), (0.86, 0.81))):
        write_run(tmp_path, {"rank": 8, "seed": seed}, **figures(lora))
        write_run(tmp_path, {"method": "full", "seed": seed}, **figures(full))
    assert finding(load_rows(tmp_path)).endswith(
        "(mean of 2 seeds; 0.5 points higher, within the spread of the seeds)."
    )


def test_several_tasks_are_not_mixed(tmp_path):
    for task, score in (("cola", 0.6), ("sst2", 0.9)):
        write_run(tmp_path, {"task": task, "rank": 8}, task=task, **figures(score))
        write_run(tmp_path, {"task": task, "rank": 4}, task=task, **figures(score - 0.1))
    text = finding(load_rows(tmp_path))
    assert re.search(r"minilm · cola: Best: rank 8 .* 0\.600 .* minilm · sst2: Best: rank 8 .* 0\.900", text)
    build_report(tmp_path)
    assert len(list((tmp_path / "report").glob("quality-by-rank-*.png"))) == 2


def test_other_axes_are_columns_and_tell_configurations_apart(tmp_path):
    for dropout, score in ((0.0, 0.8), (0.1, 0.9)):
        for rank in (4, 8):
            write_run(tmp_path, {"rank": rank, "dropout": dropout}, **figures(score))
    assert "rank 4 (targets all) dropout=0.1 reaches 0.900" in finding(load_rows(tmp_path))
    build_report(tmp_path)
    assert table(tmp_path / "report" / "table.csv")["dropout=0.1,rank=4"]["dropout"] == "0.1"


@pytest.mark.parametrize("count", [1, 12, 40])
def test_any_number_of_runs(tmp_path, count):
    for index in range(count):
        write_run(tmp_path, {"rank": 2 ** (index % 4), "seed": index // 4})
    assert build_report(tmp_path).exists()


def test_a_folder_without_runs_is_an_error_that_says_what_is_expected(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*Expected a sweep.*run\.json.*summary\.json"):
            build_report(path)
    assert not (tmp_path / "report").exists()


def test_numbers_have_readable_units():
    assert [parameters(n) for n in (7, 391_000, 999_900, 1_240_000, 8.03e9)] == ["7", "391k", "1M", "1.24M", "8.03B"]
    assert [size(n) for n in (12, 1447000, 45.1 * 2**20, 3 * 2**30)] == ["12 B", "1.4 MiB", "45.1 MiB", "3.0 GiB"]
    assert [duration(s) for s in (9.4, 200, 7500)] == ["9.4 s", "3 min 20 s", "2 h 5 min"]


def test_methods_without_a_rank_and_alpha_that_follows_rank(tmp_path):
    for rank in (4, 8, 16):
        write_run(tmp_path, {"rank": rank}, alpha=2.0 * rank)
    for method in ("bitfit", "full"):
        write_run(tmp_path, {"method": method}, rank=None, alpha=None, targets=None)
    rows = load_rows(tmp_path)
    assert [row.method for row in rows] == ["lora", "lora", "lora", "bitfit", "full"]
    assert build_report(tmp_path).exists() and "rank 16 (targets all) reaches" in finding(rows)


def test_labels_name_the_method_where_several_have_ranks(tmp_path):
    write_run(tmp_path, {"rank": 4})
    write_run(tmp_path, {"rank": 4, "method": "dora"})
    write_run(tmp_path, {"method": "full"})
    rows = load_rows(tmp_path)
    assert labels(configurations(rows), rows) == ["dora rank 4", "LoRA rank 4", "full fine-tuning"]
    one_method = [row for row in rows if row.method != "dora"]
    assert labels(configurations(one_method), one_method) == ["rank 4", "full fine-tuning"]


def test_an_axis_named_like_a_figure_has_its_own_column(tmp_path):
    for steps in (100, 300):
        write_run(tmp_path, {"rank": 4, "steps": steps}, steps=steps)
    build_report(tmp_path)
    header = (tmp_path / "report/table.csv").read_text().splitlines()[0].split(",")
    assert header.count("steps") == 2
