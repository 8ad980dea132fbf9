"""Reproduce a table of the LoRA paper: ``python -m experiments.table t2_minilm data_root=data scale=small``.

It trains the runs that conf/experiment/NAME.yaml names, in packs, goes on where it was stopped, and writes
results/paper/NAME: table.md, table.csv, table.tex, a figure, and the records to rebuild them.
"""

import argparse
import sys
from pathlib import Path

from lora_jax import commands
from lora_jax.host import defer_garbage_collection, restart_with_malloc_settings


def main() -> None:
    restart_with_malloc_settings()
    defer_garbage_collection()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", help="a recipe in conf/experiment, such as t2_roberta_base, or the path of one")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="scale=full|small|smoke, preset=paper|repo, and settings for every run, such as data_root=data",
    )
    parser.add_argument("--plan", action="store_true", help="print runs, packs, FLOPs, memory and time, and train none")
    parser.add_argument("--rebuild", action="store_true", help="write the table from its records, and train none")
    parser.add_argument("--out", type=Path, default=Path("results/paper"), help="the parent folder (results/paper)")
    args = parser.parse_intermixed_args()
    with commands.exit_on_error():
        from lora_jax.commands.table import run

        sys.exit(run(args.table, args.overrides, args.out, plan=args.plan, rebuild=args.rebuild))


if __name__ == "__main__":
    main()
