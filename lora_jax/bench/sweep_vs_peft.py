"""The rank sweep, packed, against HF PEFT run by run: wall time from process start to the last test score.

Both sides train the same function (BERT, mean pooling, a linear head; LoRA on all of the encoder's linear layers) from
the same numbers on the same padded batches, with AdamW, the same schedule and clipping, then score the test set. Each
measurement is a fresh process. Ours is measured with an empty compilation cache and again with the one it left.
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
from lora_jax.host import HUGE_PAGES

DESCRIPTION = "the rank sweep, packed in one program, against HF PEFT run by run"
PROBED = 30  # steps
PARTS = ("imports", "load", "compile", "train", "eval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=_numbers, default=[4, 8, 16, 32], metavar="4,8,16,32")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of every run (300)")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2, help="how often each side is measured, in turn (2)")
    parser.add_argument(
        "--mode",
        choices=("auto", *MODES),
        default="auto",
        help=f"how PEFT computes; auto takes what {PROBED} steps show to be the fastest",
    )
    parser.add_argument("overrides", nargs="*", help="settings of conf/run.yaml, for ours: dtype=bfloat16")


def run(args: argparse.Namespace) -> record.Report:
    """Measures both sides. Raises UserError for settings that are none."""
    runs = settings(args.ranks, args.steps, args.lr, args.batch, args.overrides)
    with tempfile.TemporaryDirectory(prefix="lora_jax-bench-") as temporary:
        job = peft_job(runs, Path(temporary, "inputs.npz"))
        mode, probed = args.mode, {}
        if mode == "auto":
            probed = {mode: _probe(job, mode) for mode in MODES}
            mode = min(probed, key=lambda mode: probed[mode]["whole_run"])
        sides: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": [], "peft": []}
        for repeat in range(args.repeats):
            own = {"runs": [run.model_dump(mode="json") for run in runs], "cache": f"{temporary}/xla-{repeat}"}
            for side, module, given in (
                ("cold", "lora_jax.bench.ours", own),
                ("peft", "lora_jax.bench.peft", job | {"mode": mode}),
                ("warm", "lora_jax.bench.ours", own),
            ):
                sides[side].append(_measure(module, given))
                print(f"{side} {repeat + 1}/{args.repeats}: {sides[side][-1]['seconds']:.1f} s", flush=True)
    return _report(args, runs, mode, probed, sides)


def settings(ranks: Sequence[int], steps: int, lr: float, batch: int, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """One RunConfig per rank: conf/run.yaml with these."""
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
    """What lora_jax.bench.peft is to be given, less the mode; the inputs are written to `path`."""
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
    # The caches of torch's compiler and of XLA must be cold too, so no process has an old one.
    with tempfile.TemporaryDirectory(prefix="lora_jax-torch-") as cache:
        given = json.dumps(job | {"began": time.time()})
        done = subprocess.run(
            [sys.executable, "-m", module, given],
            capture_output=True,
            text=True,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "GLIBC_TUNABLES": HUGE_PAGES},
        )
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _probe(job: dict[str, Any], mode: str) -> dict[str, Any]:
    """A few steps in one mode, and from them the seconds that a run of the whole length would train for.

    The first step of each length, where programs are compiled, is a cost by itself.
    """
    try:
        result = _measure("lora_jax.bench.peft", job | {"mode": mode, "probe": min(PROBED, job["steps"])})
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
    once = sum(max(0.0, first[length] - median[length]) for length in first)
    whole = once + sum(median.get(length, max(median.values())) for length in lengths)
    print(f"PEFT {mode}: " + ", ".join(f"{n} tokens {1e3 * s:.0f} ms" for n, s in sorted(median.items())), flush=True)
    return {"whole_run": whole, "once": once, "step": median, "loss": result["losses"][0][-1]}


def _report(args, runs, mode, probed, sides) -> record.Report:
    import jax

    median = {side: statistics.median(result["seconds"] for result in results) for side, results in sides.items()}
    ratio = {side: median["peft"] / median[side] for side in ("cold", "warm")}
    ranks = [run.rank for run in runs]
    names = {"cold": "packed, nothing compiled yet", "warm": "packed, compiled before", "peft": f"HF PEFT, {mode}"}
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
        f"test score, medians of {args.repeats}; PEFT is spared tokenising, and trains its runs in one process.",
        "",
        record.table(["", "seconds", "PEFT's / ours", *PARTS], time_rows),
        "",
        "Test accuracy:",
        "",
        record.table(["", *(f"rank {rank}" for rank in ranks)], score_rows),
    ]
    if probed:
        text += ["", f"What PEFT would take to train one run, from {PROBED} steps in each mode:", ""]
        rows = [
            [name, f"{found['whole_run']:.0f}", *(f"{found[key]:.1f}" if key in found else "" for key in ("once",))]
            for name, found in probed.items()
        ]
        text.append(record.table(["mode", "seconds", "of these, compiling"], rows))
    figures = {"seconds": median, "ratio": ratio, "mode": mode, "probed": probed, "measured": sides}
    title = f"A sweep of {len(ranks)} ranks, packed, against HF PEFT one by one"
    return record.Report("sweep_vs_peft", jax.default_backend(), title, "\n".join(text), figures)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
