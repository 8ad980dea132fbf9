"""Biases and other parameters that train in full beside LoRA's pairs."""

import numpy as np
import pytest
from helpers.lora_runs import HEAD, Q, delta_of, init
from helpers.method_runs import moved

from lora_jax.delta import graft, parameters


@pytest.mark.parametrize(
    "settings, extra",
    [
        ({"method__bias": "all"}, 3 * (4 * 32 + 48 + 32 + 64) + 32 + 32),  # with the pooler's and the embedding norm's
        ({"method__bias": "targets"}, 2 * 32),
        ({"method__train": "re:/layers/[12]/attn_norm/"}, 2 * 64),
        ({"method__train": "re:embed/word"}, 101 * 32),
        ({"method__bias": "targets", "method__train": "re:/attn/[qk]/bias$"}, 2 * 3 * 32),
    ],
)
def test_other_parameters_train_in_full(base, configure, settings, extra):
    run = configure(rank=4, targets="q@1:", **settings)
    start = init(base, run)
    assert start.trainable == 2 * 4 * 64 + HEAD + extra
    delta = delta_of(run, moved(start.params), start.constants)
    grafted = parameters(graft(base, {path: value for path, value in delta.items() if path != Q}))
    for path, value in grafted.items():
        active = start.constants[path].active if path in start.constants else None
        if path.startswith("head/"):
            continue
        changed = np.asarray(value != parameters(base)[path])
        if active is None:
            assert not changed.any(), path
        else:
            assert (changed.reshape(*active.shape, -1).mean(-1) > 0.9).tolist() == np.asarray(active).tolist(), path
