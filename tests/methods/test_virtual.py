"""Prompt tuning, PreEmbed and PreLayer: starts, counts, activations between the layers, packs and refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import inputs_of, model_of
from helpers.method_cases import SHORT
from helpers.packed import assert_packed_equals_alone
from helpers.virtual_tokens import PREFIX, of_words, slot_of
from jaxtyping import Array

from lora_jax.adapters import VirtualStates
from lora_jax.data.batches import TrainBatches
from lora_jax.data.tokens import IGNORED, Encoded
from lora_jax.delta import count, graft, parameters
from lora_jax.errors import UserError
from lora_jax.methods import method_of
from lora_jax.methods.virtual import STATES
from lora_jax.models.quantised import quantisable, quantise

STEPS = 12
HEAD = 32 * 7 + 7
METHODS = {"prompt": {"method__length": 3}, "preembed": {"method__prefix": 2, "method__infix": 1}}
METHODS["prelayer"] = METHODS["preembed"]


def start_of(base, configure, name, **settings):
    run = configure(name, **{**METHODS[name], **settings})
    method = method_of(run.method)
    return method, method.init(base, run)


# ---- starts and counts


@pytest.mark.parametrize(
    "name, settings, expected",
    [
        ("prompt", {"method__length": 5}, 5 * 32),
        ("preembed", {"method__prefix": 5, "method__infix": 2}, 7 * 32),
        ("prelayer", {"method__prefix": 5, "method__infix": 2}, 3 * 7 * 32),
    ],
)
def test_as_many_numbers_train_as_the_papers_formula_says(base, configure, name, settings, expected):
    """d · (l_p + l_i), and L times as many with PreLayer (arXiv 2106.09685, section 5.1)."""
    _, start = start_of(base, configure, name, **settings)
    assert start.trainable == expected + HEAD
    padding = 7 * 32 if name == "prelayer" else 0  # the last layer's states do not train
    assert count(start.params) == start.trainable + padding


def test_embeddings_start_as_rows_of_the_vocabulary_or_as_wide(base, configure):
    table = np.asarray(parameters(base)["backbone/embed/word/embedding"])
    _, start = start_of(base, configure, "prelayer", method__prefix=40, method__infix=2)
    drawn = [start.params[slot_of("bert")].rows, *start.params[STATES].states[:2]]
    for rows in drawn:
        assert all((table == row).all(1).any() for row in np.asarray(rows))
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[1], drawn[2])
    assert not start.params[STATES].states[2].any()
    _, normal = start_of(base, configure, "prompt", method__length=100, method__init="normal")
    rows = np.asarray(normal.params[slot_of("bert")].rows)
    assert np.isclose(rows.std(), table.std(), rtol=0.05) and abs(rows.mean()) < 0.1 * table.std()


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_not_the_base_and_no_virtual_tokens_make_it_the_base(base, configure, name):
    tokens = np.arange(18).reshape(2, 9) % 101
    expected = base(tokens, tokens >= 0)
    method, start = start_of(base, configure, name)
    delta = {k: v for k, v in method.materialise(start.params, start.constants).items() if not k.startswith("head/")}
    hidden = graft(base, {path: value.neutral() for path, value in delta.items()})
    np.testing.assert_allclose(hidden(tokens, tokens >= 0), expected, atol=1e-6)
    assert np.abs(graft(base, delta)(tokens, tokens >= 0) - expected).max() > 1e-3


# ---- PreLayer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Record:
    """An adapter that appends what it is given to SEEN."""

    layer: Array

    def check_site(self, module, name, *, path):
        pass

    def graft(self, module, name):
        setattr(module, name, jax.tree.map(lambda leaf: leaf, self))

    def __call__(self, x, key, **_):
        jax.debug.callback(lambda layer, x: SEEN.__setitem__(int(layer), np.asarray(x)), self.layer, x)
        return x


SEEN: dict[int, np.ndarray] = {}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_states_that_the_model_would_compute_change_nothing_and_others_do(name):
    """A decoder's prefix is before the text, so its states do not depend on the text."""
    model, (tokens, mask) = model_of(name), inputs_of(name)
    delta = of_words(name, infix=[])
    jax.block_until_ready(
        graft(model, {STATES: Record(jnp.arange(2))}).backbone(np.array([PREFIX]), np.ones((1, 2), bool))
    )
    jax.effects_barrier()
    computed = jnp.stack([SEEN[0][0], SEEN[1][0] * 0])
    forward = jax.jit(lambda model: model(tokens, mask)[mask])
    expected = forward(graft(model, delta))
    active = jnp.array([True, False])
    same = forward(graft(model, delta | {STATES: VirtualStates(computed, active)}))
    np.testing.assert_allclose(same, expected, atol=1e-5 * np.abs(expected).max())
    others = forward(graft(model, delta | {STATES: VirtualStates(-computed, active)}))
    assert np.abs(others - expected).max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "deberta", "llama"])
def test_all_activations_but_the_last_layers_have_a_gradient(name, configure):
    model, (tokens, mask) = model_of(name), inputs_of(name)
    method, start = start_of(model, configure, "prelayer", **SHORT)

    def loss(params):
        return jnp.sin(graft(model, method.materialise(params, start.constants))(tokens, mask)).sum()

    gradient = jax.jit(jax.grad(loss))(start.params)
    assert (np.abs(gradient[slot_of(name)].rows).max(-1) > 0).all()
    assert (np.abs(gradient[STATES].states[0]).max(-1) > 0).all() and not gradient[STATES].states[1].any()


