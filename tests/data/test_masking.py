"""Masked language modelling's tokens: what is chosen, what it becomes, and what that depends on."""

import dataclasses

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models

from lora_jax.data.batches import EvalBatches, TrainBatches
from lora_jax.data.masking import MaskedTexts, Vocabulary
from lora_jax.data.pack_batches import PackBatches
from lora_jax.data.tokens import IGNORED, Encoded
from lora_jax.errors import UserError

CLS, SEP, MASK, WORDS = 1, 2, 3, 1000


def texts(n: int, seed: int = 0) -> MaskedTexts:
    """n texts of 3 to 40 tokens between special tokens."""
    rng = np.random.default_rng(seed)
    rows = [[CLS, *rng.integers(4, WORDS, rng.integers(3, 41)).tolist(), SEP] for _ in range(n)]
    offsets = np.cumsum([0, *map(len, rows)])
    encoded = Encoded(np.concatenate(rows).astype(np.int32), offsets, np.zeros(n, np.int32), 64)
    return MaskedTexts(encoded, Vocabulary(MASK, np.arange(4, dtype=np.int32), np.arange(WORDS, dtype=np.int32)))


def original(split: MaskedTexts, examples: np.ndarray, length: int) -> np.ndarray:
    return split.texts.padded(examples, length, 0).tokens


