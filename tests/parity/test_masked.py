"""Masked language modelling here and in Hugging Face's transformers, on small random checkpoints, in float32."""

import jax
import numpy as np
import parity.test_decoders as decoders
import parity.test_encoders as encoders
import pytest
from parity.test_heads import batch
from safetensors.numpy import load_file, save_file

from lora_jax.delta import count, parameters
from lora_jax.errors import UserError
from lora_jax.methods.method import init_head
from lora_jax.train.losses import IGNORED, token_cross_entropy
from lora_jax.weights.load import load_base

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V3, V2 = encoders.TEXT["deberta v3"][1], encoders.TEXT["deberta v2, convolution"][1]
CASES = {
    "bert": ("bert", encoders.SMALL),
    "bert, odd heads": ("bert", encoders.SMALL | encoders.ODD),
    "roberta": encoders.TEXT["roberta"],
    "roberta, odd heads": encoders.TEXT["roberta, odd heads"],
    "deberta v3": ("deberta-v2", V3 | {"legacy": False}),
    "deberta v2, convolution": ("deberta-v2", V2 | {"legacy": False}),
    "deberta v3, legacy": ("deberta-v2", V3 | {"legacy": True}),
    "deberta, odd heads, legacy": (
        "deberta-v2",
        encoders.TEXT["deberta, odd heads, no buckets"][1] | {"legacy": True},
    ),
}


def both(case: str, folder, make=transformers.AutoModelForMaskedLM):
    """The reference, and ours."""
    kind, values = CASES[case]
    reference = decoders.save(folder, kind, values, make=make.from_config)
    return reference, load_base(str(folder), kind, head="masked")


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(case, tmp_path):
    reference, base = both(case, tmp_path)
    assert base.parameters == sum(value.numel() for value in reference.parameters()) == count(base.model)
    tokens, mask = batch(encoders.WORDS)
    rng = np.random.default_rng(1)
    labels = np.where(mask & (rng.random(mask.shape) < 0.4), rng.integers(0, encoders.WORDS, mask.shape), IGNORED)

    def loss_of(model):
        hidden = model.backbone(tokens, mask)
        losses, counts, _ = token_cross_entropy(model.logits, hidden, labels, chunk=24)
        return losses.sum() / counts.sum(), model.logits(hidden)

    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(base.model)
    theirs = reference(
        torch.tensor(tokens).long(),
        attention_mask=torch.tensor(mask).long(),
        labels=torch.tensor(np.where(labels == IGNORED, -100, labels)),
    )
    expected = theirs.logits.detach().numpy()[mask]
    encoders.assert_close(np.asarray(logits)[mask], expected, within=1e-4, what="logits")
    assert np.ptp(expected) > 1  # so the bound says something
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=1e-5)

    encoders.gradients(reference, theirs.loss, tmp_path)
    expected = parameters(load_base(str(tmp_path), CASES[case][0], head="masked").model)
    for path, ours in parameters(grads).items():
        if not path.endswith("k/bias"):  # softmax is blind to it: its gradient is rounding alone
            encoders.assert_close(ours, expected[path], within=1e-3, what=f"gradient of {path}")


def test_a_pretraining_checkpoint_of_old(tmp_path):
    """As Google's BERT is stored: with a pooler, a head for the next sentence, copies of what is tied, old names."""
    reference, _ = both("bert", tmp_path, transformers.AutoModelForPreTraining)
    file = tmp_path / "model.safetensors"
    tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in load_file(file).items()}
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    save_file(tensors, file)
    base = load_base(str(tmp_path), "bert", head="masked")
    assert base.parameters == sum(v.numel() for v in reference.parameters()) - 2 * 32 - 2  # less seq_relationship
    tokens, mask = batch(encoders.WORDS)
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long()).prediction_logits
    logits = np.asarray(jax.jit(lambda model: model(tokens, mask))(base.model))
    encoders.assert_close(logits[mask], theirs[mask], within=1e-4, what="logits")


@pytest.mark.parametrize("case", ["bert", "roberta", "deberta v3"])
def test_every_tensor_of_the_head_counts(case, tmp_path):
    both(case, tmp_path)
    kind, file = CASES[case][0], tmp_path / "model.safetensors"
    whole = load_file(file)
    (bias,) = (name for name in whole if name.endswith(".bias") and whole[name].shape == (encoders.WORDS,))
    odd = bias.removesuffix("bias") + "odd.weight"
    save_file({name: value for name, value in whole.items() if name != bias} | {odd: np.zeros(3)}, file)
    with pytest.raises(UserError) as complaint:
        load_base(str(tmp_path), kind, head="masked")
    assert f"missing:\n  {bias} [99], for lm_head/bias\nunused:\n  {odd} [3]" in str(complaint.value)
    load_base(str(tmp_path), kind, labels=2, head="token_classifier")  # which has no use for any of it


def test_an_untied_vocabulary_is_refused(tmp_path):
    values = encoders.SMALL | {"tie_word_embeddings": False}
    decoders.save(tmp_path, "bert", values, make=transformers.AutoModelForMaskedLM.from_config)
    with pytest.raises(UserError, match="tie_word_embeddings=False is not supported; must be True"):
        load_base(str(tmp_path), "bert", head="masked")


def test_deltas_on_a_pretrained_head(tmp_path):
    """LoRA reaches the head's dense layer, and nothing of it starts anew."""
    _, base = both("roberta", tmp_path)
    tokens, mask = batch(encoders.WORDS)
    assert init_head(base.model, 0) == {} and "lm_head/dense/adapter" in encoders.pairs(base.model, 0)
    encoders.assert_adapts(base.model, tokens, mask)
