"""One run of a sweep, by name."""

import dataclasses
from pathlib import Path

from lora_jax.config.run import RunConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """A run's name within its sweep, the folder of its results, its settings, and what was typed for it."""

    name: str
    folder: Path
    config: RunConfig
    overrides: tuple[str, ...] = ()
