"""Prompt tuning, PreEmbed and PreLayer: where virtual tokens stand, that they are tokens like others, and packs."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import CONFIGS, inputs_of, model_of
from helpers.packed import assert_packed_equals_alone
from jaxtyping import Array

from lora_jax.adapters import VirtualRows, VirtualStates, VirtualTokens
from lora_jax.data.batches import TrainBatches
from lora_jax.data.tokens import IGNORED, Batch, Encoded
from lora_jax.delta import count, graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.generate import Decoding, generate
from lora_jax.methods import method_of
from lora_jax.methods.virtual import STATES, TOKENS
from lora_jax.models import FAMILIES
from lora_jax.models.options import ComputeOptions
from lora_jax.models.quantised import quantisable, quantise
from lora_jax.models.virtual import Insertion
from lora_jax.train.objective import OBJECTIVES
from lora_jax.weights.adapters import load_adapter, save_adapter

STEPS = 12
HEAD = 32 * 7 + 7
READERS = [name for name in CONFIGS if name != "vit"]
DECODERS = [name for name in CONFIGS if FAMILIES[CONFIGS[name][0]].causal]
SHORT = {"task__buckets": (12,)}  # the families' models have positions for 20 tokens
METHODS = {"prompt": {"method__length": 3}, "preembed": {"method__prefix": 2, "method__infix": 1}}
METHODS["prelayer"] = METHODS["preembed"]
PREFIX, INFIX = [3, 9], [5]  # words of the vocabulary, in the place of virtual tokens


def start_of(base, configure, name, **settings):
    run = configure(name, **{**METHODS[name], **settings})
    method = method_of(run.method)
    return method, method.init(base, run)


def slot_of(name: str) -> str:
    return "backbone/embed/adapter" if name in DECODERS else "backbone/embed/word/adapter"


def masks(prefix: int, infix: int, spare: int = 0) -> VirtualTokens:
    number = jnp.arange(prefix + infix + spare)
    return VirtualTokens(number < prefix, (number >= prefix) & (number < prefix + infix))


def of_words(name: str, prefix=PREFIX, infix=INFIX, spare: int = 0) -> dict:
    """Returns a delta of virtual tokens with the embeddings of words of the vocabulary."""
    table = parameters(model_of(name))[slot_of(name).replace("adapter", "embedding")]
    rows = VirtualRows(table[jnp.array([*prefix, *infix])]).resize(len(prefix) + len(infix) + spare)
    return {slot_of(name): rows, TOKENS: masks(len(prefix), len(infix), spare)}


def with_words(tokens, mask, prefix=PREFIX, infix=INFIX, ends=None):
    """Returns the same texts with words inserted, right-padded, and the columns of each text's own tokens."""
    rows, columns = [], []
    for i, (row, there) in enumerate(zip(np.asarray(tokens), np.asarray(mask), strict=True)):
        own = row[there]
        end = len(own) if ends is None else int(ends[i]) - int(np.argmax(there))
        rows.append([*prefix, *own[:end], *infix, *own[end:]])
        columns.append(len(prefix) + np.arange(len(own)) + np.where(np.arange(len(own)) >= end, len(infix), 0))
    width = max(map(len, rows))
    filled = np.array([len(row) for row in rows])[:, None] > np.arange(width)
    return np.array([row + [1] * (width - len(row)) for row in rows], np.int32), filled, columns


# ---- where virtual tokens stand


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("prefix, infix, spare", [(0, 0, 2), (2, 0, 0), (0, 3, 1), (2, 3, 2)])
def test_padding_prefix_prompt_infix_and_the_rest_follow_each_other(causal, prefix, infix, spare):
    tokens = np.arange(10, 28).reshape(3, 6)
    mask = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]], bool)
    end = np.array([6, 4, 3])
    insertion = Insertion.of(masks(prefix, infix, spare), jnp.asarray(mask), jnp.asarray(end), causal=causal)
    extended = insertion.insert(jnp.asarray(tokens), 100)
    assert extended.shape == (3, 6 + prefix + infix + spare)
    for i in range(3):
        start = int(np.argmax(mask[i]))
        virtual = list(range(100, 100 + prefix + infix))
        row = [
            *tokens[i, :start],
            *virtual[:prefix],
            *tokens[i, start : end[i]],
            *virtual[prefix:],
            *tokens[i, end[i] :],
        ]
        there = [*mask[i, :start], *[True] * prefix, *mask[i, start : end[i]], *[True] * infix, *mask[i, end[i] :]]
        inside = slice(spare, None) if causal else slice(0, len(row))
        np.testing.assert_array_equal(extended[i, inside], row)
        np.testing.assert_array_equal(insertion.mask[i, inside], there)
        assert insertion.mask[i].sum() == sum(there)
        np.testing.assert_array_equal(insertion.virtual[i, inside], [t - 100 if t >= 100 else -1 for t in row])
        own = insertion.extract(extended[..., None])[i, :, 0]
        expected = tokens[i].copy()
        if causal and infix:
            expected[end[i] - 1] = 100 + prefix + infix - 1  # the infix's last token predicts what follows
        np.testing.assert_array_equal(own, expected)


def test_virtual_tokens_have_the_type_of_a_neighbour():
    mask = jnp.ones((1, 5), bool)
    insertion = Insertion.of(masks(2, 2), mask)
    np.testing.assert_array_equal(insertion.apply(jnp.array([[0, 0, 0, 1, 1]])), [[0, 0, 0, 0, 0, 1, 1, 1, 1]])


