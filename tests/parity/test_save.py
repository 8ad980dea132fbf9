"""Folders that lora_jax.weights.save writes, loaded by Hugging Face's transformers: the same logits, in float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import TINY, VOCAB_SIZE, heads, tiny

from lora_jax.adapters import LowRank
from lora_jax.delta import graft, merge
from lora_jax.targets import place
from lora_jax.weights.save import save_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# transformers has no such class for Gemma 3.
CASES = [(name, head) for name in TINY for head in heads(name) if (name, head) != ("gemma3", "token_classifier")]


def load(folder, *, missing: str = ""):
    """The model of the class that config.json names: every tensor used, and none but `missing` made up."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    # BERT's pooler goes with the backbone, also under heads that do not read it.
    assert {key for key in info["unexpected_keys"] if ".pooler." not in key} == set() and not info["mismatched_keys"]
    assert all(missing and key.startswith(missing) for key in info["missing_keys"])
    assert model.dtype == torch.float32
    return model.eval()


def outputs(base, head: str, model, theirs):
    """Ours and theirs for two texts, one of them padded, or for two pictures."""
    rng = np.random.default_rng(0)
    if head == "embedding":
        model = model.backbone
    if base.config["model_type"] == "vit":
        pixels = rng.normal(size=(2, 12, 12, 3)).astype(np.float32)
        ours = jax.jit(lambda m: m(pixels))(model)
        with torch.no_grad():
            return np.asarray(ours), theirs(torch.tensor(pixels.transpose(0, 3, 1, 2))).logits.numpy()
    tokens = rng.integers(2, VOCAB_SIZE, (2, 9)).astype(np.int32)
    mask = np.ones((2, 9), bool)
    mask[1, 6:] = False
    tokens[~mask] = 1
    theirs.config.pad_token_id = 1
    ours = np.asarray(jax.jit(lambda m: m(tokens, mask))(model))
    with torch.no_grad():
        out = theirs(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
    other = out[0].numpy()
    return (ours, other) if ours.ndim == 2 else (ours[mask], other[mask])


@pytest.mark.parametrize(("name", "head"), CASES)
def test_every_family_and_head(name, head, tmp_path):
    base = tiny(name, head)
    save_pretrained(tmp_path / "model", base, largest_shard=30_000)
    theirs = load(tmp_path / "model", missing="pooler." if name in ("roberta", "vit") else "")  # no head reads it
    ours, expected = outputs(base, head, base.model, theirs)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
    if name != "vit":
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
        assert tokenizer("w3 w60 what")["input_ids"] == [3, 60, 0]
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
        chat = [{"role": "user", "content": "w5"}]
        assert tokenizer.apply_chat_template(chat, tokenize=False) == base.special.chat(chat)


@pytest.mark.parametrize(
    ("name", "head", "auto"),
    [
        ("gpt2", "causal", "AutoModelForCausalLM"),
        ("llama", "classifier", "AutoModelForSequenceClassification"),
        ("gemma3", "causal", "AutoModelForCausalLM"),
        ("roberta", "classifier", "AutoModelForSequenceClassification"),
        ("deberta-v2", "masked", "AutoModelForMaskedLM"),
        ("vit", "classifier", "AutoModelForImageClassification"),
    ],
)
def test_a_merged_lora(name, head, auto, tmp_path):
    """transformers computes what the base with the delta grafted on does here."""
    base, rng = tiny(name, head), np.random.default_rng(0)
    delta = {
        f"{path}/adapter": LowRank(
            jnp.asarray(0.3 * rng.normal(size=(2, placement.site.d_in, 3)), jnp.float32),
            jnp.asarray(0.3 * rng.normal(size=(2, 3, placement.site.d_out)), jnp.float32),
        )
        for path, placement in place(base.model, "all", 3, float).items()
    }
    assert len(delta) > 4
    save_pretrained(tmp_path / "model", base, merge(base.model, delta))
    theirs = getattr(transformers, auto).from_pretrained(tmp_path / "model").eval()
    grafted, expected = outputs(base, head, graft(base.model, delta), theirs)
    plain, _ = outputs(base, head, base.model, theirs)
    scale = np.abs(expected).max()
    assert np.abs(grafted - expected).max() < 1e-4 * scale < 1e-2 * np.abs(grafted - plain).max() * 100
    assert np.abs(plain - expected).max() > 1e-2 * scale
