"""Tables from made-up results: figures, differences, verdicts, files; and the committed tables from their records."""

import csv
import io
import shutil
from pathlib import Path

import pytest
from helpers.paper_results import recipe, train_all

from lora_jax.commands.table import RECIPES, run
from lora_jax.paper.figure import draw
from lora_jax.paper.latex import latex
from lora_jax.paper.markdown import markdown
from lora_jax.paper.protocol import Protocol
from lora_jax.paper.results import CommandRecord, RunResult
from lora_jax.paper.spreadsheet import spreadsheet
from lora_jax.paper.table import build_table
from lora_jax.records import read_lines, write_lines

COMMITTED = Path(__file__).parents[2] / "results/paper"
PROTOCOL = Protocol(recipe())
PAPER = {"MNLI": 87.5, "RTE": 86.6}  # of LoRA on RoBERTa base


def scores(**by_seed):
    """Returns what a run scored on the test split: LoRA by its seed, full fine-tuning 0.8."""

    def score(run):
        if run.stage == "tune":
            return {}
        return {"test": {"accuracy": by_seed[run.task][run.seed - 1] if run.row == "LoRA" else 0.8}}

    return score


def built(protocol=PROTOCOL, mnli=(0.871, 0.873, 0.9), rte=(0.8, 0.85, 0.851), **changes):
    results = train_all(protocol, scores(mnli=mnli, rte=rte))
    results = {name: result.replace(**changes) for name, result in results.items()}
    return build_table("a", protocol, results, [])


def lora(table):
    return next(line for line in table.lines if line.row.name == "LoRA")


def test_a_figure_within_the_tolerance_is_reproduced():
    line = lora(built())
    mnli, rte = line.cells["MNLI"], line.cells["RTE"]
    assert mnli.ours.value == pytest.approx(87.3) and mnli.ours.seeds == 3
    assert mnli.difference == pytest.approx(87.3 - PAPER["MNLI"]) and mnli.verdict == "reproduced"
    assert rte.difference == pytest.approx(85 - PAPER["RTE"]) and rte.verdict == "not reproduced"
    assert line.verdict == "not reproduced" and line.trainable == 100
    assert lora(built(mnli=(0.87, 0.87, 0.869), rte=(0.86, 0.86, 0.86))).verdict == "reproduced"


def test_what_is_not_the_papers_is_an_analogue():
    for table in (
        built(Protocol(recipe(analogue="another model"))),
        built(base_parameters=999),
        built(other_settings=("steps=10",)),
        built(Protocol(recipe(), scale="smoke")),
    ):
        assert table.analogue and lora(table).verdict == "analogue"
        assert markdown(table).splitlines()[2].startswith("**Analogue")
    assert "base has 999 parameters, not 1,000" in built(base_parameters=999).analogue[0]
    assert "steps=10" in built(other_settings=("steps=10",)).analogue[0]
    assert not built().analogue


def test_differences_are_to_full_fine_tuning_of_the_same_base():
    gap = lora(built()).gaps["MNLI"]
    assert gap.ours.value == pytest.approx(7.3) and gap.ours.spread == pytest.approx(1.6197, abs=1e-3)
    assert gap.paper == pytest.approx(87.5 - 87.6)
    assert not next(line for line in built().lines if line.row.name == "full").gaps


def test_the_average_is_over_the_columns_of_the_table():
    line = lora(built(Protocol(recipe(average=True))))
    assert line.cells["Avg"].ours.value == pytest.approx((87.3 + 85) / 2)
    assert line.cells["Avg"].paper.value == pytest.approx((87.5 + 86.6) / 2)  # not the paper's 87.2, of eight tasks


