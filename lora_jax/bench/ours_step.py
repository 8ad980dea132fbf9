"""Our side of the step bench: the real train step on a model of random weights, in one process for each base.

    python -m lora_jax.bench.ours_step '{"cases": [...], "rows": file, "began": ...}'

The programs are compiled side by side, from shapes; then each case is timed alone.
"""

import concurrent.futures
import functools
import json
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.bench import shapes
from lora_jax.bench.cases import Ours
from lora_jax.bench.clock import Clock, seconds_per_call, spread
from lora_jax.bench.worker import Measure, serve
from lora_jax.config import QUANTISED, RunConfig, parse
from lora_jax.data.batches import Batch
from lora_jax.methods import AdapterInit, method_of
from lora_jax.models.causal import CausalLM
from lora_jax.models.llama import Llama, LlamaConfig
from lora_jax.train.loop import train_steps
from lora_jax.train.memory import peak_bytes, run_bytes, size
from lora_jax.train.optimizer import Hyper, hyper_of
from lora_jax.train.pack import Pack, packed_step, stack
from lora_jax.train.step import program_of
from lora_jax.weights import load

STEPS = 1000  # of the schedule: none of it runs out while it is timed


def abstract(shape: str) -> nnx.Module:
    """The shapes of a causal language model."""
    config = LlamaConfig(**shapes.SHAPES[shape])
    return jax.eval_shape(lambda: CausalLM(Llama(config)))


def base_of(case: Ours) -> nnx.Module:
    """Random weights, drawn on the device in the dtype that they are kept in."""
    stored = {"bf16": "bfloat16", "f32": "float32"}.get(case.base, case.dtype)
    return load.random(
        abstract(case.shape), 0, dtype=jnp.dtype(stored), kind=case.base if case.base in QUANTISED else None
    )


def run_of(case: Ours, index: int) -> RunConfig:
    """The settings of a pack's run: ranks in turn, and another learning rate once they are through."""
    lr = 1e-4 * (1 + index // len(case.ranks))
    return parse(
        {
            "model": {"name": case.shape, "family": "llama", "source": "random"}
            | {"unroll": case.unroll, "remat": case.remat, "attention": case.attention},
            "task": {"name": "e2e", "buckets": [case.tokens], "steps": STEPS},
            "method": {"name": case.method, "lr": lr},
            "optim": {"name": "adamw"},
            "rank": case.ranks[index % len(case.ranks)],
            "alpha": "2r",
            "lr": lr,
            "seed": index,
            "batch": case.batch,
            "dtype": case.dtype,
            "base_storage": case.base,
        }
    )


def batch_of(case: Ours, step: int = 0) -> Batch:
    """Random tokens, each to predict the next; nothing is padding."""
    vocabulary = shapes.SHAPES[case.shape]["vocab_size"]
    drawn = np.random.default_rng(step).integers(0, vocabulary, (case.runs, case.batch, case.tokens + 1), np.int32)
    return Batch(drawn[..., :-1], np.ones(drawn[..., 1:].shape, bool), drawn[..., 1:])


class Compiled(NamedTuple):
    """A case's programs, the seconds of the step's tracing and compilation while `beside` others were compiled."""

    stack: Any  # (inits, hypers) -> (state, constants, hyper): by itself, every small operation would be compiled
    step: Any
    seconds: float
    beside: int
    predicted: int  # bytes, by train/memory.py


def inits_of(case: Ours, base: nnx.Module) -> list[AdapterInit]:
    runs = [run_of(case, i) for i in range(case.runs)]
    return [method_of(run.method).init(base, run) for run in runs]


def hypers_of(case: Ours) -> list[Hyper]:
    return [hyper_of(run_of(case, i), STEPS) for i in range(case.runs)]


def compile_all(cases: list[Ours], base: nnx.Module) -> list[concurrent.futures.Future[Compiled]]:
    """Traces one case after another, and compiles each while the next are traced; all are done when this returns.

    `base` may be shapes. What a case fails with is raised by its future.
    """

    def finish(stacked, lowered, traced: float, bytes_of) -> Compiled:
        began = time.perf_counter()
        step = lowered.compile()
        seconds = traced + time.perf_counter() - began
        return Compiled(stacked.compile(), step, seconds, len(cases) - 1, bytes_of())

    futures: list[concurrent.futures.Future[Compiled]] = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for case in cases:
            began = time.perf_counter()
            try:
                stacked, lowered, bytes_of = _lower(case, base)
            except Exception as error:  # one that cannot be had, such as cuDNN's attention, must not stop the others
                futures.append(concurrent.futures.Future())
                futures[-1].set_exception(error)
                continue
            futures.append(pool.submit(finish, stacked, lowered, time.perf_counter() - began, bytes_of))
    return futures


def _lower(case: Ours, base: nnx.Module):
    """(The lowered stacking, the lowered step, what predicts its bytes), from shapes alone."""
    runs = [run_of(case, i) for i in range(case.runs)]
    method, program, hypers = method_of(runs[0].method), program_of(runs[0]), hypers_of(case)
    # LoRA's init reads no weight, and full fine-tuning's copies them all; runs of one rank have the same shapes.
    makes = {run.rank: functools.partial(method.init, run=run) for run in runs}
    own: dict[int, AdapterInit] = {
        rank: jax.eval_shape(make, base) if runs[0].method.trains_base else make(base) for rank, make in makes.items()
    }
    inits = [own[run.rank] for run in runs]
    stacked = jax.jit(functools.partial(stack, program)).lower(inits, hypers)
    batch = jax.eval_shape(lambda: batch_of(case))
    lowered = packed_step(program).lower(base, *stacked.out_info, batch)
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)
    widest = own[max(own)]
    each = functools.partial(run_bytes, program, base, widest, hypers[0], example)
    return stacked, lowered, lambda: size(base) + case.runs * each()


