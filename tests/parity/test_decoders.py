"""Decoder families here and in Hugging Face's transformers, on small random checkpoints, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from lora_jax.adapters import Replacement
from lora_jax.delta import graft, parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES
from lora_jax.models.options import ComputeOptions
from lora_jax.models.rope import ROPE_TYPES, read_rope
from lora_jax.targets import place, sites
from lora_jax.weights import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 12,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
GPT2 = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 0}  # the default ids are beyond so small a vocabulary
NEOX = {key: SHAPE[key] for key in SHAPE if key not in ("num_key_value_heads", "head_dim")} | {"rotary_pct": 0.5}

CASES = {
    "llama-odd-heads": ("llama", SHAPE),
    "llama-grouped-tied": (
        "llama",
        SHAPE | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": True},
    ),
    "llama-one-kv-head-wide-heads": (
        "llama",
        SHAPE | {"num_key_value_heads": 1, "head_dim": 20, "attention_bias": True, "mlp_bias": True},
    ),
    "llama3-scaled-rope": ("llama", SHAPE | {"num_key_value_heads": 1, "rope_parameters": LLAMA3}),
    "llama-linear-rope": ("llama", SHAPE | {"rope_parameters": LINEAR, "rms_norm_eps": 1e-3}),
    "qwen2": ("qwen2", SHAPE | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", SHAPE | {"num_key_value_heads": 1, "head_dim": 16}),
    "gpt2": ("gpt2", GPT2 | {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 17}),
    "gpt2-inner": (
        "gpt2",
        GPT2 | {"n_embd": 24, "n_layer": 1, "n_head": 1, "n_positions": 40, "n_inner": 20},
    ),
    "gpt-neox": ("gpt_neox", NEOX),
    "gpt-neox-one-after-another": (
        "gpt_neox",
        NEOX
        | {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_fast"}
        | {"rotary_pct": 1.0, "rope_parameters": LINEAR},
    ),
    # Without a pad token: the row that torch calls padding gets no gradient.
    "gemma": ("gemma", SHAPE | {"num_key_value_heads": 1, "head_dim": 16, "pad_token_id": None}),
    "gemma2": (
        "gemma2",
        SHAPE
        | {"num_key_value_heads": 1, "sliding_window": 5, "query_pre_attn_scalar": 30, "pad_token_id": None}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": False},
    ),
    "gemma3": (
        "gemma3_text",
        SHAPE
        | {"num_attention_heads": 9, "num_key_value_heads": 3, "sliding_window": 4, "query_pre_attn_scalar": 20}
        | {"layer_types": ["sliding_attention", "full_attention"], "pad_token_id": None}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            }
        },
    ),
}


def save(folder, kind: str, values: dict, *, make=transformers.AutoModelForCausalLM.from_config):
    """A random checkpoint of `kind` in `folder`, with a tokenizer, and the model that made it."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **values)
    config._attn_implementation = "eager"
    model = make(config).float().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            norm = "norm" in name or "ln_" in name
            value.add_(torch.randn_like(value) * (0.3 if norm or value.ndim == 1 else 1.5 * value.shape[-1] ** -0.5))
    model.save_pretrained(folder)
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    return model