def test_failed_runs_are_named_and_have_no_figure():
    results = train_all(PROTOCOL, scores(mnli=(0.87,) * 3, rte=(0.8,) * 3))
    failed = "train/mnli/lora/seed=3"
    results[failed] = results[failed].replace(status="diverged", test={})
    table = build_table("a", PROTOCOL, results, [])
    assert lora(table).cells["MNLI"].ours.seeds == 2
    assert f"- {failed}: diverged" in markdown(table)


def test_missing_runs_are_counted():
    results = {name: r for name, r in train_all(PROTOCOL).items() if "rte" not in name or r.row == "full"}
    table = build_table("a", PROTOCOL, results, [])
    assert lora(table).cells["RTE"].verdict == "not run"
    assert "**Not complete: 3 runs are missing.**" in markdown(table)


def test_markdown_has_our_rows_and_all_of_the_papers():
    text = markdown(built())
    assert "|**LoRA**|100|87.3 ± 1.6|85.0 ± 2.9|not reproduced|" in text
    assert "|paper: RoBERTa base LoRA 0.3M|0.3M|87.5 ± 0.3|86.6 ± 0.7||" in text
    assert "|difference||-0.2 (reproduced)|-1.6 (not reproduced)||" in text
    assert "RoBERTa base BitFit* 0.1M" in text and "Adapter-D* 0.9M" in text  # that were not run
    assert "|full|0.0001 (edge)|0.0001 (edge)|0.0001, 0.0002|" in text
    assert "python -m experiments.table a --rebuild" in text


def test_csv_has_full_precision_and_tex_escapes():
    rows = list(csv.DictReader(io.StringIO(spreadsheet(built()))))
    row = next(row for row in rows if row["row"] == "LoRA" and row["column"] == "MNLI")
    assert float(row["ours"]) == pytest.approx(87.3) and row["verdict"] == "reproduced"
    assert row["paper_row"] == "RoBERTa base LoRA 0.3M" and float(row["paper"]) == 87.5 and row["lr"] == "0.001"
    tex = latex(built(Protocol(recipe(title="50% & more"))))
    assert r"LoRA & 100 & 87.3 $\pm$ 1.6 & 85.0 $\pm$ 2.9 \\" in tex and tex.startswith("% 50")
    assert tex.count(r"\\") == 5


def test_the_figure_is_drawn_for_papers_and_analogues():
    pngs = {draw(built()), draw(built(base_parameters=999)), draw(built(Protocol(recipe(baseline=None, analogue="x"))))}
    assert len(pngs) == 3 and all(png.startswith(b"\x89PNG") for png in pngs)


def test_results_survive_their_file(tmp_path):
    results = list(train_all(PROTOCOL).values())
    write_lines(tmp_path / "results.jsonl", results)
    assert read_lines(RunResult, tmp_path / "results.jsonl") == results


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in COMMITTED.glob("*/results.jsonl")))
def test_committed_tables_are_rebuilt_byte_for_byte(folder, tmp_path):
    name, _, scale = folder.partition("-")
    target = tmp_path / folder
    target.mkdir()
    for file in ("results.jsonl", "commands.jsonl"):
        shutil.copy(COMMITTED / folder / file, target)
    assert run(name, [f"scale={scale}"] if scale else [], tmp_path, plan=False, rebuild=True) == 0
    for file in ("table.md", "table.csv", "table.tex"):
        assert (target / file).read_bytes() == (COMMITTED / folder / file).read_bytes(), file
    assert (target / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert RECIPES.joinpath(f"{name}.yaml").is_file()


def test_commands_are_on_the_page():
    command = CommandRecord(
        command="python -m experiments.table a",
        start_time="2026-11-28T10:00:00+00:00",
        seconds=754.0,
        device={"kind": "H100"},
        versions={"jax": "0.11.2"},
        commit="abc1234",
        runs=10,
    )
    text = markdown(build_table("a", PROTOCOL, train_all(PROTOCOL), [command]))
    assert "`python -m experiments.table a`: 10 runs in 12 min 34 s, 2026-11-28T10:00:00+00:00, H100, jax" in text
