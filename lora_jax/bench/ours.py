"""Measures lora_jax: trains one pack and scores it on the test set, in one process.

python -m lora_jax.bench.ours '{"start_time": ..., "runs": [settings, ...], "cache": folder}'
"""

import json
import sys
from pathlib import Path
from typing import Any

from lora_jax.bench.clock import Clock


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Trains and scores the pack of ``job["runs"]``. ``job["cache"]`` is the folder of compiled programs."""
    clock = Clock(job["start_time"])
    import jax

    from lora_jax.config import parse
    from lora_jax.config.point import Point
    from lora_jax.evaluation import build_evaluators
    from lora_jax.metrics import score
    from lora_jax.train.compile import compile_all, lower_steps
    from lora_jax.train.loop import train_steps
    from lora_jax.train.pack import make_pack
    from lora_jax.train.setup import load_setup

    jax.config.update("jax_compilation_cache_dir", job["cache"])
    clock.lap("imports")
    runs = [parse(settings) for settings in job["runs"]]
    setup = load_setup(runs[0])
    pack = make_pack([setup] * len(runs), [Point(f"rank={run.rank}", Path(), run) for run in runs])
    clock.lap("load")
    compiled = compile_all(lower_steps(pack))
    clock.lap("compile")
    steps = [metrics.loss for _, metrics in train_steps(setup.base.model, pack, compiled, 0)]
    losses = [[float(loss) for loss in row] for row in jax.device_get(steps)]
    clock.lap("train")
    scorer = build_evaluators(pack.program, setup.base, runs[0], setup.tokens)["scores"]
    programs = compile_all({key: lower() for key, lower in scorer.lower(pack.state.params, pack.constants).items()})
    predictions = scorer.evaluate("test", programs, pack.state.params, pack.constants)
    scores = [score(run, ["accuracy"]) for run in predictions]
    clock.lap("eval")
    return {
        "seconds": clock.total,
        "parts": clock.parts,
        "accuracy": [score["accuracy"] for score in scores],
        "losses": [list(run) for run in zip(*losses, strict=True)],
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
