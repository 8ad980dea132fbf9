"""Our side: one pack from its settings to its test scores, as ``lora_jax.train`` does it; one process, one result.

python -m lora_jax.bench.ours '{"began": ..., "runs": [settings, ...], "cache": folder}'
"""

import json
import sys
from pathlib import Path
from typing import Any

from lora_jax.bench.clock import Clock


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Trains and scores the pack of ``job["runs"]``; `cache` is where compiled programs are kept."""
    clock = Clock(job["began"])
    import jax

    from lora_jax.config import parse
    from lora_jax.data.batches import prefetch
    from lora_jax.evaluation import build_evaluators
    from lora_jax.metrics import score
    from lora_jax.train.loop import compile_steps, make_pack
    from lora_jax.train.plan import Point
    from lora_jax.train.setup import setup_of

    jax.config.update("jax_compilation_cache_dir", job["cache"])
    clock.lap("imports")
    runs = [parse(settings) for settings in job["runs"]]
    setup = setup_of(runs[0])
    pack = make_pack(setup, [Point(f"rank={run.rank}", Path(), run) for run in runs])
    evaluator = build_evaluators(pack.program, setup.base, runs[0], setup.tokens)["scores"]
    clock.lap("load")
    compiled = compile_steps(setup, pack)
    clock.lap("compile")
    state, losses = pack.state, []
    for batch in prefetch(pack.batches, 0, int(pack.steps.max())):
        step = compiled[batch.tokens.shape[-1]]
        state, metrics = step(setup.base.model, state, pack.constants, pack.hyper, jax.device_put(batch))
        losses.append(metrics.loss)
    losses = [[float(loss) for loss in row] for row in jax.device_get(losses)]
    clock.lap("train")
    programs = {key: lowered.compile() for key, lowered in evaluator.lower(state.params, pack.constants).items()}
    predictions = evaluator.evaluate("test", programs, state.params, pack.constants)
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
