"""Examples, tokens and batches."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lora_jax.data.batches import Buckets, EvalBatches, TrainBatches, prefetch, used_per_bucket
from lora_jax.data.examples import Examples
from lora_jax.data.task import TaskData
from lora_jax.data.tokens import IGNORED, Encoded, tokenize, tokenize_for_generation
from lora_jax.errors import UserError

# ---- examples


def test_examples_of_pairs_and_of_numbers_are_taken_by_row():
    examples = Examples(["a", "b", "c"], np.array([0.5, 1.5, 2.5], np.float32), ["d", "e", "f"])
    taken = examples.take([2, 0])
    assert (taken.texts, taken.pairs, taken.labels.tolist()) == (["c", "a"], ["f", "d"], [2.5, 0.5])
    assert taken.labels.dtype == np.float32


def test_examples_that_do_not_fit_together_are_refused():
    labels = np.zeros(2, np.int32)
    with pytest.raises(ValueError, match=r"1 texts, but labels of shape \(2,\)"):
        Examples(["a"], labels)
    with pytest.raises(ValueError, match="2 texts, but 1 second texts"):
        Examples(["a", "b"], labels, ["c"])
    with pytest.raises(ValueError, match="labels of float64: must be int32, float32"):
        Examples(["a", "b"], np.zeros(2))
    for label in (np.nan, np.inf):
        with pytest.raises(UserError, match=rf"example 1 \('b'\) has the label {label}; must be finite"):
            Examples(["a", "b"], np.array([0, label], np.float32))


@pytest.mark.parametrize("labels", [(0, 2), (-1, 1)])
def test_classes_that_have_no_name_are_refused(labels):
    examples = Examples(["a", "b"], np.array(labels, np.int32))
    with pytest.raises(
        UserError, match=rf"test split has labels from {labels[0]} to {labels[1]}; expected 0 to 1, of 2"
    ):
        TaskData(("no", "yes"), {"test": examples})


def test_fingerprints_tell_second_texts_and_numbers_apart():
    def fingerprint(labels, pairs=None):
        return TaskData(("no", "yes"), {"train": Examples(["a", "b"], labels, pairs)}).fingerprint

    numbers = np.array([0.25, 1], np.float32)
    different = {
        fingerprint(np.array([0, 1], np.int32)),
        fingerprint(numbers),
        fingerprint(numbers, ["c", "d"]),
        fingerprint(numbers, ["c", "e"]),
    }
    assert len(different) == 4


# ---- tokens


@pytest.fixture(scope="module")
def tokenizer():
    """Words a to j are tokens 3 to 12, [CLS] and [SEP] go around; saved with settings that must not matter."""
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, **{letter: 3 + i for i, letter in enumerate("abcdefghij")}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.enable_padding(length=20)
    made.enable_truncation(3)
    return made


def test_tokenize_cuts_inside_the_special_tokens(tokenizer):
    before = tokenizer.to_str()
    encoded = tokenize(Examples(["a b", "C d e f g", ""], np.array([4, 5, 6], np.int32)), tokenizer, 5)
    assert [encoded[i].tolist() for i in range(3)] == [[1, 3, 4, 2], [1, 5, 6, 7, 2], [1, 2]]
    assert encoded.lengths.tolist() == [4, 5, 2]
    assert encoded.labels.tolist() == [4, 5, 6]
    assert len(encoded) == 3
    assert tokenizer.to_str() == before


def test_tokenize_refuses_what_leaves_nothing(tokenizer):
    with pytest.raises(UserError, match="max_length=2: the tokenizer adds 2 special tokens"):
        tokenize(Examples(["a"], np.zeros(1, np.int32)), tokenizer, 2)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.post_processor = processors.TemplateProcessing("$A", special_tokens=[])
    with pytest.raises(UserError, match=r"text 1 \(' '\) has no token"):
        tokenize(Examples(["a", " "], np.zeros(2, np.int32)), plain, 5)


@pytest.mark.parametrize("pairs", [None, ["a", "b"]])
def test_lone_surrogates_are_refused(tokenizer, pairs):
    with pytest.raises(UserError, match=r"text 1 \('b\\ud800.*\) has a lone surrogate; expected Unicode"):
        tokenize(Examples(["a", "b\ud800"], np.zeros(2, np.int32), pairs), tokenizer, 8)
    with pytest.raises(UserError, match=r"text 0 .* has a lone surrogate"):
        tokenize_for_generation(Examples(["a"], ["\udfff"]), tokenizer, 2, 8)


def test_a_long_text_is_cut_and_not_printed(tokenizer):
    long = "a b " * 50_000
    assert tokenize(Examples([long], np.zeros(1, np.int32)), tokenizer, 5)[0].tolist() == [1, 3, 4, 3, 2]
    with pytest.raises(UserError, match=r"text 0 .* has \d+ tokens, and the longest bucket is 8") as refusal:
        tokenize_for_generation(Examples([long], ["a"]), tokenizer, 2, 8)
    assert len(str(refusal.value)) < 300


def test_prompts_and_references_that_tokenise_to_nothing(tokenizer):
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.post_processor = processors.TemplateProcessing("$A", special_tokens=[])
    encoded = tokenize_for_generation(Examples(["a b"], [""]), plain, 2, 8)
    assert (encoded[0].tolist(), encoded.labels.tolist()) == ([3, 4], [IGNORED, 2])  # the text ends at once
    with pytest.raises(UserError, match=r"text 0 \(''\) has 0 tokens"):
        tokenize_for_generation(Examples([""], ["a"]), plain, 2, 8)


@pytest.fixture(scope="module")
def pair_tokenizer(tokenizer):
    """The second text of a pair has the token type 1, as BERT's tokenizer has it."""
    made = Tokenizer.from_str(tokenizer.to_str())
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def test_pairs_are_tokenised_as_one_sequence_whose_longer_text_is_cut(pair_tokenizer):
    pairs = Examples(["a b", "a b c d e"], np.array([0.5, 2], np.float32), ["c", "f"])
    encoded = tokenize(pairs, pair_tokenizer, 7, types=True)
    assert [encoded[i].tolist() for i in range(2)] == [[1, 3, 4, 2, 5, 2], [1, 3, 4, 5, 2, 8, 2]]
    assert encoded.types.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1]
    assert encoded.labels.dtype == np.float32
    batch = encoded.padded(np.array([[1], [0]]), 8, 9)
    assert batch.types.tolist() == [[[0, 0, 0, 0, 0, 1, 1, 0]], [[0, 0, 0, 0, 1, 1, 0, 0]]]
    assert batch.types.dtype == np.int32 and batch.labels.tolist() == [[2], [0.5]]


