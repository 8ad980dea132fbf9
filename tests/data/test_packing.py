"""Short texts in one row: an example's loss and gradients are what they are alone."""

import jax
import numpy as np
import pytest
from helpers.command_line import CommandLine, read

from lora_jax.data.batches import TrainBatches
from lora_jax.data.examples import Examples
from lora_jax.data.packing import pack
from lora_jax.data.tokens import Encoded, tokenize_for_generation
from lora_jax.methods import method_of
from lora_jax.models.options import ComputeOptions
from lora_jax.train.objective import OBJECTIVES, batch_loss
from lora_jax.train.step import adapt, program_of
from lora_jax.weights.load import load_base


@pytest.fixture(scope="module")
def decoder(tiny_decoder):
    return load_base(str(tiny_decoder), "llama", head="causal")


@pytest.fixture(scope="module")
def encoded(decoder) -> Encoded:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde "), size)) + "x" for size in rng.integers(1, 9, 24)]
    answers = ["".join(rng.choice(list("fghij"), size)) for size in rng.integers(1, 9, 24)]
    return tokenize_for_generation(Examples(words, answers), decoder.tokenizer, 256, 24)


def examples_of(encoded: Encoded) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The tokens and labels of every sequence."""
    found = []
    for i in range(len(encoded)):
        rows = slice(encoded.offsets[i], encoded.offsets[i + 1])
        numbers = np.ones(len(encoded[i]), int) if encoded.segments is None else encoded.segments[rows]
        for number in np.unique(numbers):
            chosen = numbers == number
            found.append((tuple(encoded[i][chosen]), tuple(encoded.labels[rows][chosen])))
    return sorted(found)


def test_every_example_is_in_one_row_once(encoded):
    packed = pack(encoded, 32)
    assert examples_of(packed) == examples_of(encoded)
    assert packed.lengths.max() <= 32 and len(packed) < len(encoded) / 2
    assert packed.lengths.sum() == encoded.lengths.sum()
    assert len(packed) == -(-encoded.lengths.sum() // 32) + 1  # one more than full rows would need
    again = pack(encoded, 32)
    np.testing.assert_array_equal(packed.tokens, again.tokens)
    for i in range(len(packed)):
        segments = packed.segments[packed.offsets[i] : packed.offsets[i + 1]]
        assert segments[0] == 1 and set(np.diff(segments)) <= {0, 1}


def test_a_long_example_or_one_label_is_refused(encoded):
    with pytest.raises(ValueError, match="at most 8 tokens"):
        pack(encoded, 8)
    with pytest.raises(ValueError, match="labels by token"):
        pack(Encoded(np.arange(4, dtype=np.int32), np.array([0, 2, 4]), np.zeros(2, np.int32), 4), 4)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_losses_and_gradients_are_those_of_the_examples_alone(configure, decoder, encoded, method):
    run = configure(method, task={"name": "e2e", "steps": 2}, rank=2, targets="all", dtype="float64")
    packed = pack(encoded, 32)
    program = program_of(run)
    with jax.enable_x64(True):
        base = jax.tree.map(lambda leaf: leaf.astype("float64"), decoder.model)
        init = method_of(run.method).init(base, run)
        params = jax.tree.map(lambda leaf: leaf + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape), init.params)

        def loss(params, batch):
            model = adapt(program, base, params, init.constants)
            return batch_loss(OBJECTIVES["generation"], model, batch, options=ComputeOptions("float64"))

        step = jax.jit(jax.value_and_grad(loss))
        alone = step(params, encoded.padded(np.arange(len(encoded)), 24, 0))
        together = step(params, packed.padded(np.arange(len(packed)), 40, 0))
    for actual, expected in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_a_batch_counts_rows(encoded):
    packed = pack(encoded, 32)
    batches = TrainBatches(packed, batch=2, buckets=(32,), seeds=(0, 1))
    assert batches.steps_per_epoch == len(packed) // 2
    batch = batches[0]
    assert batch.segments.shape == batch.tokens.shape == (2, 2, 32)
    assert (batch.segments > 0).sum() == batch.mask.sum()


@pytest.mark.slow
def test_a_sweep_with_packing(command: CommandLine, tiny_decoder, tmp_path):
    lines = [f'{{"question": "What is {i}?", "answer": "{i} #### {i}"}}' for i in range(60)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    settings = [
        *("task=gsm8k", f"task.data_dir={tmp_path}", f"model.source={tiny_decoder}", "model.family=llama", "rank=2"),
        *("model.pool=last", "task.buckets=[64]", "task.decode.new_tokens=2", "task.packing=true,false", "batch=2"),
    ]
    done = command.sweep(tmp_path / "sweep", *settings, "baseline=none", "eval_batch=8", "task.eval_examples=4")
    assert done.returncode == 0, done.stderr
    tokens = {
        read(path.parent / "run.json")["config"]["task"]["packing"]: read(path)["tokens"]
        for path in (tmp_path / "sweep").glob("*/summary.json")
    }
    assert tokens[True] > 1.5 * tokens[False]  # in as many rows


def test_packing_is_refused_for_what_is_not_generated(command: CommandLine, tiny_decoder, tmp_path):
    done = command.sweep(tmp_path / "sweep", "task.packing=true", "rank=2")
    assert done.returncode == 2
    assert "task.packing=true: must be false for task=banking77" in done.stderr
