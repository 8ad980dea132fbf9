"""Train every point of a sweep, full fine-tuning beside them, and compare: ``python -m experiments.sweep rank=4,8``."""

from pathlib import Path
from typing import Any

from lora_jax import commands
from lora_jax.host import defer_garbage_collection, restart_with_malloc_settings


def point(config: Any) -> float:
    """Trains what Hydra has composed for one point; the launcher `packed` trains all points at once instead."""
    from lora_jax.commands.composition import train

    return train(config)


def main() -> None:
    restart_with_malloc_settings()
    defer_garbage_collection()
    commands.run(point, kind="sweep", results=Path("results/sweeps"))


if __name__ == "__main__":
    main()