def test_types_are_left_out_where_they_say_nothing(tokenizer, pair_tokenizer):
    pairs = Examples(["a"], np.zeros(1, np.int32), ["b"])
    assert tokenize(pairs, pair_tokenizer, 8).types is None
    assert tokenize(Examples(["a"], np.zeros(1, np.int32)), pair_tokenizer, 8, types=True).types is None
    one_type = Tokenizer.from_str(tokenizer.to_str())
    one_type.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:0 [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    assert tokenize(pairs, one_type, 8, types=True).types is None
    with pytest.raises(UserError, match="max_length=3: the tokenizer adds 3 special tokens"):
        tokenize(pairs, pair_tokenizer, 3)


# ---- batches


def test_types_and_numbers_are_batched_with_their_tokens(pair_tokenizer):
    texts = [" ".join("abcdefghij"[: 1 + i]) for i in range(8)]
    labels = np.arange(8, dtype=np.float32) / 2
    encoded = tokenize(Examples(texts, labels, ["a b"] * 8), pair_tokenizer, 16, types=True)
    drawn = TrainBatches(encoded, batch=4, buckets=(8, 16), seeds=(0, 1))[0]
    assert drawn.types.shape == drawn.tokens.shape and drawn.labels.dtype == np.float32
    assert (drawn.types.sum(-1) == 3).all()  # a, b and the [SEP] after them
    last = EvalBatches(encoded, batch=5, buckets=(16,))[1]
    assert last.batch.types.sum(-1).tolist() == [3, 3, 3, 0, 0] and last.batch.labels.tolist() == [2.5, 3, 3.5, 0, 0]


def encoded_of(lengths, max_length=64):
    """Example i is `lengths[i]` tokens, and each of them is i + 1; so is its label."""
    lengths = np.asarray(lengths)
    numbers = np.arange(1, len(lengths) + 1, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(np.repeat(numbers, lengths), offsets, numbers, max_length)


def mixed(n, seed=0):
    return encoded_of(np.clip(np.random.default_rng(seed).geometric(0.07, n), 2, 64))


def epoch_of(batches, epoch):
    return [batches[epoch * batches.steps_per_epoch + i] for i in range(batches.steps_per_epoch)]


CASES = [
    (mixed(1000), 32, (16, 32, 64)),
    (mixed(1003, seed=1), 32, (12, 16, 24, 32, 64)),
    (mixed(70, seed=2), 8, (64,)),
    (mixed(64, seed=3), 64, (16, 64)),
    (encoded_of([3] * 50 + [20] * 2 + [60]), 8, (4, 32, 64)),
    (encoded_of([60] * 10 + [3]), 4, (16, 32, 64)),
    (encoded_of([3] * 5 + [20] * 5 + [60] * 5), 8, (16, 32, 64)),
    (mixed(5, seed=4), 1, (16, 32, 64)),
]


@pytest.mark.parametrize(("encoded", "batch", "buckets"), CASES)
def test_an_epoch_shows_every_example_once_whole_and_padded(encoded, batch, buckets):
    batches = TrainBatches(encoded, batch=batch, buckets=buckets, seeds=(0, 5, 5), pad_id=-7)
    assert batches.steps_per_epoch == len(encoded) // batch
    for epoch in range(2):
        drawn = epoch_of(batches, epoch)
        assert {b.tokens.shape[-1] for b in drawn} == set(batches.lengths()) <= set(buckets)
        for step, b in enumerate(drawn):
            length = batches.length_at(epoch * batches.steps_per_epoch + step)
            assert b.tokens.shape == b.mask.shape == (3, batch, length)
            assert (b.tokens.dtype, b.mask.dtype, b.labels.dtype) == (np.int32, np.bool_, np.int32)
            assert (b.mask.sum(-1) == encoded.lengths[b.labels - 1]).all()
            assert (np.where(b.mask, b.tokens, b.labels[..., None]) == b.labels[..., None]).all()
            assert (b.tokens[~b.mask] == -7).all()
            assert not (~b.mask[..., :-1] & b.mask[..., 1:]).any()
        for run in range(3):
            seen = np.concatenate([b.labels[run] for b in drawn])
            assert len(set(seen.tolist())) == len(seen) == len(encoded) // batch * batch


@pytest.mark.parametrize(("encoded", "batch", "buckets"), CASES)
def test_a_run_sees_the_same_alone_and_in_any_pack(encoded, batch, buckets):
    pack = TrainBatches(encoded, batch=batch, buckets=buckets, seeds=(9, 3, 0))
    alone = TrainBatches(encoded, batch=batch, buckets=buckets, seeds=(3,))
    for step in (*range(alone.steps_per_epoch), 10_000):
        for packed, single in zip(pack[step][:3], alone[step][:3], strict=True):
            np.testing.assert_array_equal(packed[1], single[0])


def test_batches_do_not_depend_on_which_were_asked_for_before():
    fresh = TrainBatches(CASES[0][0], batch=32, buckets=(16, 32, 64), seeds=(1, 2))
    used = TrainBatches(CASES[0][0], batch=32, buckets=(16, 32, 64), seeds=(1, 2))
    for step in (200, 3, 90, 31, 30):
        used[step]
    for a, b in zip(used[100], fresh[100], strict=True):
        np.testing.assert_array_equal(a, b)


def test_epochs_and_seeds_differ():
    batches = TrainBatches(CASES[0][0], batch=32, buckets=(16, 32, 64), seeds=(0, 1))
    first, second = (np.stack([b.labels for b in epoch_of(batches, e)]) for e in range(2))
    assert (first[:, 0] != first[:, 1]).mean() > 0.9
    assert (first != second).mean() > 0.9
    lengths = [[batches.length_at(e * batches.steps_per_epoch + i) for i in range(31)] for e in range(2)]
    assert lengths[0] != lengths[1]
    assert Counter(lengths[0]) == Counter(lengths[1])


@pytest.mark.parametrize(("encoded", "batch", "buckets"), CASES)
def test_no_example_is_left_out_for_good(encoded, batch, buckets):
    batches = TrainBatches(encoded, batch=batch, buckets=buckets, seeds=(0,))
    seen = {int(k) for epoch in range(30) for b in epoch_of(batches, epoch) for k in b.labels[0]}
    assert seen == set(range(1, len(encoded) + 1))


def test_an_example_waits_at_most_one_batch_beyond_its_bucket():
    """Only a bucket's remainder, fewer than `batch` examples, is padded into longer ones."""
    encoded = CASES[0][0]
    batches = TrainBatches(encoded, batch=32, buckets=(16, 32, 64), seeds=(0,))
    moved = defaultdict(int)
    for b in epoch_of(batches, 0):
        lengths = np.array((16, 32, 64))[Buckets((16, 32, 64)).of(encoded)[b.labels[0] - 1]]
        for length in lengths[lengths < b.tokens.shape[-1]].tolist():
            moved[length] += 1
    assert all(count < 32 for count in moved.values())


def test_remainder_comes_off_whatever_bucket_holds_most():
    assert used_per_bucket(np.array([9, 4, 1]), 4).tolist() == [7, 4, 1]
    assert used_per_bucket(np.array([5, 5, 5]), 8).tolist() == [2, 3, 3]
    assert used_per_bucket(np.array([0, 8]), 4).tolist() == [0, 8]


def test_bad_batches_are_refused():
    encoded = mixed(40)

    def make(batch=8, buckets=(16, 64), seeds=(0,)):
        return TrainBatches(encoded, batch=batch, buckets=buckets, seeds=seeds)

    for buckets in [(), (64, 16), (16, 16, 64), (0, 64)]:
        with pytest.raises(UserError, match=r"task\.buckets=.*from the shortest to the longest"):
            make(buckets=buckets)
    with pytest.raises(UserError, match=r"task\.buckets=\(16, 32\): texts are cut to 64 tokens"):
        make(buckets=(16, 32))
    for batch in (0, 41):
        with pytest.raises(UserError, match=f"batch={batch}: must be from 1 to the 40"):
            make(batch=batch)
    for seeds in [(), (1, -1)]:
        with pytest.raises(UserError, match="seeds="):
            make(seeds=seeds)
    with pytest.raises(UserError, match="batch=0"):
        EvalBatches(encoded, batch=0, buckets=(64,))
    with pytest.raises(IndexError, match="step -1"):
        make()[-1]


@pytest.mark.parametrize(("encoded", "batch", "buckets"), CASES)
def test_evaluation_sees_every_example_once_in_order(encoded, batch, buckets):
    batches = EvalBatches(encoded, batch=batch, buckets=buckets)
    longest, seen = 0, []
    for scored in batches:
        b, index, real = scored.batch, scored.index, scored.weight > 0
        assert b.tokens.shape == b.mask.shape == (batch, b.tokens.shape[1])
        assert scored.weight.dtype == np.float32 and b.labels.dtype == np.int32
        assert b.mask.any(-1).all()
        assert set(scored.weight.tolist()) <= {0.0, 1.0} and real.any()
        assert (index[real] + 1 == b.labels[real]).all() and (index[~real] == -1).all()
        assert (b.mask[real].sum(-1) == encoded.lengths[index[real]]).all()
        assert (b.tokens[real] == np.where(b.mask[real], b.labels[real][:, None], 0)).all()
        assert b.tokens.shape[1] == min(n for n in buckets if n >= b.mask[real].sum(-1).max())
        assert (np.diff(b.mask[real].sum(-1)) >= 0).all() and b.mask[real].sum(-1).min() >= longest
        longest = b.mask[real].sum(-1).max()
        seen += index[real].tolist()
    assert sorted(seen) == list(range(len(encoded)))
    assert {b.batch.tokens.shape[1] for b in batches} == set(batches.lengths())
    np.testing.assert_array_equal(batches.restore([b.batch.labels for b in batches]), encoded.labels)
    two_runs = [np.stack([b.batch.labels, -b.batch.labels])[..., None] for b in batches]
    np.testing.assert_array_equal(batches.restore(two_runs, axis=1)[..., 0], [encoded.labels, -encoded.labels])


def test_prefetch_gives_the_steps_in_order_from_any_step():
    batches = TrainBatches(mixed(100), batch=8, buckets=(16, 64), seeds=(0, 1))
    for start, stop in [(0, 30), (17, 40), (5, 5)]:
        got = list(prefetch(batches, start, stop))
        assert len(got) == stop - start
        for step, b in zip(range(start, stop), got, strict=True):
            assert type(b) is type(batches[step])
            for a, expected in zip(b, batches[step], strict=True):
                np.testing.assert_array_equal(a, expected)
