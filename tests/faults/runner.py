"""Runs trials, several at once, each in a folder of its own."""

import concurrent.futures
import re
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from faults.fault import Fault, NotHeld, NotTried, Result, Trial
from faults.world import World


def run_trial(world: World, fault: Fault, index: int, folder: Path, seed: int = 0) -> Result:
    """Runs one trial. Its folder, in `folder`, remains only if what must hold did not."""
    own = folder / re.sub(r"[^\w]+", "-", f"{fault.name}-{index}")
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    trial = Trial(world, own, f"{fault.name}:{index}:{seed}", index)
    start_time = time.monotonic()

    def result(outcome, reason: str) -> Result:
        seconds = time.monotonic() - start_time
        return Result(fault.name, index, trial.seed, outcome, reason, tuple(trial.notes), seconds)

    try:
        fault.attempt(trial)
    except NotHeld as error:
        return result("not held", str(error))
    except NotTried as error:
        return result("not tried", str(error))
    except Exception as error:  # such as a record that cannot be read where it must be readable
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}, line {frame.lineno}"
        return result("not held", f"{type(error).__name__}: {error} ({where})")
    shutil.rmtree(own, ignore_errors=True)
    return result("held", "")


def run_trials(
    world: World,
    trials: Sequence[tuple[Fault, int]],
    folder: Path,
    *,
    workers: int,
    seed: int = 0,
    tell: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Runs trials, `workers` at once.

    Args:
      world: what the trials start from.
      trials: pairs of a fault and the number of the trial. The seed of a trial follows from both, and from `seed`.
      folder: of the folders of the trials.
      workers: at once.
      seed: another one gives other moments.
      tell: receives every result as soon as there is one.
    """
    results = []
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        # The longest trials first, so that the last worker is not alone with one of them.
        order = sorted(trials, key=lambda pair: pair[0].trials)
        running = [pool.submit(run_trial, world, fault, index, folder, seed) for fault, index in order]
        for future in concurrent.futures.as_completed(running):
            results.append(future.result())
            tell(results[-1])
    return results