def assert_masked_as_bert_does(batch, tokens) -> None:
    """Checks shares over at least 20,000 tokens, within four standard deviations."""
    chosen = batch.labels != IGNORED
    free = batch.mask & (tokens > 3)
    assert free.sum() > 20_000 and not (chosen & ~free).any()
    np.testing.assert_array_equal(batch.labels[chosen], tokens[chosen])
    np.testing.assert_array_equal(batch.tokens[~chosen], tokens[~chosen])

    def assert_share(part, whole, share):
        assert abs(part.sum() - share * whole.sum()) < 4 * np.sqrt(whole.sum() * share * (1 - share))

    assert_share(chosen, free, 0.15)
    masked, kept = chosen & (batch.tokens == MASK), chosen & (batch.tokens == tokens)
    replaced = chosen & ~masked & ~kept
    assert_share(masked, chosen, 0.8 + 0.1 / WORDS)
    assert_share(kept, chosen, 0.1 + 0.1 / WORDS)
    assert_share(replaced, chosen, 0.1 * (1 - 2 / WORDS))
    # Any token replaces, each equally often.
    assert_share(replaced & (batch.tokens < WORDS // 2), replaced, 0.5)
    # Every position is as likely as any other.
    first = np.zeros_like(chosen)
    first[..., 1:3] = True
    assert_share(chosen & first, free & first, 0.15)


def test_the_shares_are_berts():
    split = texts(1200)
    everything = np.arange(1200)
    assert_masked_as_bert_does(split.padded(everything, 48, 0), original(split, everything, 48))
    drawn = split.drawn(everything[None], 48, 0, seeds=[5], step=3)
    assert_masked_as_bert_does(drawn, original(split, everything[None], 48))


def test_training_draws_anew_at_each_step_and_seed_and_place():
    split = texts(8)
    same = np.zeros((2, 4), int) + 7  # one text, in all places of two runs
    labels = split.drawn(same, 48, 0, seeds=[0, 1], step=0).labels
    later = split.drawn(same, 48, 0, seeds=[0, 1], step=1).labels
    assert len({row.tobytes() for row in np.concatenate([labels, later]).reshape(16, -1)}) == 16


def test_a_draw_is_the_same_alone_and_packed_and_at_any_length():
    split = texts(40)
    packed = TrainBatches(split, batch=4, buckets=(16, 48), seeds=(3, 0, 3))
    for step in (0, 7):
        together = packed[step]
        for run, seed in enumerate((3, 0, 3)):
            alone = TrainBatches(split, batch=4, buckets=(16, 48), seeds=(seed,))[step]
            for ours, theirs in zip(together[:3], alone[:3], strict=True):
                np.testing.assert_array_equal(ours[run], theirs[0])
    # A pack with another task's longer texts pads more.
    short, length = packed[0], packed.length_at(0)
    longer = packed.at(0, length + 9)
    np.testing.assert_array_equal(longer.tokens[..., :length], short.tokens)
    np.testing.assert_array_equal(longer.labels[..., :length], short.labels)
    assert (longer.labels[..., length:] == IGNORED).all()


def test_runs_of_two_tasks_draw_as_they_do_alone():
    one, other = texts(40), texts(24, seed=1)
    parts = [
        TrainBatches(split, batch=4, buckets=(48,), seeds=seeds) for split, seeds in ((one, (0, 2)), (other, (0,)))
    ]
    pack = PackBatches(parts, [[0, 2], [1]])
    np.testing.assert_array_equal(pack[5].labels[[0, 2]], parts[0][5].labels)
    np.testing.assert_array_equal(pack[5].tokens[[1]], parts[1][5].tokens)


def test_any_step_can_be_read_without_those_before_it():
    split = texts(40)
    read = [TrainBatches(split, batch=4, buckets=(16, 48), seeds=(0, 1))[step] for step in range(25)]
    resumed = TrainBatches(split, batch=4, buckets=(16, 48), seeds=(0, 1))[24]
    np.testing.assert_array_equal(resumed.tokens, read[24].tokens)
    np.testing.assert_array_equal(resumed.labels, read[24].labels)


def test_evaluation_masks_a_text_always_in_the_same_way():
    split = texts(40)
    found = {}
    for batch, buckets in ((8, (48,)), (7, (16, 24, 48)), (40, (56,))):
        batches = EvalBatches(split, batch=batch, buckets=buckets)
        for scored in batches:
            real = scored.weight > 0
            assert (scored.batch.labels[~real] == IGNORED).all()
            for row, index in zip(np.flatnonzero(real), scored.index[real], strict=True):
                n = split.lengths[index]
                content = scored.batch.tokens[row, :n].tobytes(), scored.batch.labels[row, :n].tobytes()
                assert found.setdefault(int(index), content) == content
    assert len(found) == 40
    # A part of the texts is masked as it is among all of them.
    part = MaskedTexts(dataclasses.replace(split.texts, offsets=split.texts.offsets[:11]), split.vocabulary)
    np.testing.assert_array_equal(part.padded(np.arange(10), 48, 0).labels, split.padded(np.arange(10), 48, 0).labels)


def test_raw_bits_fix_the_draw():
    """These numbers must not change: recorded runs depend on them."""
    tokens, offsets = np.arange(4, 64, dtype=np.int32), np.array([0, 30, 60])
    split = dataclasses.replace(texts(1), texts=Encoded(tokens, offsets, np.zeros(2, np.int32), 30))
    evaluated, trained = (
        np.argwhere(batch.labels != IGNORED).tolist()
        for batch in (
            split.padded(np.arange(2), 30, 0),
            split.drawn(np.array([[0, 1]]), 30, 0, seeds=[7], step=11),
        )
    )
    assert evaluated == [[0, 0], [0, 3], [0, 17], [1, 15], [1, 17], [1, 18], [1, 21], [1, 29]]
    assert trained == [[0, 0, 11], [0, 0, 15], [0, 0, 25], [0, 0, 26], [0, 1, 4], [0, 1, 10], [0, 1, 15]]


def tokenizer_of(mask: str) -> Tokenizer:
    made = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 7}, unk_token="a"))
    made.add_special_tokens(["<s>", AddedToken(mask, lstrip=True)] if mask else ["<s>"])
    made.add_tokens(["plain"])  # added, but not special
    return made


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
def test_the_vocabulary_of_a_tokenizer(mask):
    tokenizer = tokenizer_of(mask)
    vocabulary = Vocabulary.of(tokenizer, "here")
    assert vocabulary.mask == tokenizer.token_to_id(mask)
    assert vocabulary.special.tolist() == [0, vocabulary.mask]
    assert vocabulary.ids.tolist() == sorted(tokenizer.get_vocab().values())


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(UserError, match=r"^here has no mask token; this task needs one of \[MASK\], <mask>$"):
        Vocabulary.of(tokenizer_of(""), "here")
