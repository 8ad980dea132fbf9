"""What a run is made of: every setting typed, every bad value refused before anything is loaded or compiled.

Hydra composes a plain mapping from ``conf/`` and the command line; `parse` turns it into a `RunConfig`. Needs no JAX.
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
