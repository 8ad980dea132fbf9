"""Replays stop=median over finished sweeps: ``python -m experiments.stopping results/sweeps/DATE/TIME``."""

import argparse
from pathlib import Path

from lora_jax import commands
from lora_jax.analysis.stopping import replay


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.stopping", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of sweeps that trained without stop=median")
    with commands.exit_on_error():
        replays = [(folder, pack) for folder in parser.parse_args().folders for pack in replay(folder)]
    for folder, pack in replays:
        print(
            f"{folder}, pack {pack.pack}: {len(pack.ended)} of {pack.runs} runs ended, {pack.saved:.0%} of steps "
            f"saved; {pack.winner}, which won, {'among them' if pack.wrong else 'not among them'}"
        )
    wrong = sum(pack.wrong for _, pack in replays)
    print(f"the run that won would have been ended in {wrong} of {len(replays)} packs")


if __name__ == "__main__":
    main()
