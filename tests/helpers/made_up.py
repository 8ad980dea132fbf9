"""Folders of runs made up by formula, so that every number in a report of them is known."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path

from lora_jax.records import Axes, Base, Data, Device, PackRecord, RunRecord, Summary, write_summary
from lora_jax.records import write_run as write_record

BASE = 22_713_216


def accuracy(rank, seed=0):
    """0.8 and one point for each doubling; a seed shifts it by 0.3 points."""
    return 0.8 + 0.01 * math.log2(rank or 256) + 0.003 * seed


def title_of(method: str) -> str:
    return {"lora": "LoRA", "full": "full fine-tuning"}.get(method, method)


def run_record(name="rank=8", **changes) -> RunRecord:
    """The smallest run.json that there is."""
    axes = Axes(method="lora", method_title="LoRA", trains_base=False, rank=8)
    config = {"method": {"name": "lora", "rank": 8}, "lr": 3e-3}
    return RunRecord(name=name, axes=axes, config=config, overrides=(name,)).replace(**changes)


def summary(status="finished", name="rank=8", **changes) -> Summary:
    """The smallest summary.json that there is."""
    return Summary(method="lora", method_title="LoRA", trains_base=False, name=name, status=status).replace(**changes)


def write_run(sweep: Path, overrides: dict, *, status="finished", name=None, records=20, config=None, **changes):
    """Writes one run's folder. `changes` replace what the formula gives; status None leaves summary.json out."""
    method = overrides.get("method", "lora")
    full = method == "full"
    rank = None if full else overrides.get("rank", 8)
    seed, lr = overrides.get("seed", 0), overrides.get("lr", 3e-4 if full else 3e-3)
    name = name or ",".join(f"{key}={value}" for key, value in sorted(overrides.items()))
    folder = sweep / name.replace("/", "_").replace("<", "_")
    folder.mkdir(parents=True)
    axes = Axes(
        model="minilm",
        task="banking77",
        method=method,
        method_title=title_of(method),
        trains_base=full,
        rank=rank,
        alpha=16.0 if rank else None,
        targets="all" if rank else None,
        lr=lr,
        seed=seed,
    ).replace(**{key: value for key, value in changes.items() if key in Axes.model_fields})
    run = RunRecord(
        name=name,
        axes=axes,
        config=config or {"method": {"name": method, "rank": rank}, "seed": seed, "lr": lr, "batch": 32},
        overrides=[f"{key}={value}" for key, value in overrides.items()],
        versions={"jax": "0.10.2"},
        device=Device(platform="cpu", kind="a CPU", count=1),
        base=Base(source="pypi://a-model==0.1.0", fingerprint="f00d", parameters=BASE),
        data=Data(name="banking77", fingerprint="beef", examples={"train": 9003, "valid": 1000, "test": 3080}),
        commit="abc123",
        command="python -m experiments.sweep rank=4,8",
        start_time="2026-01-02T03:04:05",
    )
    write_record(folder, run)
    losses = [4 / step for step in range(1, records + 1)] + [math.nan] * (status == "diverged")
    write_metrics(folder, "train/loss", dict(enumerate(losses, start=1)))
    if status is None:
        return folder
    score = accuracy(rank, seed)
    finished = status == "finished"
    trainable = BASE if full else 45_120 * int(rank or 0) + 29_645
    results = Summary(
        **dict(axes),
        name=name,
        status=status,
        error=None if finished else "loss is not finite",
        steps=300,
        trainable=trainable,
        adapter_parameters=trainable - 29_645,
        head_parameters=29_645,
        base_parameters=BASE,
        trainable_share=trainable / BASE,
        metric="accuracy",
        test={"accuracy": score, "loss": 1 - score} if finished else None,
        valid_best={"step": 300, "accuracy": score + 0.01, "loss": 0.5} if finished else None,
        train_loss=0.2 if finished else math.nan,
        tokens=2000,
        seconds=61.2,
        tokens_per_s=2000 / 61.2,
        compile_seconds=5.1,
        peak_memory_bytes=round(45.1 * 2**20),
        adapter_bytes=4 * trainable,
        pack=PackRecord(index=0, runs=1),
    )
    write_summary(folder, results.replace(**changes))
    return folder


def write_metrics(folder: Path, name: str, values: Mapping[int, float]) -> None:
    """Writes metrics.jsonl: the metric `name`, by step; 100 tokens a step."""
    lines = [{"step": step, "tokens": 100 * step, name: value} for step, value in values.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def figures(test, valid=None):
    return {"test": {"accuracy": test}, "valid_best": None if valid is None else {"accuracy": valid}}


def table(path: Path):
    with open(path, newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}
