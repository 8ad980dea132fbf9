"""LoRA on an embedding here and in Hugging Face's PEFT: the same start, the same numbers, the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lora_jax.delta import graft
from lora_jax.methods.lora import Lora
from lora_jax.weights.load import load_base

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

RANK, ALPHA, LAYERS = 3, 6, 2
SHAPE = {"vocab_size": 61, "hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": LAYERS} | {
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 12,
    "pad_token_id": None,
}
EMBED, QUERY = "backbone/embed/adapter", "backbone/layers/attn/q/adapter"


@pytest.mark.parametrize("kind, tied", [("llama", True), ("llama", False), ("gemma", True)])
def test_an_adapted_embedding_is_pefts(kind, tied, tmp_path, configure):
    """Where the table is the output layer too, both adapt the lookup alone. Gemma scales what it looks up."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SHAPE, tie_word_embeddings=tied)
    plain = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    plain.save_pretrained(tmp_path)
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    base = load_base(str(tmp_path), kind, head="causal").model

    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["embed_tokens", "q_proj"])
    theirs = peft.get_peft_model(plain, settings)
    table = theirs.get_submodule("base_model.model.model.embed_tokens")
    a, b = (getattr(table, f"lora_embedding_{name}")["default"] for name in "AB")
    run = configure(rank=RANK, alpha=ALPHA, targets="embed+q")
    start = Lora().init(base, run)
    pair = start.params[EMBED]
    # Both start A at zero and B at N(0, 1).
    assert not a.any() and not pair.a.any()
    assert 0.7 < float(b.std()) < 1.3 and 0.7 < float(pair.b.std()) < 1.3
    assert set(start.params) == {EMBED, QUERY}
    assert sum(leaf.size for leaf in jax.tree.leaves(start.params)) == sum(
        value.numel() for value in theirs.parameters() if value.requires_grad
    )

    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.3), jnp.float32), start.params)
    with torch.no_grad():
        a.copy_(torch.tensor(np.asarray(params[EMBED].a).T))
        b.copy_(torch.tensor(np.asarray(params[EMBED].b).T))
        for layer in range(LAYERS):
            query = theirs.get_submodule(f"base_model.model.model.layers.{layer}.self_attn.q_proj")
            query.lora_A["default"].weight.copy_(torch.tensor(np.asarray(params[QUERY].a[layer]).T))
            query.lora_B["default"].weight.copy_(torch.tensor(np.asarray(params[QUERY].b[layer]).T))

    tokens = rng.integers(0, 61, (2, 9)).astype(np.int32)
    expected = theirs(torch.tensor(tokens).long()).logits
    expected.square().mean().backward()

    def loss(params):
        logits = graft(base, Lora().materialise(params, start.constants))(tokens, np.ones_like(tokens, bool))
        return jnp.square(logits).mean(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    expected = expected.detach().numpy()
    assert np.abs(np.asarray(logits) - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(expected - np.asarray(base(tokens, np.ones_like(tokens, bool)))).max() > 0.1 * np.abs(expected).max()
    for ours, value in ((grads[EMBED].a, a), (grads[EMBED].b, b)):
        reference = value.grad.numpy().T
        np.testing.assert_allclose(ours, reference, atol=1e-3 * np.abs(reference).max())