def batch(vocabulary: int, width: int = 17):
    """Rows without padding, with padding on the right, on the left, and on both sides."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, (4, width), dtype=np.int32)
    mask = np.ones((4, width), bool)
    mask[1, 11:] = mask[2, :5] = mask[3, :3] = mask[3, 14:] = False
    return tokens, mask


def loss_weights(mask):
    """Which tokens have a next one to predict."""
    return mask[:, :-1] & mask[:, 1:]


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(case, tmp_path):
    kind, values = CASES[case]
    theirs = save(tmp_path, kind, values)
    base = load.load_base(str(tmp_path), kind, head="causal")
    tokens, mask = batch(values["vocab_size"])
    weight = loss_weights(mask)

    def loss_of(model):
        logits = model(tokens, mask)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1)[..., 0]
        return -jnp.sum(jnp.where(weight, chosen, 0)) / weight.sum(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(base.model)

    ids, positions = torch.tensor(tokens).long(), torch.tensor(np.maximum(mask.cumsum(-1) - 1, 0))
    expected = theirs(ids, attention_mask=torch.tensor(mask).long(), position_ids=positions).logits
    chosen = torch.log_softmax(expected[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    (-(chosen * torch.tensor(weight)).sum() / int(weight.sum())).backward()
    expected = expected.detach().numpy()
    assert np.abs(np.asarray(logits) - expected)[mask].max() < 1e-4 * np.abs(expected[mask]).max()
    assert np.ptp(expected[mask]) > 1  # so the bound says something

    # The gradients, saved as a checkpoint is and read as a checkpoint is, are of one shape and one name with ours.
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(value.grad)
    theirs.save_pretrained(tmp_path)
    gradients = parameters(load.load_base(str(tmp_path), kind, head="causal").model)
    for path, ours in parameters(grads).items():
        difference = np.abs(np.asarray(ours) - np.asarray(gradients[path])).max()
        largest = np.abs(gradients[path]).max()
        # Softmax is blind to a key's bias, so its gradient is rounding alone.
        assert path.endswith("k/bias") or largest > 1e-6, path
        assert difference < 1e-3 * largest or largest < 1e-6, (path, difference, largest)


@pytest.mark.parametrize("case", CASES)
def test_targets_have_one_name_in_every_family(case):
    kind, values = CASES[case]
    row = FAMILIES[kind]
    fields = {field.name for field in dataclasses.fields(row.config)}
    config = row.config(**{key: value for key, value in ({"model_type": kind} | values).items() if key in fields})
    model = jax.eval_shape(lambda: _Holder(row.module(config)))
    for name in ("q", "k", "v", "o"):
        assert set(place(model, name, 2, float)) == {f"backbone/layers/attn/{name}"}
    mlp = {path for path in sites(model) if "/mlp/" in path}
    assert set(place(model, "mlp", 2, float)) == mlp and len(mlp) >= 2
    assert set(place(model, "all", 2, float)) == mlp | {f"backbone/layers/attn/{name}" for name in "qkvo"}


class _Holder(load.nnx.Module):
    def __init__(self, backbone):
        self.backbone = backbone


FAMILIES_TRIED = {"llama": "llama3-scaled-rope", "gpt2": "gpt2", "gemma3_text": "gemma3", "gpt_neox": "gpt-neox"}


@pytest.fixture(scope="module")
def each_family(tmp_path_factory):
    """One causal language model a family, loaded."""
    bases = {}
    for case in FAMILIES_TRIED.values():
        kind, values = CASES[case]
        folder = tmp_path_factory.mktemp(kind)
        save(folder, kind, values)
        bases[kind] = load.load_base(str(folder), kind, head="causal").model
    return bases


@pytest.mark.parametrize("kind", FAMILIES_TRIED)
def test_decoding_with_a_cache_equals_the_full_forward_pass(kind, each_family):
    model = each_family[kind]
    tokens, mask = batch(61)
    mask[:, 14:] = True  # what is generated
    whole = np.asarray(jax.jit(lambda model: model(tokens, mask))(model))
    step = jax.jit(lambda model, tokens, mask, cache: model(tokens, mask, cache=cache))
    logits, cache = step(model, tokens[:, :14], mask[:, :14], model.backbone.empty_cache(4, 17))
    pieces = [logits]
    for i in range(14, 17):
        logits, cache = step(model, tokens[:, i : i + 1], mask[:, i : i + 1], cache)
        pieces.append(logits)
    got = np.asarray(jnp.concatenate(pieces, 1))
    assert int(cache.length) == 17
    np.testing.assert_allclose(got[mask], whole[mask], atol=2e-5 * np.abs(whole).max())


@pytest.mark.parametrize("kind", FAMILIES_TRIED)
def test_packed_sequences_do_not_attend_to_each_other(kind, each_family):
    model = each_family[kind]
    tokens, _ = batch(61)
    lengths = (5, 4, 8)
    segments = np.repeat(np.arange(3), lengths)[None].repeat(4, 0)
    packed = jax.jit(lambda model: model(tokens, np.ones_like(tokens, bool), segments=segments))(model)
    start = 0
    for length in lengths:
        alone = model(tokens[:, start : start + length], np.ones((4, length), bool))
        part = packed[:, start : start + length]
        np.testing.assert_allclose(part, alone, atol=2e-5 * float(jnp.abs(alone).max()))
        start += length


@pytest.mark.parametrize("kind", FAMILIES_TRIED)
def test_a_later_token_changes_no_earlier_logit(kind, each_family):
    tokens, mask = batch(61)
    changed = np.where(np.arange(17) >= 9, (tokens + 1) % 61, tokens)
    forward = jax.jit(lambda model, tokens: model(tokens, mask))
    one, other = (np.asarray(forward(each_family[kind], t)) for t in (tokens, changed))
    early = mask & (np.arange(17) < 9)  # the output at padding has no meaning
    np.testing.assert_array_equal(one[early], other[early])
    assert not np.allclose(one[:, 9:], other[:, 9:])


@pytest.mark.parametrize("kind", FAMILIES_TRIED)
def test_unrolling_dtype_and_dropout(kind, each_family):
    model = each_family[kind]
    tokens, mask = batch(61)
    plain = np.asarray(model(tokens, mask))
    np.testing.assert_allclose(
        np.asarray(model(tokens, mask, options=ComputeOptions(unroll=2)))[mask], plain[mask], atol=1e-5 * plain.max()
    )
    half = model(tokens, mask, options=ComputeOptions(jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert np.abs(np.asarray(half) - plain)[mask].mean() < 0.1 * np.abs(plain).mean()
    key = jax.random.key(0)
    np.testing.assert_allclose(
        model(tokens, mask, dropout_rate=0.0, key=key)[mask], plain[mask], atol=1e-5 * plain.max()
    )
    assert not np.allclose(model(tokens, mask, dropout_rate=0.5, key=key)[mask], plain[mask], atol=0.1)


def test_a_decoder_classifies_by_its_last_token(tmp_path):
    kind, values = CASES["llama-odd-heads"]
    make = transformers.AutoModelForSequenceClassification.from_config
    theirs = save(tmp_path, kind, values | {"num_labels": 5, "pad_token_id": 0}, make=make)
    model = load.load_base(str(tmp_path), kind, labels=5, pool="last").model
    model = graft(model, {"head/kernel": Replacement(jnp.asarray(theirs.score.weight.detach().numpy().T))})
    tokens, mask = batch(61)
    tokens = np.where(mask, np.maximum(tokens, 1), 0)  # transformers finds the last token by its id
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long()).logits.numpy()
    ours = np.asarray(model(tokens, mask))
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def test_unsupported_settings_are_errors(tmp_path):
    kind, values = CASES["qwen2"]
    save(tmp_path, kind, values | {"use_sliding_window": True})
    with pytest.raises(UserError, match=r"use_sliding_window=True is not supported"):
        load.load_base(str(tmp_path), kind, head="causal")
    save(tmp_path, kind, values)
    with pytest.raises(UserError, match=r"pool='first': qwen2 has no pooler"):
        load.load_base(str(tmp_path), kind, labels=2, pool="first")
    with pytest.raises(UserError, match=r"labels=None: must be 1 or more"):
        load.load_base(str(tmp_path), kind)
    with pytest.raises(UserError, match=r"head='causal': model.family='bert' carries .*; causal goes on .*llama"):
        load.load_base(str(tmp_path), "bert", head="causal")
    with pytest.raises(ValueError, match=f"rope_type='yarn' is not supported; must be one of {', '.join(ROPE_TYPES)}"):
        read_rope(10000.0, {"rope_type": "yarn", "factor": 2.0})
    with pytest.raises(ValueError, match="rope_type='linear' needs factor"):
        read_rope(10000.0, {"type": "linear"})
    with pytest.raises(ValueError, match=r"rotary_pct=0.25 of heads of width 12 is 3 dimensions"):
        FAMILIES["gpt_neox"].config(61, 36, 40, 2, 3)
