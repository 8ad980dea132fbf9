"""A point of a sweep: one run, with its name and folder."""

import dataclasses
from pathlib import Path

from lora_jax.config.run import RunConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep.

    Attributes:
      name: the name within the sweep.
      folder: the folder of its results.
      config: its settings.
      overrides: the overrides of the command line.
    """

    name: str
    folder: Path
    config: RunConfig
    overrides: tuple[str, ...] = ()
