"""Virtual tokens: where they stand, that they are tokens like others, and that decoding skips their padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import inputs_of, model_of
from helpers.virtual_tokens import DECODERS, INFIX, READERS, masks, of_words, with_words

from lora_jax.data.tokens import IGNORED, Batch
from lora_jax.delta import graft
from lora_jax.generate import Decoding, generate
from lora_jax.models.options import ComputeOptions
from lora_jax.models.virtual import Insertion
from lora_jax.train.objective import OBJECTIVES


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
