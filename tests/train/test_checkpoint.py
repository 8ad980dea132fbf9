"""Checkpoints: a damaged one is never used, and the one before it is."""

import contextlib
import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lora_jax.errors import UserError
from lora_jax.train.checkpoint import PackCheckpoints

BASE = "f" * 64
RUNS = ("rank=4", "rank=8")


def arrays(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {"state": {"a": rng.normal(size=(2, 40, 50)).astype(np.float32)}, "best": {"b": np.arange(2) + step}}


def open_checkpoints(folder: Path, lines: list[str] | None = None, **changes) -> contextlib.AbstractContextManager:
    lines = [] if lines is None else lines
    options = {"base_fingerprint": BASE, "runs": RUNS} | changes
    return contextlib.closing(PackCheckpoints(folder, warn=lines.append, **options))


@pytest.fixture
def saved(tmp_path) -> Path:
    return save_two(tmp_path / "pack-0")


def save_two(folder: Path) -> Path:
    """Saves checkpoints of steps 2 and 4."""
    with open_checkpoints(folder) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, arrays(step), {"progress": {"step": step, "loss": float("nan")}})
    return folder


def test_a_clock_that_jumps_ends_no_wait(tmp_path, monkeypatch):
    """Every look at the clock is ten minutes after the one before."""
    clock = itertools.count(int(time.time()), 600)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    saving = threading.Thread(target=save_two, args=(tmp_path / "pack-0",), daemon=True)
    saving.start()
    saving.join(60)
    assert not saving.is_alive()
    assert assert_restores(tmp_path / "pack-0", {4}) == 4


def damage(file: Path, kind: str) -> None:
    content = bytearray(file.read_bytes())
    if kind == "flipped":
        content[len(content) // 2] ^= 8
    else:
        del content[len(content) // 2 :]
    file.write_bytes(content)


def assert_restores(folder: Path, steps: set[int]) -> int | None:
    """Asserts that what is restored is one of `steps`, bit for bit; returns its step."""
    lines: list[str] = []
    with open_checkpoints(folder, lines) as checkpoints:
        restored = checkpoints.restore(arrays(0))
    if restored is None:
        assert None in steps and "anew from step 0" in lines[-1]
        return None
    found, note = restored
    step = note["progress"]["step"]
    assert step in steps
    np.testing.assert_array_equal(found["state"]["a"], arrays(step)["state"]["a"])
    np.testing.assert_array_equal(found["best"]["b"], arrays(step)["best"]["b"])
    assert (step == 4) != any("4 is damaged" in line for line in lines)
    return step


@pytest.mark.parametrize("kind", ["flipped", "truncated"])
def test_any_damage_to_the_newest_checkpoint_is_noticed(saved, kind, capfd):
    files = [path for path in (saved / "4").rglob("*") if path.is_file()]
    fell_back = 0
    for file in files:
        content = file.read_bytes()
        damage(file, kind)
        fell_back += assert_restores(saved, {2, 4}) == 2  # some files are not needed
        file.write_bytes(content)
    assert fell_back >= 4 and len(files) > 6
    assert "Traceback" not in capfd.readouterr().err


def test_two_damaged_checkpoints_are_as_good_as_none(saved):
    for step in ("2", "4"):
        damage(saved / step / "note" / "metadata", "flipped")
    assert assert_restores(saved, {None}) is None


def test_training_goes_on_after_a_damaged_checkpoint(saved):
    damage(saved / "4" / "note" / "metadata", "truncated")
    with open_checkpoints(saved) as checkpoints:
        assert checkpoints.restore(arrays(0))[1]["progress"]["step"] == 2
        checkpoints.save(3, arrays(3), {"progress": {"step": 3}})
    with open_checkpoints(saved) as checkpoints:
        assert checkpoints.restore(arrays(0))[1]["progress"]["step"] == 3


@pytest.mark.parametrize("changes", [{"base_fingerprint": "0" * 64}, {"runs": ("rank=8", "rank=4")}, {"runs": ("a",)}])
def test_a_checkpoint_of_other_runs_is_refused(saved, changes):
    with (
        open_checkpoints(saved, **changes) as checkpoints,
        pytest.raises(UserError, match="is a checkpoint of other"),
    ):
        checkpoints.restore(arrays(0))
