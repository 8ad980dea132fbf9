"""When checkpoints are saved."""

from types import SimpleNamespace

import numpy as np
import pytest

from lora_jax.train import callbacks
from lora_jax.train.callbacks import SaveCheckpoints


def saved_steps(monkeypatch, every, *, seconds_per_step, steps=6):
    """Returns the steps after which a pack of `steps` steps saved a checkpoint."""
    now, saved = [0.0], []
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    progress = SimpleNamespace(step=0, seconds=0.0)
    training = SimpleNamespace(
        progress=progress,
        clock=SimpleNamespace(seconds=0.0),
        unfinished=lambda: np.array([progress.step < steps]),
        save_checkpoint=lambda: saved.append(progress.step),
    )
    callback = SaveCheckpoints(every, now[0])
    for _ in range(steps):
        now[0] += seconds_per_step
        progress.step += 1
        callback.after_step(training, None, None)
    return saved


def test_checkpoints_are_saved_at_their_steps_but_the_last(monkeypatch):
    assert saved_steps(monkeypatch, 2, seconds_per_step=1) == [2, 4]


@pytest.mark.parametrize(("seconds", "steps"), [(1, []), (30, [2, 4]), (90, [1, 2, 3, 4, 5])])
def test_by_default_a_minute_of_training_lies_between_them(monkeypatch, seconds, steps):
    assert saved_steps(monkeypatch, "auto", seconds_per_step=seconds) == steps
