"""Measures lora_jax in the step bench: the train step on a model of random weights, one process per base.

    python -m lora_jax.bench.ours_step '{"cases": [...], "rows": file, "start_time": ...}'

The programs are compiled in parallel, from shapes. Then each case is timed alone.
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
from lora_jax.bench.cases import LoraJaxCase
from lora_jax.bench.clock import Clock, seconds_per_call, spread
from lora_jax.bench.worker import Measure, serve
from lora_jax.config import QUANTISED, RunConfig, parse
from lora_jax.data.batches import Batch
from lora_jax.methods import AdapterInit, method_of
from lora_jax.models.causal import CausalLM
from lora_jax.models.llama import Llama, LlamaConfig
from lora_jax.sweep.choices import GEMM_OPTIONS
from lora_jax.train.loop import train_steps
from lora_jax.train.memory import peak_bytes, run_bytes, size
from lora_jax.train.optimizer import Hyper, hyper_of
from lora_jax.train.pack import Pack, packed_outputs, packed_step, stack
from lora_jax.train.step import program_of
from lora_jax.weights import load

STEPS = 1000  # length of the schedule, longer than any measurement


def abstract(shape: str) -> nnx.Module:
    """Returns a causal language model as shapes."""
    config = LlamaConfig(**shapes.SHAPES[shape])
    return jax.eval_shape(lambda: CausalLM(Llama(config)))


def base_of(case: LoraJaxCase) -> nnx.Module:
    """Returns a model with random weights, drawn on the device in the dtype of storage."""
    stored = {"bf16": "bfloat16", "f32": "float32"}.get(case.base_storage, case.dtype)
    return load.random(
        abstract(case.shape),
        0,
        dtype=jnp.dtype(stored),
        kind=case.base_storage if case.base_storage in QUANTISED else None,
    )


def run_of(case: LoraJaxCase, index: int) -> RunConfig:
    """Returns the settings of run `index`. Ranks cycle, and the learning rate changes after each cycle."""
    lr = 1e-4 * (1 + index // len(case.ranks))
    return parse(
        {
            "model": {"name": case.shape, "family": "llama", "source": "random"}
            | {"unroll": case.unroll, "remat": case.remat, "attention": case.attention, "kernel": case.kernel},
            "task": {"name": "e2e", "buckets": [case.tokens], "steps": STEPS},
            "method": {"name": case.method, "lr": lr},
            "optim": {"name": "adamw"},
            "rank": case.ranks[index % len(case.ranks)],
            "alpha": "2r",
            "lr": lr,
            "seed": index,
            "batch": case.batch,
            "dtype": case.dtype,
            "base_storage": case.base_storage,
        }
    )


def batch_of(case: LoraJaxCase, step: int = 0) -> Batch:
    """Returns a batch of random tokens without padding. Each token is the label of the one before."""
    vocabulary = shapes.SHAPES[case.shape]["vocab_size"]
    drawn = np.random.default_rng(step).integers(0, vocabulary, (case.runs, case.batch, case.tokens + 1), np.int32)
    return Batch(drawn[..., :-1], np.ones(drawn[..., 1:].shape, bool), drawn[..., 1:])


class Compiled(NamedTuple):
    """The compiled programs of a case.

    Attributes:
      stack: (inits, hypers) -> (state, constants, hyper).
      step: the train step.
      seconds: the time of tracing and compiling the step.
      beside: the number of other cases that were compiled at the same time.
      predicted: the bytes that train/memory.py predicts.
    """

    stack: Any
    step: Any
    seconds: float
    beside: int
    predicted: int


def inits_of(case: LoraJaxCase, base: nnx.Module) -> list[AdapterInit]:
    """Returns the initial adapters of the case's runs."""
    runs = [run_of(case, i) for i in range(case.runs)]
    return [method_of(run.method).init(base, run) for run in runs]


def hypers_of(case: LoraJaxCase) -> list[Hyper]:
    """Returns the hyperparameters of the case's runs."""
    return [hyper_of(run_of(case, i), STEPS) for i in range(case.runs)]


def compile_all(
    cases: list[LoraJaxCase], base: nnx.Module, threads: int | None = None
) -> list[concurrent.futures.Future[Compiled]]:
    """Compiles the programs of all cases. Each case compiles while the next ones are traced.

    Args:
      cases: the cases.
      base: the base; may be shapes.
      threads: how many compile at a time; None is one for each core.

    Returns:
      Futures, all done. The future of a case that failed raises its error.
    """

    def finish(case: LoraJaxCase, stacked, lowered, tracing_seconds: float, bytes_of) -> Compiled:
        start_time = time.perf_counter()
        step = lowered.compile(GEMM_OPTIONS[case.gemm])
        seconds = tracing_seconds + time.perf_counter() - start_time
        return Compiled(stacked.compile(), step, seconds, beside, bytes_of())

    beside = 0 if threads == 1 else len(cases) - 1
    futures: list[concurrent.futures.Future[Compiled]] = []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for case in cases:
            start_time = time.perf_counter()
            try:
                stacked, lowered, bytes_of = _lower(case, base)
            except Exception as error:  # an unsupported case, such as cuDNN's attention, must not stop the others
                futures.append(concurrent.futures.Future())
                futures[-1].set_exception(error)
                continue
            tracing_seconds = time.perf_counter() - start_time
            futures.append(pool.submit(finish, case, stacked, lowered, tracing_seconds, bytes_of))
    return futures


