"""Predictions of memory, compared with XLA's plans for the compiled steps.

`pytest tests/sweep/test_costs.py -s` prints both.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.slow import sometimes

from lora_jax.config.point import Point
from lora_jax.data.batches import Batch, TrainBatches
from lora_jax.data.tokens import Encoded
from lora_jax.models import bert, llama
from lora_jax.models.causal import CausalLM
from lora_jax.models.heads import Classifier
from lora_jax.sweep import costs as costs_module
from lora_jax.sweep.costs import Costs, abstract_pack
from lora_jax.train.memory import budget, pack_bytes, run_bytes
from lora_jax.train.pack import packed_step
from lora_jax.weights import load

LENGTH = 32


@pytest.fixture(scope="module")
def models() -> dict[str, nnx.Module]:
    """Models that are large enough for the arrays of a step, and not XLA's overhead, to take most of the memory."""
    encoder = bert.BertConfig(300, 128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    decoder = llama.LlamaConfig(300, 128, 256, 2, 4, num_key_value_heads=2, tie_word_embeddings=True)
    return {
        "banking77": load.random(jax.eval_shape(lambda: Classifier(bert.Bert(encoder), 128, 7)), 0),
        "e2e": load.random(jax.eval_shape(lambda: CausalLM(llama.Llama(decoder))), 0),
    }


@pytest.fixture
def setups(models):
    """Replaces `Setups`: texts of one length, with a label for each text or for each token."""

    def encoded(task: str) -> Encoded:
        tokens, texts = np.ones(64 * LENGTH, np.int32), np.arange(65) * LENGTH
        return Encoded(tokens, texts, tokens if task == "e2e" else np.zeros(64, np.int32), LENGTH, task == "e2e")

    def get(run):
        def train_batches(run, seeds):
            return TrainBatches(encoded(run.task.name), batch=run.batch, buckets=(LENGTH,), seeds=seeds)

        return SimpleNamespace(
            base=SimpleNamespace(model=models[run.task.name]), train_batches=train_batches, outputs=None
        )

    return SimpleNamespace(get=get)


def points_of(runs) -> list[Point]:
    return [Point(str(i), Path(str(i)), run) for i, run in enumerate(runs)]


CASES = {
    "lora, smaller than measured": ({}, [4, 8, 16]),
    "lora, layers rematerialised": ({"model__remat": "layer"}, [4, 8, 8, 16, 16, 32]),
    "full": ({"method": "full"}, [8, 8, 8]),
    "causal": ({"task__name": "e2e"}, [2, 8, 16, 16]),
    "causal full, layers rematerialised": ({"task__name": "e2e", "method": "full", "model__remat": "layer"}, [8] * 5),
}


@pytest.mark.parametrize("case", sometimes(CASES, "full"))
def test_predictions_are_within_15_percent_of_xlas_plans(case, models, setups, configure, pack_of):
    settings, ranks = CASES[case]
    runs = [configure(batch=8, steps=5, rank=rank, **settings) for rank in ranks]
    costs = Costs(setups)
    costs.room = 0
    costs.predict(points_of([*runs, runs[-1].model_copy(update={"rank": 32})]))  # compiles and measures
    predicted, is_measured = costs.predict(points_of(runs))
    base = models[runs[0].task.name]
    pack = pack_of(base, runs)
    example = jax.device_put(setups.get(runs[0]).train_batches(runs[0], (0,) * len(runs))[0])
    arguments = (pack.state, pack.constants, pack.hyper, example)
    planned = pack_bytes(packed_step(pack.program).lower(base, *arguments).compile(), *arguments)
    print(f"\n{case}: predicted {predicted / 2**20:.2f} MiB, planned {planned / 2**20:.2f}: {predicted / planned:.3f}")
    assert is_measured
    assert predicted == pytest.approx(planned, rel=0.15)


def test_packs_that_surely_fit_are_not_compiled(models, setups, configure, monkeypatch):
    monkeypatch.setattr(costs_module, "compiled_bytes", lambda *_: pytest.fail("compiled"))
    points = points_of([configure(batch=8, rank=rank) for rank in (4, 32)])
    costs = Costs(setups)
    bound, is_measured = costs.predict(points)
    assert not is_measured and 2**20 < bound <= costs.room
    assert costs.predict(points[1:])[0] < bound  # a single run is never compiled, because it cannot be split
    costs.room = 0
    assert not costs.predict(points[1:])[1]


def test_more_tokens_and_larger_batches_take_more(base, configure, pack_of):
    pack = pack_of(base, [configure(batch=8)])
    hyper = jax.tree.map(lambda leaf: leaf[0], pack.hyper)

    def example(batch, length):
        tokens = jax.ShapeDtypeStruct((batch, length), np.int32)
        mask = jax.ShapeDtypeStruct((batch, length), bool)
        return Batch(tokens, mask, jax.ShapeDtypeStruct((batch,), np.int32))

    sizes = [
        run_bytes(pack.program, base, pack.inits[0], hyper, example(*shape)) for shape in ((8, 16), (16, 16), (16, 32))
    ]
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] > 1.7 * sizes[1]


def test_abstract_pack_has_the_shapes_of_the_pack(models, setups, configure, pack_of):
    """So a program lowered from shapes has the same entry in the compilation cache as the one that trains."""
    runs = [configure(batch=8, rank=4, targets="qv"), configure(batch=8, rank=8, targets="k", method__dropout=0.1)]
    pack = pack_of(models["banking77"], runs)
    state, constants, hyper = abstract_pack(runs[0], Costs(setups).widest(points_of(runs)), 2)
    for expected, actual in zip((pack.state, pack.constants, pack.hyper), (state, constants, hyper), strict=True):
        assert jax.tree.structure(expected) == jax.tree.structure(actual)
        shapes = [[(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree)] for tree in (expected, actual)]
        assert shapes[0] == shapes[1]


def test_budget_is_less_than_the_memory_of_the_machine():
    assert 2**20 < budget() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
