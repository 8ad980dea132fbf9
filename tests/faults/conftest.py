"""A twentieth of the campaign as tests. ``LORA_JAX_FAULTS=1 python -m pytest -m slow tests/faults`` runs all of it."""

import os
from pathlib import Path

import pytest
from faults.fault import Fault
from faults.process import stop_ignoring_signals
from faults.registry import chosen
from faults.runner import run_trial
from faults.world import World, make_world
from filelock import FileLock

FACTOR = float(os.environ.get("LORA_JAX_FAULTS", "0.05"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives a test with the arguments `fault` and `index` the trials of its module's GROUP."""
    if {"fault", "index"} <= set(metafunc.fixturenames):
        trials = chosen(FACTOR, [metafunc.module.GROUP])
        metafunc.parametrize(("fault", "index"), trials, ids=[f"{fault.name}:{index}" for fault, index in trials])


@pytest.fixture(scope="session")
def world(session_folder: Path) -> World:
    stop_ignoring_signals()
    folder = session_folder / "faults"
    with FileLock(session_folder / "faults.lock"):
        if not (folder / "world.json").exists():
            make_world(folder, workers=1)
    return World.load(folder)


def assert_held(world: World, fault: Fault, index: int, folder: Path) -> None:
    """Runs one trial in `folder`. It fails unless what must hold did."""
    result = run_trial(world, fault, index, folder)
    if result.outcome == "not tried":
        pytest.skip(result.reason)
    assert result.outcome == "held", f"{result}\n{fault.name}: {fault.must_hold}"
