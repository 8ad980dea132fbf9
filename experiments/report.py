"""Rebuild a sweep's report from its files: ``python -m experiments.report results/sweeps/2026-11-21/21-30-36``."""

import argparse
import sys
from pathlib import Path

from lora_jax import commands


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a sweep's folder, or a single run's")
    with commands.exit_on_error():
        from lora_jax.commands.results import finish

        sys.exit(finish(parser.parse_args().folder))


if __name__ == "__main__":
    main()
