"""Train one run: ``python -m experiments.train rank=8``."""

from pathlib import Path
from typing import Any

from lora_jax import commands
from lora_jax.host import defer_garbage_collection, restart_with_malloc_settings


def run(config: Any) -> float:
    """Trains the run that Hydra has composed."""
    from lora_jax.commands.composition import train

    return train(config)


def main() -> None:
    restart_with_malloc_settings()
    defer_garbage_collection()
    commands.run(run, kind="run", results=Path("results/runs"))


if __name__ == "__main__":
    main()
