"""Train one run: ``python -m experiments.train rank=8``."""

import contextlib
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lora_jax import commands


@hydra.main(version_base="1.3", config_path="../conf", config_name="run")
def run(config: DictConfig) -> float:
    return commands.train(config)


def main() -> None:
    with commands.exit_on_user_error():
        sys.argv[1:], folder = commands.arguments(sys.argv[1:], kind="run", results=Path("results/runs"))
    try:
        run()
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing came of it
    if folder is not None:
        with commands.exit_on_user_error():
            sys.exit(commands.finish(folder))


if __name__ == "__main__":
    main()
