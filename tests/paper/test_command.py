"""``experiments.table`` on a small recipe: rounds, a kill, records that outlive the runs, plans, and bad input."""

import shutil
import signal
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from helpers.command_line import CommandLine, read
from helpers.paper import write_tasks
from helpers.paper_results import SHAPE

from lora_jax.paper.results import CommandRecord, RunResult
from lora_jax.paper.selection import best_epoch
from lora_jax.records import read_lines

SCALE = {"settings": "steps=2", "seeds": 1, "rates": 1}
RECIPE = SHAPE | {
    "title": "Two methods on two tasks",
    "seeds": [1, 2],
    "columns": [
        {"title": "RTE", "task": "rte", "metric": "accuracy", "factor": 100, "tolerance": 1},
        {"title": "MRPC", "task": "mrpc", "metric": "accuracy", "factor": 100, "tolerance": 1},
    ],
    "settings": "steps=4 eval_every=2 batch=8 eval_batch=32 task.buckets=[32]",
    "tasks": {"rte": "", "mrpc": ""},
    "rows": [
        {"name": "full", "paper": "RoBERTa base FT* 125.0M", "settings": "method=full", "lr": [1e-4, 1e-3]},
        {
            "name": "LoRA",
            "paper": "RoBERTa base LoRA 0.3M",
            "settings": "method=lora rank=2 targets=qv lr=1e-3",
            "start": {"mrpc": "rte"},
        },
    ],
    "small": SCALE,
    "smoke": SCALE,
}
# Fields that depend on the clock.
CLOCK = {"seconds", "compile_seconds", "start_time", "pack"}


class Tables:
    """Runs ``experiments.table`` on recipes like RECIPE."""

    def __init__(self, command: CommandLine, raw: Path):
        self.command = command
        self.shared = [f"data_root={raw}", f"model.source={command.model}", "wandb.mode=disabled"]

    def arguments(self, out: Path, *more: str, **changes) -> list[str]:
        out.mkdir(exist_ok=True)
        (out / "two.yaml").write_text(yaml.safe_dump(RECIPE | changes))
        return [str(out / "two.yaml"), *self.shared, f"--out={out}", *more]

    def __call__(self, out: Path, *more: str, **changes):
        return self.command("table", *self.arguments(out, *more, **changes))


@pytest.fixture(scope="module")
def tables(session_folder: Path, command: CommandLine) -> Tables:
    root = session_folder / "paper-data"
    with FileLock(session_folder / "paper-data.lock"):
        return Tables(command, root if root.exists() else write_tasks(root))


