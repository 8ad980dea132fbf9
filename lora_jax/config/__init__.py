"""Typed settings. Every bad value is refused here, before anything is loaded or compiled. Needs no JAX.

Hydra composes a plain mapping from ``conf/`` and the command line. `parse` turns it into a `RunConfig`.
"""

from lora_jax.config.methods import (
    METHOD_SETTINGS,
    QUANTISED,
    BaseStorage,
    FullSettings,
    LoraSettings,
    MethodSettings,
)
from lora_jax.config.parse import parse
from lora_jax.config.run import (
    CompileConfig,
    DecodeConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TaskConfig,
    WandbConfig,
)

__all__ = [
    "METHOD_SETTINGS",
    "QUANTISED",
    "BaseStorage",
    "CompileConfig",
    "DecodeConfig",
    "FullSettings",
    "LoraSettings",
    "MethodSettings",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TaskConfig",
    "WandbConfig",
    "parse",
]
