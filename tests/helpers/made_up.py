"""Folders of runs made up by formula, so that every number in a report of them is known."""

import csv
import json
import math
from pathlib import Path

BASE = 22_713_216


def accuracy(rank, seed=0):
    """0.8 and one point for each doubling; a seed shifts it by 0.3 points."""
    return 0.8 + 0.01 * math.log2(rank or 256) + 0.003 * seed


def write_run(sweep: Path, overrides: dict, *, status="finished", name=None, records=20, config=None, **summary):
    """One run's folder. `summary` replaces what the formula gives; status None leaves summary.json out."""
    method = overrides.get("method", "lora")
    rank = None if method == "full" else overrides.get("rank", 8)
    seed, lr = overrides.get("seed", 0), overrides.get("lr", 3e-4 if method == "full" else 3e-3)
    name = name or ",".join(f"{key}={value}" for key, value in sorted(overrides.items()))
    folder = sweep / name.replace("/", "_").replace("<", "_")
    folder.mkdir(parents=True)
    run = {
        "name": name,
        "config": config or {"method": {"name": method, "rank": rank}, "seed": seed, "lr": lr, "batch": 32},
        "overrides": [f"{key}={value}" for key, value in overrides.items()],
        "versions": {"jax": "0.10.2"},
        "device": {"platform": "cpu", "kind": "a CPU", "count": 1},
        "base": {"source": "pypi://a-model==0.1.0", "fingerprint": "f00d", "parameters": BASE},
        "data": {"name": "banking77", "fingerprint": "beef", "train": 9003, "valid": 1000, "test": 3080},
        "commit": "abc123",
        "command": "python -m experiments.sweep rank=4,8",
        "started": "2026-01-02T03:04:05",
    }
    (folder / "run.json").write_text(json.dumps(run))
    lines = [{"step": s, "tokens": 100 * s, "train/loss": 4 / s} for s in range(1, records + 1)]
    if status == "diverged":
        lines += [{"step": records + 1, "tokens": 100 * (records + 1), "train/loss": math.nan}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status is None:
        return folder
    score = accuracy(rank, seed)
    done = status == "finished"
    trainable = BASE if method == "full" else 45_120 * int(rank or 0) + 29_645
    content = {
        "name": name,
        "status": status,
        "error": None if done else "loss is not finite",
        "method": method,
        "rank": rank,
        "alpha": 16.0 if rank else None,
        "targets": "all" if rank else None,
        "lr": lr,
        "seed": seed,
        "model": "minilm",
        "task": "banking77",
        "steps": 300,
        "trainable": trainable,
        "adapter_parameters": trainable - 29_645,
        "head_parameters": 29_645,
        "base_parameters": BASE,
        "trainable_share": trainable / BASE,
        "metric": "accuracy",
        "test": {"accuracy": score, "loss": 1 - score} if done else None,
        "valid_best": {"step": 300, "accuracy": score + 0.01, "loss": 0.5} if done else None,
        "train_loss": 0.2 if done else math.nan,
        "tokens": 2000,
        "seconds": 61.2,
        "tokens_per_s": 2000 / 61.2,
        "compile_seconds": 5.1,
        "peak_memory_bytes": 45.1 * 2**20,
        "adapter_bytes": 4 * trainable,
        "pack": {"index": 0, "runs": 1},
    }
    (folder / "summary.json").write_text(json.dumps(content | summary))
    return folder


def figures(test, valid=None):
    return {"test": {"accuracy": test}, "valid_best": None if valid is None else {"accuracy": valid}}


def table(path: Path):
    with open(path, newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}
