"""Memory that runs out on the device, and numbers that are not finite."""

import csv
import functools
import math
import shutil

import numpy as np
from faults import expectations
from faults.compare import difference, statuses
from faults.fault import Fault, Trial, require
from faults.world import BANKING77
from helpers.command_line import read, records, runs
from safetensors.numpy import load_file

STEPS = 6  # of each run in the world's sweep
PAIR = ("rank=4", "rank=8")  # the runs that train together

# Calls `disturb` before the nth step of the pack of two runs. It may raise, or return other arguments of the step.
DISTURB_STEP = """
import dataclasses, os
import jax
from lora_jax.sweep import prepare
nth, compile_pack, calls = int(os.environ["FAULT_STEP"]), prepare.compile_pack, 0
def disturbing(step):
    def call(base, state, constants, hyper, batch):
        global calls
        calls += 1
        if calls == nth:
            with jax.transfer_guard("allow"):
                state, hyper = disturb(state, hyper)
        return step(base, state, constants, hyper, batch)
    return call
def compile_disturbed(pack, *arguments):
    compiled = compile_pack(pack, *arguments)
    if len(pack.points) != 2:
        return compiled
    steps = {length: disturbing(step) for length, step in compiled.steps.items()}
    return dataclasses.replace(compiled, steps=steps)
prepare.compile_pack = compile_disturbed
"""
RAISE = (
    DISTURB_STEP
    + """
def disturb(state, hyper):
    raise jax.errors.JaxRuntimeError(os.environ["FAULT_MESSAGE"])
"""
)
# Sets a figure of one run to a value that is not a usable number.
POISON = (
    DISTURB_STEP
    + """
def disturb(state, hyper):
    run, what, value = int(os.environ["FAULT_RUN"]), os.environ["FAULT_WHAT"], float(os.environ["FAULT_VALUE"])
    poison = lambda leaf: leaf.at[run].set(value) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) else leaf
    if what == "learning rate":
        return state, hyper._replace(lr=poison(hyper.lr))
    if what == "parameters":
        return state._replace(params=jax.tree.map(poison, state.params)), hyper
    return state._replace(opt_state=jax.tree.map(poison, state.opt_state)), hyper
"""
)
DEVICE_FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes."
DISK_FULL = "RESOURCE_EXHAUSTED: Error writing a checkpoint: No space left on device (os error 28)"


def _out_of_memory(trial: Trial) -> None:
    step = trial.random.randint(1, STEPS)
    trial.note(f"step {step}")
    done = trial.run("sweep", *trial.new_sweep, prelude=RAISE, FAULT_STEP=str(step), FAULT_MESSAGE=DEVICE_FULL)
    expectations.ended_well(done)
    require("halving" in done.output, f"the pack is not halved: {done}")
    _same_within_rounding(trial)


def _disk_full(trial: Trial) -> None:
    step = trial.random.randint(1, STEPS)
    trial.note(f"step {step}")
    done = trial.run("sweep", *trial.new_sweep, prelude=RAISE, FAULT_STEP=str(step), FAULT_MESSAGE=DISK_FULL)
    require("halving" not in done.text, f"it took a full disk for full memory: {done}")
    expectations.refused(done, str(trial.sweep), "resume=")
    expectations.continues(trial)


def _same_within_rounding(trial: Trial) -> None:
    """Sums in another order give the results of tests/command_line/test_out_of_memory.py."""
    one, other = trial.sweep, trial.world.finished
    require(runs(one) == runs(other), f"there are the runs {runs(one)}")
    for name in runs(one):
        a, b = (read(sweep / name / "summary.json") for sweep in (one, other))
        for key in ("status", "steps", "tokens", "trainable", "lr", "rank"):
            require(a[key] == b[key], f"{name}: {key} is {a[key]}, expected {b[key]}")
        require(abs(a["test"]["loss"] - b["test"]["loss"]) < 1e-4, f"{name}: another test loss")
        steps = [[record["step"] for record in records(sweep / name)] for sweep in (one, other)]
        require(steps[0] == steps[1], f"{name}: metrics.jsonl has the steps {steps[0]}")
        tensors, expected = (load_file(sweep / name / "adapter/delta.safetensors") for sweep in (one, other))
        require(tensors.keys() == expected.keys(), f"{name}: the adapter has other tensors")
        far = [path for path in tensors if not np.allclose(tensors[path], expected[path], rtol=0, atol=2e-3)]
        require(not far, f"{name}: {', '.join(far)} differ")


def _poison(trial: Trial, what: str) -> None:
    run, step = trial.random.randrange(2), trial.random.randint(1, STEPS)
    value = trial.random.choice([math.nan, math.inf, -math.inf])
    trial.note(f"{what} of {PAIR[run]} = {value} before step {step}")
    variables = {"FAULT_RUN": run, "FAULT_STEP": step, "FAULT_WHAT": what, "FAULT_VALUE": value}
    texts = {key: str(variable) for key, variable in variables.items()}
    done = trial.run("sweep", *trial.new_sweep, prelude=POISON, **texts)
    expectations.no_traceback(done)
    found = statuses(trial.sweep)
    expected = {name: "diverged" if name == PAIR[run] else "finished" for name in runs(trial.world.finished)}
    require(found == expected, f"the runs are {found}")
    require(done.status == 1, f"expected status 1: {done}")
    neighbours = set(expected) - {PAIR[run]}
    different = difference(trial.sweep, trial.world.finished, only=neighbours, plan=False)
    require(different is None, f"a neighbour has other results: {different}")


def _data(trial: Trial) -> None:
    """The data have a number that is not finite, as a text or as a category, in turn."""
    value = trial.random.choice(["nan", "NaN", "inf", "-inf", "1e999"])
    data = trial.folder / "data"
    shutil.copytree(trial.world.folder / "data", data)
    as_category = trial.index % 2 == 0
    trial.note(f"{value} as a {'category' if as_category else 'text'}")
    with (BANKING77 / "train.csv").open(newline="") as file:
        category = next(csv.DictReader(file))["category"]
    with (data / "train.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["a question", value] if as_category else [value, category])
    done = trial.run("sweep", *trial.new_sweep, f"task.data_dir={data}")
    if as_category:
        expectations.refused(done, "train.csv, line", value)
        expectations.nothing_trained(done, trial.sweep)
    else:
        expectations.ended_well(done)
        require(set(statuses(trial.sweep).values()) == {"finished"}, f"the runs are {statuses(trial.sweep)}")


POISON_HOLDS = "this run alone is diverged, status 1; the others have the undisturbed results, bit for bit"
FAULTS = (
    Fault(
        "the device is out of memory at a step",
        "the pack is halved, and gives the undisturbed results up to the order of summation",
        12,
        _out_of_memory,
    ),
    Fault(
        "XLA reports a full disk as RESOURCE_EXHAUSTED",
        "no pack is halved; one line of error names the folder and resume=, status 2; resume= gives the undisturbed "
        "results",
        6,
        _disk_full,
    ),
    *(
        Fault(f"{what} of one run that are not finite", POISON_HOLDS, 8, functools.partial(_poison, what=what))
        for what in ("learning rate", "parameters", "moments")
    ),
    Fault(
        "data with numbers that are not finite",
        "a category is refused with its file and line, status 2; a text is a text",
        4,
        _data,
    ),
)
