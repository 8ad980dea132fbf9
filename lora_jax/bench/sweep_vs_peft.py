"""Compares a packed rank sweep with HF PEFT, which trains one run after another: wall time of the whole process.

Both sides train the same function (BERT, mean pooling, a linear head; LoRA on all linear layers of the encoder) from
the same initial parameters on the same padded batches, with AdamW and the same schedule and clipping. Then they score
the test set. Each measurement is a new process. Lora_jax is measured with an empty compilation cache, and again with
the cache that this leaves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_jax.bench import inputs, record
from lora_jax.bench.peft import MODES
from lora_jax.config import RunConfig
from lora_jax.errors import UserError
from lora_jax.host import MALLOC

DESCRIPTION = "the rank sweep, packed in one program, compared with HF PEFT run by run"
PROBE_STEPS = 30
PARTS = ("imports", "load", "compile", "train", "eval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=_numbers, default=[4, 8, 16, 32], metavar="4,8,16,32")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of every run (300)")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2, help="the number of measurements of each side (2)")
    parser.add_argument(
        "--mode",
        choices=("auto", *MODES),
        default="auto",
        help=f"PEFT's mode; auto selects the fastest in {PROBE_STEPS} steps",
    )
    parser.add_argument("overrides", nargs="*", help="settings of lora_jax, as in conf/run.yaml: dtype=bfloat16")


def run(args: argparse.Namespace) -> record.Report:
    """Measures both sides.

    Raises:
      UserError: a setting is invalid.
    """
    runs = settings(args.ranks, args.steps, args.lr, args.batch, args.overrides)
    with tempfile.TemporaryDirectory(prefix="lora_jax-bench-") as temporary:
        job = peft_job(runs, Path(temporary, "inputs.npz"))
        mode, probes = args.mode, {}
        if mode == "auto":
            probes = {mode: _probe(job, mode) for mode in MODES}
            mode = min(probes, key=lambda mode: probes[mode]["whole_run"])
        sides: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": [], "peft": []}
        for repeat in range(args.repeats):
            lora_jax_job = {"runs": [run.model_dump(mode="json") for run in runs], "cache": f"{temporary}/xla-{repeat}"}
            for side, module, side_job in (
                ("cold", "lora_jax.bench.ours", lora_jax_job),
                ("peft", "lora_jax.bench.peft", job | {"mode": mode}),
                ("warm", "lora_jax.bench.ours", lora_jax_job),
            ):
                sides[side].append(_measure(module, side_job))
                print(f"{side} {repeat + 1}/{args.repeats}: {sides[side][-1]['seconds']:.1f} s", flush=True)
    return _report(args, runs, mode, probes, sides)


def settings(ranks: Sequence[int], steps: int, lr: float, batch: int, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """Returns one RunConfig per rank: conf/run.yaml with these settings."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from lora_jax.commands.composition import CONF, plain
    from lora_jax.config import parse

    shared = [f"steps={steps}", f"lr={lr}", f"batch={batch}", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return [parse(plain(compose("run", [f"rank={rank}", *shared]))) for rank in ranks]
        except HydraException as error:
            raise UserError(str(error).splitlines()[0]) from None


def peft_job(runs: Sequence[RunConfig], path: Path) -> dict[str, Any]:
    """Writes the inputs to `path`. Returns the job of lora_jax.bench.peft without its mode."""
    from lora_jax.weights.sources import resolve

    first = runs[0]
    steps = first.steps_of(0)
    inputs.save(inputs.make(runs, steps), path)
    return {
        "inputs": str(path),
        "model": str(resolve(first.model.source)),
        "ranks": [run.rank for run in runs],
        "alphas": [run.alpha_of(run.rank) for run in runs],
        "lr": first.lr,
        "steps": steps,
        "warmup": round(first.optim.warmup * steps),
        "clip": first.optim.clip_norm,
    }


def _measure(module: str, job: dict[str, Any]) -> dict[str, Any]:
    """Runs `module` with `job` in a new process. Returns its result."""
    # The cache of torch's compiler is new for each process, so that it is empty.
    with tempfile.TemporaryDirectory(prefix="lora_jax-torch-") as cache:
        text = json.dumps(job | {"start_time": time.time()})
        process = subprocess.run(
            [sys.executable, "-m", module, text],
            capture_output=True,
            text=True,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "GLIBC_TUNABLES": MALLOC},
        )
    if process.returncode:
        raise RuntimeError(f"{module} failed:\n{process.stderr[-4000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def _probe(job: dict[str, Any], mode: str) -> dict[str, Any]:
    """Trains a few steps in one mode, and estimates the seconds of a whole run from them.

    The first step of each length includes compilation, so its extra time is counted once.
    """
    try:
        result = _measure("lora_jax.bench.peft", job | {"mode": mode, "probe": min(PROBE_STEPS, job["steps"])})
    except RuntimeError as error:
        return {"whole_run": float("inf"), "error": str(error)[-400:]}
    lengths = [batch[0].shape[-1] for batch in inputs.load(Path(job["inputs"])).train]
    steps = list(zip(lengths, result["step_seconds"][0], strict=False))
    first: dict[int, float] = {}
    later: dict[int, list[float]] = {}
    for length, seconds in steps:
        if length in first:
            later.setdefault(length, []).append(seconds)
        else:
            first[length] = seconds
    median = {length: statistics.median(later.get(length, [first[length]])) for length in first}
    compilation = sum(max(0.0, first[length] - median[length]) for length in first)
    whole_run = compilation + sum(median.get(length, max(median.values())) for length in lengths)
    print(f"PEFT {mode}: " + ", ".join(f"{n} tokens {1e3 * s:.0f} ms" for n, s in sorted(median.items())), flush=True)
    return {"whole_run": whole_run, "once": compilation, "step": median, "loss": result["losses"][0][-1]}


def _report(args, runs, mode, probes, sides) -> record.Report:
    import jax

    median = {side: statistics.median(result["seconds"] for result in results) for side, results in sides.items()}
    ratio = {side: median["peft"] / median[side] for side in ("cold", "warm")}
    ranks = [run.rank for run in runs]
    names = {
        "cold": "packed, empty compilation cache",
        "warm": "packed, warm compilation cache",
        "peft": f"HF PEFT, {mode}",
    }
    time_rows, score_rows = [], []
    for side, results in sides.items():
        parts = [statistics.median(result["parts"].get(part, 0.0) for result in results) for part in PARTS]
        compared = "1" if side == "peft" else f"{ratio[side]:.2f}"
        time_rows.append([names[side], f"{median[side]:.1f}", compared, *(f"{part:.1f}" for part in parts)])
        score_rows.append([names[side], *(f"{score:.4f}" for score in results[0]["accuracy"])])
    text = [
        f"{len(ranks)} runs (rank {', '.join(map(str, ranks))}), {args.steps} steps of {args.batch} texts padded to "
        f"{', '.join(map(str, runs[0].task.buckets))} tokens, lr {args.lr:g}, {runs[0].model.name} on "
        f"{runs[0].task.name}, {runs[0].dtype}. Seconds are wall time from the start of a fresh process to the last "
        f"test score, medians of {args.repeats}; PEFT does not tokenise, and trains its runs in one process.",
        "",
        record.table(["", "seconds", "PEFT / lora_jax", *PARTS], time_rows),
        "",
        "Test accuracy:",
        "",
        record.table(["", *(f"rank {rank}" for rank in ranks)], score_rows),
    ]
    if probes:
        text += ["", f"Estimated time of PEFT for one run, from {PROBE_STEPS} steps in each mode:", ""]
        rows = [
            [name, f"{probe['whole_run']:.0f}", f"{probe['once']:.1f}" if "once" in probe else ""]
            for name, probe in probes.items()
        ]
        text.append(record.table(["mode", "seconds", "of these, compiling"], rows))
    figures = {"seconds": median, "ratio": ratio, "mode": mode, "probed": probes, "measured": sides}
    title = f"A sweep of {len(ranks)} ranks, packed, compared with HF PEFT one by one"
    return record.Report("sweep_vs_peft", jax.default_backend(), title, "\n".join(text), figures)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