# ---- training and packs


@pytest.mark.parametrize("name", METHODS)
def test_only_the_delta_trains(base, pack_of, configure, name):
    before = {path: np.asarray(value) for path, value in parameters(base).items()}
    pack = pack_of(base, [configure(name, lr=1e-2, batch=8, steps=3, **METHODS[name])]).train(base, 3)
    for path, value in parameters(base).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    rows, start = (params[slot_of("bert")].rows for params in (pack.params(0), pack.inits[0].params))
    assert np.abs(rows - start).max() > 1e-2 and rows.shape == (3, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, sizes",
    [
        ("prompt", [{"method__length": 1}, {"method__length": 16, "method__init": "normal"}, {"method__length": 4}]),
        ("preembed", [{"method__prefix": 1}, {"method__prefix": 0, "method__infix": 7}, {"method__infix": 3}]),
        ("prelayer", [{"method__prefix": 1}, {"method__prefix": 0, "method__infix": 7}, {"method__infix": 3}]),
    ],
)
def test_a_run_in_a_pack_is_the_run_alone_in_float64(base, pack_of, configure, name, sizes):
    others = [
        {"lr": 1e-2, "seed": 3, "optim__weight_decay": 0.3},
        {"lr": 3e-3, "seed": 1},
        {"lr": 5e-3, "seed": 2, "optim__clip_norm": 0.1},
    ]
    runs = [
        configure(name, **size, **run, steps=STEPS, batch=8, dtype="float64")
        for size, run in zip(sizes, others, strict=True)
    ]
    assert_packed_equals_alone(base, pack_of, runs, steps=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_run_of_a_decoder_in_a_pack_is_the_run_alone_in_float64(family, pack_of, configure):
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 12, 40)
    labels = np.concatenate([[IGNORED] * 2 + rng.integers(0, 31, n - 2).tolist() for n in lengths]).astype(np.int32)
    tokens = rng.integers(0, 31, lengths.sum()).astype(np.int32)
    encoded = Encoded(tokens, np.concatenate([[0], np.cumsum(lengths)]), labels, 12, by_token=True)

    def pack_of_texts(base, runs):
        pack = pack_of(base, runs)
        pack.batches = TrainBatches(encoded, batch=8, buckets=(12,), seeds=[run.seed for run in runs])
        return pack

    runs = [
        configure("prelayer", method__prefix=prefix, method__infix=infix, seed=seed, lr=1e-2, task__name="e2e", **SHORT)
        for prefix, infix, seed in ((1, 0, 1), (2, 4, 2))
    ]
    runs = [run.model_copy(update={"dtype": "float64", "batch": 8, "steps": 6}) for run in runs]
    assert_packed_equals_alone(model_of(family), pack_of_texts, runs, steps=6)


def test_with_dropout_only_runs_with_as_many_virtual_tokens_share_a_program(configure):
    keys = [
        configure("preembed", method__prefix=prefix, method__infix=infix, dropout=0.1).program_key()
        for prefix, infix in ((2, 3), (5, 0), (4, 2))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_dropout_has_a_key_and_a_quantised_base_works(base, configure):
    tokens = np.arange(18).reshape(2, 9) % 101
    method, start = start_of(base, configure, "prelayer")
    delta = method.materialise(start.params, start.constants)
    run = jax.jit(lambda model, key: model(tokens, tokens >= 0, dropout_rate=0.3, key=key))
    one, two = (run(graft(base, delta), jax.random.key(i)) for i in (0, 1))
    assert np.abs(one - two).max() > 1e-3
    narrow = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: quantise(leaf, "int8") if quantisable(jax.tree_util.keystr(keys)) else leaf, base
    )
    np.testing.assert_allclose(run(graft(narrow, delta), None), run(graft(base, delta), None), atol=0.05)


# ---- files and refusals


def test_what_cannot_be_is_refused(base, configure):
    with pytest.raises(UserError, match="prefix=0 and infix=0: one of them must be above 0"):
        configure("preembed", method__prefix=0)
    long = configure("preembed", method__prefix=470, method__infix=20, task__buckets=(16, 32))
    with pytest.raises(
        UserError, match=r"method.prefix=470 method.infix=20: .* is 32, .* for 512; must be at most 480"
    ):
        method_of(long.method).validate(base, long)
    for name in ("bert", "roberta", "gpt2"):
        with pytest.raises(UserError, match="texts of 21 tokens"):
            jax.eval_shape(lambda name=name: graft(model_of(name), of_words(name, spare=6))(*inputs_of(name)))
    gpt2, llama = (graft(model_of(name), of_words(name)).backbone for name in ("gpt2", "llama"))
    with pytest.raises(UserError, match="21 tokens of prompt and answer are more than GPT-2's n_positions=20"):
        gpt2.empty_cache(4, 18)
    tokens, mask = inputs_of("llama")
    with pytest.raises(UserError, match="virtual tokens cannot be inserted where positions or packed sequences"):
        jax.eval_shape(functools.partial(llama, segments=tokens), tokens, mask)
