"""Measure this code beside another, in fresh processes: ``python -m experiments.bench sweep_vs_peft --steps 300``."""

import argparse
import importlib
import sys
from pathlib import Path

from lora_jax import commands
from lora_jax.bench import BENCHES, record


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="|".join(BENCHES))
    for name, module in BENCHES.items():
        bench = importlib.import_module(module)
        own = names.add_parser(name, help=bench.DESCRIPTION, description=bench.__doc__)
        own.add_argument("--out", type=Path, default=Path("results/bench"), help="a folder (results/bench)")
        bench.add_arguments(own)
        own.set_defaults(run=bench.run)
    args = parser.parse_args()
    with commands.exit_on_error():
        page = record.write(args.run(args), args.out, ["python", "-m", "experiments.bench", *sys.argv[1:]])
    print(page.read_text())
    print(f"written to {page} and {page.with_suffix('.json')}")


if __name__ == "__main__":
    main()
