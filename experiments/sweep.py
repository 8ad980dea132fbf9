"""Train every point of a sweep, full fine-tuning beside them, and compare: ``python -m experiments.sweep rank=4,8``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from lora_jax import commands


@hydra.main(version_base="1.3", config_path="../conf", config_name="sweep")
def point(config: DictConfig) -> float:
    return commands.train(config)


def main() -> None:
    commands.run(point, kind="sweep", results=Path("results/sweeps"))


if __name__ == "__main__":
    main()
