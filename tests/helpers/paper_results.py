"""Made-up results of the runs of a table."""

from typing import Any

from lora_jax.paper.protocol import Protocol, TableRun
from lora_jax.paper.recipe import Recipe
from lora_jax.paper.results import RunResult
from lora_jax.records import Device

FIGURES = {"accuracy": 0.5}
# Of recipes after RoBERTa base in Table 2.
SHAPE = {
    "published": "table2",
    "models": ["RoBERTa base"],
    "base_parameters": 1000,
    "rule": "median",
    "baseline": "full",
}


def recipe(**changes: Any) -> Recipe:
    """Returns a recipe of two rows and two tasks, of the shape of Table 2."""
    rows = [
        {"name": "full", "paper": "RoBERTa base FT* 125.0M", "settings": "method=full", "lr": [1e-4, 2e-4]},
        {
            "name": "LoRA",
            "paper": "RoBERTa base LoRA 0.3M",
            "settings": "method=lora rank=8 alpha=8",
            "tasks": {"mnli": "lr=5e-4 epochs=30", "rte": "lr=4e-4"},
            "start": {"rte": "mnli"},
            "repo": "alpha=16",
            "repo_tasks": {"rte": "batch=256"},
        },
    ]
    scale = {"settings": "epochs=null steps=2", "seeds": 1, "rates": 1}
    values = SHAPE | {
        "title": "A table",
        "seeds": [1, 2, 3],
        "columns": [
            {"title": "MNLI", "task": "mnli", "metric": "accuracy", "factor": 100, "tolerance": 0.5},
            {"title": "RTE", "task": "rte", "metric": "accuracy", "factor": 100, "tolerance": 1},
        ],
        "settings": "model=roberta_base dropout=0.1",
        "repo": "optim.weight_decay=0.1",
        "tasks": {"mnli": "batch=16", "rte": "batch=32"},
        "rows": rows,
        "small": scale,
        "smoke": scale,
    }
    return Recipe.model_validate(values | changes)


def result(run: TableRun, **changes: Any) -> RunResult:
    """Returns the result of a run: finished, best at step 20 of 30, with a score of 0.5 on both splits."""
    values = {
        "name": run.name,
        "stage": run.stage,
        "row": run.row,
        "task": run.task,
        "seed": run.seed,
        "lr": run.lr or 1e-3,
        "status": "finished",
        "select": "accuracy",
        "validations": ((10, 0.4), (20, 0.5), (30, 0.45)),
        "valid": FIGURES,
        "test": FIGURES if run.stage == "train" else {},
        "overrides": run.overrides,
        "steps": 30,
        "tokens": 960,
        "trainable": 120,
        "adapter_parameters": 100,
        "base_parameters": 1000,
        "seconds": 3.0,
        "compile_seconds": 1.0,
        "peak_memory_bytes": 1024,
        "pack": 0,
        "pack_runs": 4,
        "device": Device(platform="gpu", kind="H100", count=1),
        "versions": {"python": "3.12.3", "jax": "0.11.2", "flax": "0.12.10"},
        "commit": "abc1234",
        "start_time": "2026-11-28T10:00:00+00:00",
        "base": "hf://base",
        "base_fingerprint": "b" * 64,
        "data_fingerprint": "d" * 64,
        "examples": {"train": 10, "valid": 2, "test": 3},
    }
    return RunResult.model_validate(values | changes)


def train_all(protocol: Protocol, score=lambda run: {}) -> dict[str, RunResult]:
    """Returns results of all runs, round by round. ``score(run)`` are the fields in which a run's result differs."""
    results: dict[str, RunResult] = {}
    while runs := [run for run in protocol.due(results) if run.name not in results]:
        results |= {run.name: result(run, **score(run)) for run in runs}
    return results
