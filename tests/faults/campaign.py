"""Runs the command line under faults, many times, and counts how often what must hold did.

    python tests/faults/campaign.py --workers 16 --factor 1 --out results/faults

It needs no network, and no packages beyond those of lora_jax. Exit status 1: something did not hold.
"""

import argparse
import datetime
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

# As JAX's own tests do: LLVM's optimizations take more time than they save on tiny models. The commands inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).parents[2]
# In place of this folder, whose modules would hide those of the standard library.
sys.path[0:1] = [str(ROOT / "tests"), str(ROOT)]

from faults import table  # noqa: E402
from faults.process import stop_ignoring_signals  # noqa: E402
from faults.registry import GROUPS, chosen, find  # noqa: E402
from faults.runner import run_trials  # noqa: E402
from faults.world import World, make_world  # noqa: E402

from lora_jax.bench import record  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="trials at once (1)")
    parser.add_argument("--factor", type=float, default=1.0, help="the share of all trials (1)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other moments (0)")
    parser.add_argument("--only", default=",".join(GROUPS), help="groups of faults, joined by commas (all)")
    parser.add_argument("--replay", action="append", help="runs one trial again: 'fault:number:seed', as printed")
    parser.add_argument(
        "--folder",
        type=Path,
        help="of the trials; failed ones remain; may be used again (temporary)",
    )
    parser.add_argument("--out", type=Path, help="where campaign.json and campaign.md are written (nowhere)")
    given = parser.parse_args()
    trials, seed = chosen(given.factor, given.only.split(",")), given.seed
    if given.replay:
        parts = [text.rsplit(":", 2) for text in given.replay]
        trials, seed = [(find(name), int(index)) for name, index, _ in parts], int(parts[0][2])
    folder = given.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    stop_ignoring_signals()
    start_time = time.monotonic()
    print(f"{len(trials)} trials in {folder}", flush=True)
    made = (folder / "world/world.json").exists()
    world = World.load(folder / "world") if made else make_world(folder / "world", given.workers)
    print(f"an undisturbed sweep takes {world.seconds:.1f} s, {world.cold_seconds:.1f} s with cold caches", flush=True)
    results = run_trials(
        world, trials, folder, workers=given.workers, seed=seed, tell=lambda result: print(result, flush=True)
    )
    facts = {
        "command": shlex.join(["python", "tests/faults/campaign.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": record.commit(),
        "hardware": record.hardware(),
        "versions": record.versions(),
        "trials": len(results),
        "minutes": round((time.monotonic() - start_time) / 60, 1),
    }
    if given.out:
        print(f"written to {table.write(results, facts, given.out)}")
    failed = sum(result.outcome == "not held" for result in results)
    print(f"{failed} of {len(results)} trials did not hold")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
