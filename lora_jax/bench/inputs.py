"""What both sides of a comparison are given: the same batches, the same start. NumPy only, so that reading it costs
the other side no import of ours.

A file is an ``.npz``: for each step and test batch its tokens, mask and labels as ``lora_jax`` pads them, and for each
run its head and LoRA factors as ``lora_jax`` draws them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lora_jax.config import RunConfig

Words = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens and mask [batch, length], labels [batch]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """`train` by step; `test` with the rows that count; `starts[i]` by path of lora_jax, run by run."""

    train: list[Words]
    test: list[Words]
    test_counts: list[np.ndarray]  # [batch] bool, False for rows that only fill the batch up
    starts: list[dict[str, np.ndarray]]


def make(runs: Sequence["RunConfig"], steps: int) -> Inputs:
    """The inputs of `runs`, which differ in rank only: with one seed they all see the same batches."""
    import jax

    from lora_jax.methods import method_of
    from lora_jax.train.setup import load_setup

    setup = load_setup(runs[0])
    batches = setup.train_batches(runs[0], (runs[0].seed,))
    test = setup.tokens.eval_batches(runs[0], "test")
    starts = []
    for run in runs:
        params = jax.device_get(method_of(run.method).init(setup.base.model, run).params)
        starts.append(
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
        starts,
    )


def save(inputs: Inputs, path: Path) -> None:
    """Writes `inputs` to `path`, an ``.npz``."""
    arrays: dict[str, np.ndarray] = {}
    for split, batches in (("train", inputs.train), ("test", inputs.test)):
        for i, batch in enumerate(batches):
            arrays |= {f"{split}/{i}/{name}": x for name, x in zip(("tokens", "mask", "labels"), batch, strict=True)}
    arrays |= {f"counts/{i}": counts for i, counts in enumerate(inputs.test_counts)}
    for run, start in enumerate(inputs.starts):
        arrays |= {f"start/{run}/{name}": array for name, array in start.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # takes `allow_pickle` by name too, which no array is called


def load(path: Path) -> Inputs:
    """What `save` wrote."""
    with np.load(path) as file:
        held = {name: file[name] for name in file.files}

    def batches(split: str) -> list[Words]:
        count = sum(name.startswith(f"{split}/") for name in held) // 3
        return [tuple(held[f"{split}/{i}/{name}"] for name in ("tokens", "mask", "labels")) for i in range(count)]

    starts: dict[int, dict[str, np.ndarray]] = {}
    for name, array in held.items():
        if name.startswith("start/"):
            _, run, rest = name.split("/", 2)
            starts.setdefault(int(run), {})[rest] = array
    test = batches("test")
    return Inputs(
        batches("train"), test, [held[f"counts/{i}"] for i in range(len(test))], [starts[i] for i in sorted(starts)]
    )