@pytest.mark.parametrize("spare", [0, 2])
@pytest.mark.parametrize("name", READERS)
def test_virtual_tokens_with_embeddings_of_words_are_those_words(name, spare):
    model, (tokens, mask) = model_of(name), inputs_of(name)
    if name == "bert":  # the only family in which padding on the left moves a text
        mask = np.sort(mask, axis=1)[:, ::-1]
    actual = np.asarray(jax.jit(lambda model: model.backbone(tokens, mask))(graft(model, of_words(name, spare=spare))))
    longer, filled, columns = with_words(tokens, mask)
    expected = np.asarray(jax.jit(lambda model: model.backbone(longer, filled))(model))
    for i in range(len(tokens)):
        own, wanted = actual[i][mask[i]], expected[i][columns[i]]
        if name in DECODERS:
            wanted[-1] = expected[i][columns[i][-1] + len(INFIX)]
        np.testing.assert_allclose(own, wanted, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_text_to_generate_has_its_infix_after_the_prompt(name):
    """The loss is that of the base on texts with the words written out, whose labels stand after the infix."""
    model, (tokens, mask) = model_of(name), inputs_of(name)
    labels = np.where(mask, (tokens * 7 + 3) % 31, IGNORED)
    starts = mask.argmax(1)
    prompts = np.array([1, 3, 4, 2])  # tokens of each prompt
    labels[np.arange(12) < (starts + prompts - 1)[:, None]] = IGNORED
    objective = OBJECTIVES["generation"]
    batch = Batch(tokens, mask, labels.astype(np.int32))
    actual = objective.outputs(graft(model, of_words(name, spare=1)), batch, options=ComputeOptions())
    longer, filled, columns = with_words(tokens, mask, ends=starts + prompts)
    moved = np.full(longer.shape, IGNORED, np.int32)
    for i, place in enumerate(columns):
        place = place.copy()
        place[prompts[i] - 1] += len(INFIX)
        moved[i, place] = labels[i][mask[i]]
    expected = objective.outputs(model, Batch(longer, filled, moved), options=ComputeOptions())
    np.testing.assert_allclose(actual.losses, expected.losses, rtol=1e-5)
    np.testing.assert_array_equal(actual.tokens, expected.tokens)


# ---- decoding


PARTS = [([3, 9], [5]), ([4], []), ([], [6, 2, 8])]  # prefixes and infixes of the runs of a pack


def packed_answers(name, decoding):
    """Returns the answers of a pack of PARTS, each padded to three virtual tokens."""
    tokens, mask = inputs_of(name, tokens=8)
    deltas = [of_words(name, *part, spare=3 - sum(map(len, part))) for part in PARTS]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *deltas)
    return jax.jit(jax.vmap(lambda delta: generate(graft(model_of(name), delta), tokens, mask, decoding)))(stacked)


@pytest.mark.parametrize(
    "name, beams", [*[(name, 1) for name in DECODERS], ("llama", 3), ("gemma2", 3)], ids=lambda value: str(value)
)
def test_decoding_in_a_pack_is_the_bases_with_the_words_written_out(name, beams):
    decoding = Decoding(5, beams=beams)
    for part, answers in zip(PARTS, packed_answers(name, decoding), strict=True):
        longer, filled, _ = with_words(*inputs_of(name, tokens=8), *part)
        expected = jax.jit(generate, static_argnums=3)(model_of(name), longer, filled, decoding)
        np.testing.assert_array_equal(answers, expected)


def test_ngrams_of_the_text_alone_are_not_repeated():
    tokens, mask = inputs_of("llama", tokens=8)
    decoding = Decoding(9, no_repeat_ngram=2)
    for part, answers in zip(PARTS, packed_answers("llama", decoding), strict=True):
        model = graft(model_of("llama"), of_words("llama", *part))
        alone = jax.jit(generate, static_argnums=3)(model, tokens, mask, decoding)
        np.testing.assert_array_equal(answers, alone)
        for row, there, answer in zip(tokens, mask, answers, strict=True):
            text = [*row[there].tolist(), *answer.tolist()]
            new = list(itertools.pairwise(text))[int(there.sum()) - 1 :]
            old = list(itertools.pairwise(text))[: int(there.sum()) - 1]
            assert len(set(new)) == len(new) and not set(new) & set(old)


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


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_it_is_the_same(base, configure, tmp_path, name):
    _, start = start_of(base, configure, name)
    save_adapter(
        tmp_path / "a", start.params, start.constants, base_source="x", base_fingerprint="y", config={"rank": 1}
    )
    loaded = load_adapter(tmp_path / "a", base_fingerprint="y")
    for saved, read in ((start.params, loaded.params), (start.constants, loaded.constants)):
        assert jax.tree.structure(saved) == jax.tree.structure(read)
        for leaf, other in zip(jax.tree.leaves(saved), jax.tree.leaves(read), strict=True):
            np.testing.assert_array_equal(leaf, other)


def test_what_cannot_be_is_refused(base, configure):
    for name in METHODS:
        method, start = start_of(base, configure, name)
        with pytest.raises(UserError, match="virtual tokens cannot be merged"):
            merge(base, method.materialise(start.params, start.constants))
        with pytest.raises(UserError, match=f"method={name}: this model reads pixels, not tokens; use method=prefix"):
            method.validate(model_of("vit"), configure(name, **SHORT))
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