@pytest.fixture(scope="module")
def trained(tables: Tables, tmp_path_factory) -> tuple[Path, str]:
    """The folder of an uninterrupted table, and its output."""
    out = tmp_path_factory.mktemp("trained")
    done = tables(out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def without_clock(folder: Path) -> list[dict]:
    kept = [result.model_dump(exclude=CLOCK) for result in read_lines(RunResult, folder / "results.jsonl")]
    for result in kept:
        result["overrides"] = [item for item in result["overrides"] if not item.startswith("base=")]
    return kept


def test_all_runs_are_trained_in_rounds(trained):
    out, output = trained
    results = {result.name: result for result in read_lines(RunResult, out / "two" / "results.jsonl")}
    assert len(results) == 2 * 2 + 4 * 2
    for result in results.values():
        folder = out / "two/runs" / result.name
        summary = read(folder / "summary.json")
        assert result.status == "finished" and summary["valid_best"]["step"] == best_epoch(result)
        assert [step for step, _ in result.validations] == [2, 4]
        # The runs that choose a learning rate do not look at the test split.
        assert bool(result.test) == (result.stage == "train") == (folder / "outcomes.npz").exists()
    continued = [result for name, result in results.items() if name.startswith("train/mrpc/lora")]
    starts = {item for result in continued for item in result.overrides if item.startswith("base=")}
    assert len(starts) == 1 and "/train/rte/lora/seed=" in starts.pop()
    (command,) = read_lines(CommandRecord, out / "two" / "commands.jsonl")
    assert command.runs == 12 and "two.yaml" in command.command
    assert "**Analogue" in output and " parameters, not 1,000" in output and "|**LoRA**|" in output
    assert {path.name for path in (out / "two").iterdir()} >= {"table.md", "table.csv", "table.tex", "figure.png"}


@pytest.mark.slow
def test_a_killed_table_goes_on(tables: Tables, trained, tmp_path):
    """It is killed in its second round."""
    at = ("lora_jax.sweep.run", "initialise", 4)
    killed = tables.command.killed(at, "table", *tables.arguments(tmp_path), small=False)
    assert killed.returncode == -signal.SIGKILL
    done = tables(tmp_path)
    assert done.returncode == 0, done.stderr
    assert without_clock(tmp_path / "two") == without_clock(trained[0] / "two")
    # The killed command has recorded its first round.
    assert read_lines(CommandRecord, tmp_path / "two" / "commands.jsonl")[0].runs == 6
    assert (tmp_path / "two/table.csv").read_bytes() == (trained[0] / "two/table.csv").read_bytes()


def test_records_outlive_the_runs(tables: Tables, trained, tmp_path):
    """With the records alone, only what they lack is trained: here a third row."""
    shutil.copytree(trained[0] / "two", tmp_path / "two", ignore=shutil.ignore_patterns("runs", "table.*"))
    done = tables(tmp_path, "--rebuild")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two/table.csv").read_bytes() == (trained[0] / "two/table.csv").read_bytes()
    row = {"name": "BitFit", "settings": "method=bitfit lr=1e-3"}
    done = tables(tmp_path, rows=[*RECIPE["rows"], row])
    assert done.returncode == 0, done.stderr
    assert len(read_lines(RunResult, tmp_path / "two" / "results.jsonl")) == 16
    assert read_lines(CommandRecord, tmp_path / "two" / "commands.jsonl")[-1].runs == 4
    assert {path.parts[-2] for path in (tmp_path / "two/runs").rglob("seed=*")} == {"bitfit"}
    # A record of other settings is not taken for the recipe's.
    done = tables(tmp_path, settings=RECIPE["settings"] + " optim.warmup=0.5")
    assert done.returncode == 2
    assert "was trained with no optim.warmup and is optim.warmup=0.5 now" in done.stderr


def test_a_plan_trains_nothing(tables: Tables, tmp_path):
    done = tables(tmp_path, "--plan", "scale=smoke")
    assert done.returncode == 0, done.stderr
    assert "pack 0: " in done.stdout and "two-smoke on cpu: 4 runs in 2 packs, " in done.stdout
    assert "FLOPs" in done.stdout and "GiB beside the base, roughly" in done.stdout
    assert "0 of the runs choose a learning rate" in done.stdout
    assert not (tmp_path / "two-smoke").exists()


@pytest.mark.parametrize(
    ("more", "changes", "message"),
    [
        (["scale=tiny"], {}, "scale=tiny: must be one of full, small, smoke"),
        (["preset=ours"], {}, "preset=ours: must be one of paper, repo"),
        (["seed=1"], {}, "seed=1: the recipe of "),
        (["lr=1e-3"], {}, "sets lr; remove it"),
        ([], {"columns": [RECIPE["columns"][0] | {"metric": "acc"}]}, "the column RTE: metric='acc': must be one of"),
        (["rank=0"], {}, "rank=0: must be greater than 0"),
        (["steps"], {}, "steps: must be key=value"),
        ([], {"rule": "best"}, "two.yaml: rule: Input should be 'median' or 'mean'"),
        ([], {"published": "table9"}, "published='table9': must be one of table18, table2, table3"),
        (
            [],
            {"rows": [RECIPE["rows"][0], RECIPE["rows"][0] | {"name": "Full!"}]},
            "two rows of one group have one name",
        ),
        ([], {"baseline": "FT"}, "baseline='FT': must be one of full, LoRA"),
        ([], {"rows": [RECIPE["rows"][0] | {"paper": "BERT"}]}, "the row full: paper='BERT': must be one of RoBERTa"),
        (["--rebuild"], {}, "no results to build the table from; train it first"),
    ],
)
def test_bad_input_is_refused(tables: Tables, tmp_path, more, changes, message):
    done = tables(tmp_path, *more, **changes)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "two").exists()


def test_a_recipe_is_no_setting_of_a_sweep(command: CommandLine):
    done = command("sweep", "+experiment=t2_minilm")
    assert done.returncode == 2
    expected = "error: +experiment=t2_minilm: is a recipe; train it with python -m experiments.table t2_minilm\n"
    assert done.stderr == expected
    done = command("table", "t9")
    assert done.returncode == 2 and "use t18, t18_smollm2, t2_deberta_xxl" in done.stderr
