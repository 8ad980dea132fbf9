"""Inputs of a comparison: the batches and the initial parameters, which are the same for lora_jax and PEFT.

This module imports NumPy only, so that PEFT's process does not import JAX. A file is an ``.npz`` with the tokens, mask
and labels of each step and test batch as lora_jax pads them, and the head and LoRA factors of each run as lora_jax
draws them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lora_jax.config import RunConfig

TokenBatch = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens and mask [batch, length], labels [batch]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a comparison.

    Attributes:
      train: the training batches, by step.
      test: the test batches.
      test_counts: for each test batch a mask of the rows that count, shape ``[batch]``. The others are padding.
      inits: the initial parameters of each run, by path in lora_jax.
    """

    train: list[TokenBatch]
    test: list[TokenBatch]
    test_counts: list[np.ndarray]
    inits: list[dict[str, np.ndarray]]


def make(runs: Sequence["RunConfig"], steps: int) -> Inputs:
    """Makes the inputs of `runs`, which must differ in rank only, so that they have the same batches."""
    import jax

    from lora_jax.methods import method_of
    from lora_jax.train.setup import load_setup

    setup = load_setup(runs[0])
    batches = setup.train_batches(runs[0], (runs[0].seed,))
    test = setup.tokens.eval_batches(runs[0], "test")
    inits = []
    for run in runs:
        params = jax.device_get(method_of(run.method).init(setup.base.model, run).params)
        inits.append(
            {
                f"{path}/{field}": x
                for path, value in params.items()
                for field, x in vars(value).items()
                if x is not None
            }
        )
    return Inputs(
        [tuple(array[0] for array in batches[step][:3]) for step in range(steps)],
        [(batch.tokens, batch.mask, batch.labels) for batch in (test[i].batch for i in range(len(test)))],
        [test[i].weight > 0 for i in range(len(test))],
        inits,
    )


def save(inputs: Inputs, path: Path) -> None:
    """Writes `inputs` to `path`, an ``.npz``."""
    arrays: dict[str, np.ndarray] = {}
    for split, batches in (("train", inputs.train), ("test", inputs.test)):
        for i, batch in enumerate(batches):
            arrays |= {f"{split}/{i}/{name}": x for name, x in zip(("tokens", "mask", "labels"), batch, strict=True)}
    arrays |= {f"counts/{i}": counts for i, counts in enumerate(inputs.test_counts)}
    for run, init in enumerate(inputs.inits):
        arrays |= {f"start/{run}/{name}": array for name, array in init.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # `allow_pickle` is a keyword too, but no array has that name


def load(path: Path) -> Inputs:
    """Reads the inputs that `save` wrote to `path`."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}

    def batches(split: str) -> list[TokenBatch]:
        count = sum(name.startswith(f"{split}/") for name in arrays) // 3
        return [tuple(arrays[f"{split}/{i}/{name}"] for name in ("tokens", "mask", "labels")) for i in range(count)]

    inits: dict[int, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        if name.startswith("start/"):
            _, run, rest = name.split("/", 2)
            inits.setdefault(int(run), {})[rest] = array
    test = batches("test")
    return Inputs(
        batches("train"), test, [arrays[f"counts/{i}"] for i in range(len(test))], [inits[i] for i in sorted(inits)]
    )