def measure(case: Ours, ready: concurrent.futures.Future[Compiled], base: nnx.Module) -> dict[str, Any]:
    """A row of the bench: what is known of the program and, if it is to run, how long a step takes."""
    compiled = ready.result()
    plan = compiled.step.memory_analysis()
    row: dict[str, Any] = facts(case) | {
        "compile_seconds": compiled.seconds,
        "compiled_beside": compiled.beside,
        "memory": {
            "base": size(base),
            "predicted": compiled.predicted,
            "planned": peak_bytes(compiled.step),
            "temporary": int(plan.temp_size_in_bytes),
        },
    }
    if case.measure == "compile":
        return row
    before = _peak()
    state, constants, hyper = compiled.stack(inits_of(case, base), hypers_of(case))
    row["memory"]["state"] = size(state)
    batch = jax.device_put(batch_of(case))
    losses = []

    def step():
        nonlocal state
        state, metrics = compiled.step(base, state, constants, hyper, batch)
        losses.append(metrics.loss)
        return metrics

    row["seconds"] = spread(seconds_per_call(step, jax.block_until_ready))
    # The highest of the process so far: it is this case's own only where it has risen.
    row["memory"]["peak"] = after if (after := _peak()) != before else None
    return row | {"loss": [float(losses[0].mean()), float(losses[-1].mean())]}


def sweep(case: Ours, began: float) -> dict[str, Any]:
    """A pack from its process's start to its last step, on new tokens at every step."""
    clock = Clock(began)
    clock.lap("imports")
    base = jax.block_until_ready(base_of(case))
    clock.lap("load")
    program, inits = program_of(run_of(case, 0)), inits_of(case, base)
    stacked = jax.jit(functools.partial(stack, program))(inits, hypers_of(case))
    batches: Any = [batch_of(case, step) for step in range(case.steps)]
    clock.lap("start")
    compiled = compile_all([case], base)[0].result()
    clock.lap("compile")
    pack = Pack(program, [], inits, np.full(case.runs, case.steps), batches, *jax.block_until_ready(stacked))
    del stacked  # the step donates the state
    losses = [metrics.loss for _, metrics in train_steps(base, pack, {case.tokens: compiled.step}, 0)]
    ends = [float(losses[i].mean()) for i in (0, -1)]
    clock.lap("train")
    memory = {"base": size(base), "planned": peak_bytes(compiled.step), "peak": _peak()}
    return facts(case) | {"wall_seconds": clock.total, "parts": clock.parts, "loss": ends, "memory": memory}


def facts(case: Ours) -> dict[str, Any]:
    """What holds for a case before anything is measured; `flops` is of all its runs."""
    texts = case.runs * case.batch
    adapters = sum(
        shapes.adapter_flops(case.shape, run_of(case, i).rank, case.batch, case.tokens) for i in range(case.runs)
    )
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "flops": shapes.model_flops(case.shape, case.method, texts, case.tokens),
        "adapter_flops": adapters if case.method == "lora" else 0.0,
    }


def ceiling() -> dict[str, float]:
    """FLOP/s of a square bfloat16 product of random matrices, the largest rate that this device reaches."""
    width = 512 if jax.default_backend() == "cpu" else 8192
    a, b = (jax.random.normal(jax.random.key(i), (width, width), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.matmul)
    found = spread(seconds_per_call(lambda: product(a, b), jax.block_until_ready))
    return {"flops_per_second": 2.0 * width**3 / found["median"], "width": width}


def _peak() -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def main(job: dict[str, Any]) -> None:
    """All of the cases have the same shape, base and flags."""
    cases = [Ours.model_validate(case) for case in job["cases"]]

    def prepare() -> list[Measure]:
        if cases[0].measure == "sweep":
            return [functools.partial(sweep, cases[0], job["began"])]
        whole = any(case.measure != "compile" for case in cases)
        base = base_of(cases[0]) if whole else jax.eval_shape(lambda: base_of(cases[0]))
        futures, limit = compile_all(cases, base), functools.cache(ceiling)

        def measured(case: Ours, future: concurrent.futures.Future[Compiled]) -> dict[str, Any]:
            return measure(case, future, base) | {"ceiling": limit()}

        return [functools.partial(measured, *one) for one in zip(cases, futures, strict=True)]

    serve(job, prepare)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
