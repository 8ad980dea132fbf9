"""Runs of LoRA and its variants on the `base` of tests/conftest.py."""

import jax
import numpy as np
from helpers.method_runs import head_of

from lora_jax.delta import graft
from lora_jax.methods import method_of

ATTN, MLP = "backbone/layers/attn", "backbone/layers/mlp"
Q, V = f"{ATTN}/q/adapter", f"{ATTN}/v/adapter"
HEAD = 32 * 7 + 7
TOKENS = np.arange(1, 19).reshape(2, 9)
MASK = TOKENS > 0


def init(base, run):
    return method_of(run.method).init(base, run)


def delta_of(run, params, constants):
    return method_of(run.method).materialise(params, constants)


def with_head_of(base, start):
    return graft(base, head_of(start))


logits = jax.jit(lambda model: model(TOKENS, MASK))