def _lower(case: LoraJaxCase, base: nnx.Module):
    """Lowers a case from shapes. Returns the lowered `stack`, the lowered step, and a function that predicts bytes."""
    runs = [run_of(case, i) for i in range(case.runs)]
    method, program, hypers = method_of(runs[0].method), program_of(runs[0]), hypers_of(case)
    # LoRA's init reads no weight, but that of full fine-tuning copies all. Runs of one rank have the same shapes.
    init_functions = {run.rank: functools.partial(method.init, run=run) for run in runs}
    init_by_rank: dict[int, AdapterInit] = {
        rank: jax.eval_shape(init, base) if runs[0].method.trains_base else init(base)
        for rank, init in init_functions.items()
    }
    inits = [init_by_rank[run.rank] for run in runs]
    stacked = stack.lower(program, inits, hypers)
    batch = jax.eval_shape(lambda: batch_of(case))
    lowered = packed_step(program).lower(base, *stacked.out_info, batch)
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)
    widest = init_by_rank[max(init_by_rank)]
    bytes_per_run = functools.partial(run_bytes, program, base, widest, hypers[0], example)
    return stacked, lowered, lambda: size(base) + case.runs * bytes_per_run()


def measure(case: LoraJaxCase, future: concurrent.futures.Future[Compiled], base: nnx.Module) -> dict[str, Any]:
    """Measures a case. Returns its row: figures of the program and, unless it only compiles, the seconds of a step."""
    compiled = future.result()
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
    # The device reports the peak of the whole process, which belongs to this case only if it has risen.
    row["memory"]["peak"] = after if (after := _peak()) != before else None
    return row | {"loss": [float(losses[0].mean()), float(losses[-1].mean())]}


def sweep(case: LoraJaxCase, start_time: float) -> dict[str, Any]:
    """Measures a pack from the start of its process to its last score, with new tokens at every step.

    Programs compile while weights and adapters are drawn, as in a sweep.
    """
    clock = Clock(start_time)
    clock.lap("imports")
    if case.cache:
        jax.config.update("jax_compilation_cache_dir", case.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    shapes_of_base = jax.eval_shape(lambda: base_of(case))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiling = pool.submit(lambda: compile_all([case], shapes_of_base)[0].result())
        base = base_of(case)
        program, inits = program_of(run_of(case, 0)), inits_of(case, base)
        state, constants, hyper = jax.block_until_ready(stack(program, inits, hypers_of(case)))
        clock.lap("start")
        batches: Any = [batch_of(case, step) for step in range(case.steps)]
        evaluation = packed_outputs(program).lower(base, state.params, constants, scored_batch(case, 0)).compile()
        clock.lap("compile scoring")
        compiled = compiling.result()
        clock.lap("compile")
    pack = Pack(program, [], [], base, inits, np.full(case.runs, case.steps), batches, state, constants, hyper)
    del state  # the step donates it
    losses = [metrics.loss for _, metrics in train_steps(base, pack, {case.tokens: compiled.step}, 0)]
    ends = [float(losses[i].mean()) for i in (0, -1)]
    clock.lap("train")
    scores = [
        evaluation(base, pack.state.params, pack.constants, scored_batch(case, i))
        for i in range(case.scored // case.batch)
    ]
    jax.block_until_ready(scores)
    clock.lap("score")
    memory = {"base": size(base), "planned": peak_bytes(compiled.step), "peak": _peak()}
    return facts(case) | {"wall_seconds": clock.total, "parts": clock.parts, "loss": ends, "memory": memory}


def scored_batch(case: LoraJaxCase, index: int) -> Batch:
    """Returns a batch that all runs score: random tokens other than those of training."""
    return jax.tree.map(lambda leaf: leaf[0], batch_of(case, case.steps + index))


def facts(case: LoraJaxCase) -> dict[str, Any]:
    """Returns the figures of a case that need no measurement. FLOPs are those of all runs together."""
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
    """Measures the FLOP/s of a square bfloat16 product of random matrices, the highest that this device reaches."""
    width = 512 if jax.default_backend() == "cpu" else 8192
    a, b = (jax.random.normal(jax.random.key(i), (width, width), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.matmul)
    seconds = spread(seconds_per_call(lambda: product(a, b), jax.block_until_ready))
    return {"flops_per_second": 2.0 * width**3 / seconds["median"], "width": width}


def _peak() -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def main(job: dict[str, Any]) -> None:
    """Serves a job. All its cases have the same shape, base and flags."""
    cases = [LoraJaxCase.model_validate(case) for case in job["cases"]]

    def prepare() -> list[Measure]:
        if cases[0].measure == "sweep":
            return [functools.partial(sweep, cases[0], job["start_time"])]
        needs_weights = any(case.measure != "compile" for case in cases)
        base = base_of(cases[0]) if needs_weights else jax.eval_shape(lambda: base_of(cases[0]))
        futures, limit = compile_all(cases, base, job.get("threads")), functools.cache(ceiling)

        def measure_with_ceiling(case: LoraJaxCase, future: concurrent.futures.Future[Compiled]) -> dict[str, Any]:
            return measure(case, future, base) | {"ceiling": limit()}

        return [functools.partial(measure_with_ceiling, *pair) for pair in zip(cases, futures, strict=True)]

    serve(job, prepare)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
