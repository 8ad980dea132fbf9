"""Computes the outputs of a pack's objective for all examples of a split, one program for each padded length."""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
from flax import nnx

from lora_jax.data.batches import EvalBatches
from lora_jax.data.tokens import Batch
from lora_jax.train.evaluator import Compiled
from lora_jax.train.pack import packed_outputs
from lora_jax.train.sharding import put_batch
from lora_jax.train.step import Params, Program


def lower_outputs(
    program: Program, base: nnx.Module, splits: Iterable[EvalBatches], params: Params, constants: Any
) -> dict[Hashable, Callable[[], jax.stages.Lowered]]:
    """Returns functions that lower the programs of `compute_outputs`, by their keys. Splits share a shape's program."""
    outputs_of = packed_outputs(program)
    shapes = {_key(shape): shape for batches in splits for shape in _shapes(batches)}
    return {key: functools.partial(outputs_of.lower, base, params, constants, shape) for key, shape in shapes.items()}


def compute_outputs(base: nnx.Module, batches: EvalBatches, compiled: Compiled, params: Params, constants: Any) -> Any:
    """Returns the outputs of every example in order, on the host, leaves ``[runs, examples, ...]``."""
    outputs = []
    for i in range(len(batches)):
        batch = batches[i].batch
        # Nothing is fetched inside the loop, so the device never waits for the host.
        outputs.append(compiled[_key(batch)](base, params, constants, put_batch(batch)))
    return jax.tree.map(lambda *rows: batches.restore(rows, axis=1), *jax.device_get(outputs))


def _key(batch: Batch) -> Hashable:
    return "outputs", *((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(batch))


def _shapes(batches: EvalBatches) -> list[Batch]:
    examples = [batches.example(length) for length in batches.lengths()]
    return [jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch) for batch in examples]
