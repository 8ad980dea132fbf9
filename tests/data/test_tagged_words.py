"""Tokens and labels of sentences whose words have tags."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lora_jax.data.batches import EvalBatches, TrainBatches
from lora_jax.data.tagged_words import TaggedWords, group_by_text
from lora_jax.data.tokens import IGNORED, tokenize_words
from lora_jax.errors import UserError

X = IGNORED


@pytest.fixture(scope="module")
def tokenizer():
    """Splits words into letters, tokens 3 to 12, and drops dots; saved with settings that must not matter."""
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, **{letter: 3 + i for i, letter in enumerate("abcdefghij")}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    made.normalizer = normalizers.Replace(".", "")
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.enable_padding(length=20)
    made.enable_truncation(3)
    return made


def rows_of(encoded):
    return [
        (encoded[i].tolist(), encoded.labels[encoded.offsets[i] : encoded.offsets[i + 1]].tolist())
        for i in range(len(encoded))
    ]


def test_a_word_is_labelled_at_its_first_token(tokenizer):
    before = tokenizer.to_str()
    sentences = TaggedWords([["ab", "c", "ab"], ["ba"]], [[5, 0, 6], [7]])
    assert rows_of(tokenize_words(sentences, tokenizer, 16)) == [
        ([1, 3, 4, 5, 3, 4, 2], [X, 5, X, 0, 6, X, X]),
        ([1, 4, 3, 2], [X, 7, X, X]),
    ]
    assert tokenizer.to_str() == before


def test_words_that_are_cut_or_dropped_have_no_label(tokenizer):
    sentences = TaggedWords([["ab", "cde", "f"], ["a", ".", "b"], ["..."], []], [[1, 2, 3], [4, 5, 6], [7], []])
    assert rows_of(tokenize_words(sentences, tokenizer, 6)) == [
        ([1, 3, 4, 5, 6, 2], [X, 1, X, 2, X, X]),
        ([1, 3, 4, 2], [X, 4, 6, X]),
        ([1, 2], [X, X]),
        ([1, 2], [X, X]),
    ]


def test_what_leaves_nothing_is_refused(tokenizer):
    with pytest.raises(UserError, match="max_length=2: the tokenizer adds 2 special tokens"):
        tokenize_words(TaggedWords([["a"]], [[0]]), tokenizer, 2)
    with pytest.raises(UserError, match=r"text 1 .*has a lone surrogate; expected Unicode"):
        tokenize_words(TaggedWords([["a"], ["a", "b\ud800"]], [[0], [0, 0]]), tokenizer, 8)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.post_processor = processors.TemplateProcessing("$A", special_tokens=[])
    with pytest.raises(UserError, match=r"text 1 \('\.'\) has no token"):
        tokenize_words(TaggedWords([["a"], ["."]], [[0], [0]]), plain, 8)


def test_batches_pad_labels_as_tokens_are_padded(tokenizer):
    letters = ["abc", "d", "ef", "ghij"]
    sentences = TaggedWords([letters[: 1 + i % 4] for i in range(11)], [list(range(1 + i % 4)) for i in range(11)])
    encoded = tokenize_words(sentences, tokenizer, 12)
    batches = TrainBatches(encoded, batch=4, buckets=(8, 12), seeds=(0, 1))
    for step in range(4):
        drawn = batches[step]
        assert drawn.tokens.shape == drawn.labels.shape == drawn.mask.shape and drawn.labels.dtype == np.int32
        first = np.isin(drawn.tokens, [3, 6, 7, 9])  # a, d, e and g begin the words, which have tags 0 to 3
        assert ((drawn.labels != X) == first).all()
        assert drawn.labels[first].tolist() == [{3: 0, 6: 1, 7: 2, 9: 3}[token] for token in drawn.tokens[first]]
    evaluation = EvalBatches(encoded, batch=4, buckets=(8, 12))
    rows = [np.stack([b.batch.labels] * 2) for b in evaluation]
    assert {row.shape[-1] for row in rows} == {8, 12}
    # What is restored from batches of different lengths is padded to the longest, with no label.
    expected = encoded.padded(np.arange(11), 12, 0).labels
    np.testing.assert_array_equal(evaluation.restore(rows, axis=1), [expected] * 2)


def test_values_are_grouped_by_text():
    assert group_by_text("abcde", [2, 0, 3]) == [["a", "b"], [], ["c", "d", "e"]]
