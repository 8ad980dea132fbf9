"""Measures PEFT in the step bench: a train step of transformers with PEFT's LoRA, or full; one case per process.

    python -m lora_jax.bench.peft_step '{"cases": [case], "rows": file}'

This module does not import JAX. The comparison favours PEFT: its weights, factors and optimizer state are bfloat16
(lora_jax trains in float32) unless ``factors=float32``, its loss is not read back while it is timed, and it computes no
metric.
"""

import contextlib
import functools
import json
import sys
import time
from typing import Any

from lora_jax.bench import shapes
from lora_jax.bench.cases import PeftCase
from lora_jax.bench.clock import Clock, seconds_per_call, spread
from lora_jax.bench.worker import Measure, serve


def model_of(case: PeftCase, device: str, rank: int):
    """Returns a model with random weights on `device`, with LoRA of `rank` if the case has it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**shapes.SHAPES[case.shape], max_position_embeddings=max(2048, case.tokens), use_cache=False)
    dtype = getattr(torch, case.dtype)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if case.method == "lora":
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
        model = get_peft_model(model, lora, autocast_adapter_dtype=case.factors == "float32")
    return model.train()


class Stepper:
    """Updates a model on the same random tokens at every step: AdamW, gradients clipped to a norm of 1."""

    def __init__(self, case: PeftCase, model: Any, device: str, tokens: Any = None):
        import torch

        self.model = torch.compile(model, dynamic=False) if case.mode == "compile" else model
        self.trained = [value for value in model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=True)
        if tokens is None:
            vocabulary = shapes.SHAPES[case.shape]["vocab_size"]
            tokens = torch.randint(vocabulary, (case.batch, case.tokens), device=device)
        self.tokens = tokens
        mixed_precision = case.factors == "float32" and case.dtype == "bfloat16"
        self.context = (
            functools.partial(torch.autocast, device, torch.bfloat16) if mixed_precision else contextlib.nullcontext
        )

    def step(self):
        """Updates the model. Returns the loss before the update, on the device."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        with self.context():
            loss = self.model(input_ids=self.tokens, labels=self.tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return loss.detach()


def measure(case: PeftCase, stepper: Stepper, device: str, first_seconds: float) -> dict[str, Any]:
    """Measures a case. Returns its row.

    Args:
      case: the case.
      stepper: the model and optimizer, after one step.
      device: ``cuda`` or ``cpu``.
      first_seconds: the time of the first step, compilation included.
    """
    import torch

    cuda = device == "cuda"

    def wait(loss):
        if cuda:
            torch.cuda.synchronize()
        return loss

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = spread(seconds_per_call(stepper.step, wait))
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "platform": "gpu" if cuda else "cpu",
        "compile_seconds": max(0.0, first_seconds - seconds["median"]),
        "seconds": seconds,
        "flops": shapes.model_flops(case.shape, case.method, case.batch, case.tokens),
        "memory": {"peak": torch.cuda.max_memory_allocated() if cuda else None},
        "loss": [float(stepper.step())],
    }


def sweep(case: PeftCase, start_time: float) -> dict[str, Any]:
    """Measures runs, one after another, from the start of the process to the last score. Each step has new tokens."""
    clock = Clock(start_time)
    import peft  # noqa: F401 (imports torch and transformers; here, so that the clock books all three as imports)
    import torch

    clock.lap("imports")
    device, losses = "cuda" if torch.cuda.is_available() else "cpu", []
    for index in range(case.runs):
        model = model_of(case, device, case.ranks[index % len(case.ranks)])
        stepper = Stepper(case, model, device)
        clock.lap("start")
        vocabulary = shapes.SHAPES[case.shape]["vocab_size"]
        for _ in range(case.steps):
            stepper.tokens = torch.randint(vocabulary, (case.batch, case.tokens), device=device)
            loss = stepper.step()
        losses.append(float(loss))
        clock.lap("train")
        model.eval()
        with torch.inference_mode(), stepper.context():
            tokens = torch.randint(vocabulary, (case.batch, case.tokens), device=device)
            for _ in range(case.scored // case.batch):
                score = stepper.model(input_ids=tokens, labels=tokens).loss
        float(score)
        clock.lap("score")
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "platform": "gpu" if device == "cuda" else "cpu",
        "wall_seconds": clock.total,
        "parts": clock.parts,
        "loss": losses,
    }


def main(job: dict[str, Any]) -> None:
    """Serves a job of one case."""
    (case,) = (PeftCase.model_validate(case) for case in job["cases"])

    def prepare() -> list[Measure]:
        if case.measure == "sweep":
            return [functools.partial(sweep, case, job["start_time"])]
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        stepper = Stepper(case, model_of(case, device, case.ranks[0]), device)
        start_time = time.perf_counter()
        float(stepper.step())
        first_seconds = time.perf_counter() - start_time
        return [functools.partial(measure, case, stepper, device, first_seconds)]

    serve(job, prepare)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
