"""LoRA rank sweeps in JAX: which rank, on which layers, and how far from full fine-tuning?

The names below are the library; README.md shows them at work. They are imported when first used, so that what needs
no JAX (the report, Hydra's plugin) starts without it.
"""

import importlib
from typing import Any

_HOME = {
    "compose_run": "lora_jax.commands.composition",
    "RunConfig": "lora_jax.config",
    "parse": "lora_jax.config",
    "count": "lora_jax.delta",
    "graft": "lora_jax.delta",
    "merge": "lora_jax.delta",
    "parameters": "lora_jax.delta",
    "UserError": "lora_jax.errors",
    "Decoding": "lora_jax.generate",
    "generate_text": "lora_jax.generate",
    "METHODS": "lora_jax.methods",
    "method_of": "lora_jax.methods",
    "build_report": "lora_jax.report",
    "place": "lora_jax.targets",
    "hyper_of": "lora_jax.train.optimizer",
    "unstack_run": "lora_jax.train.pack",
    "packed_outputs": "lora_jax.train.pack",
    "packed_step": "lora_jax.train.pack",
    "stack": "lora_jax.train.pack",
    "Point": "lora_jax.config.point",
    "load_setup": "lora_jax.train.setup",
    "program_of": "lora_jax.train.step",
    "run_points": "lora_jax.sweep.run",
    "load_adapter": "lora_jax.weights.adapters",
    "save_adapter": "lora_jax.weights.adapters",
    "load_base": "lora_jax.weights.load",
    "save_pretrained": "lora_jax.weights.save",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"lora_jax has no {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
