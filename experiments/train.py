"""Train one run: ``python -m experiments.train rank=8``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from lora_jax import commands


@hydra.main(version_base="1.3", config_path="../conf", config_name="run")
def run(config: DictConfig) -> float:
    return commands.train(config)


def main() -> None:
    commands.run(run, kind="run", results=Path("results/runs"))


if __name__ == "__main__":
    main()
