"""Heads here and in Hugging Face's transformers, on small random checkpoints of every family, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import parity.test_decoders as decoders
import parity.test_encoders as encoders
import pytest

from lora_jax.delta import graft, parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES
from lora_jax.models.options import ComputeOptions
from lora_jax.train.losses import IGNORED, cross_entropy, squared_error, token_cross_entropy
from lora_jax.weights.load import load_base

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LABELS = encoders.LABELS
ENCODERS = {
    "bert": ("bert", encoders.SMALL),
    "bert, odd heads": ("bert", encoders.SMALL | encoders.ODD | {"type_vocab_size": 3}),
} | encoders.TEXT
DECODERS = {
    name: (kind, values | {"pad_token_id": 1})
    for name, (kind, values) in decoders.CASES.items()
    if name in ("llama-grouped-tied", "qwen2", "qwen3", "gpt2", "gpt-neox", "gemma", "gemma2", "gemma3")
}
CASES = ENCODERS | DECODERS
# Where sequences are classified in test_parity_encoders.py already, or transformers has no such model.
CLASSES = [name for name in CASES if name not in encoders.TEXT]
TOKENS = [name for name in CASES if name != "gemma3"]


def batch(vocabulary: int):
    """Rows without padding, with padding on the right, on the left, and on both sides: that is token 1."""
    tokens, mask = decoders.batch(vocabulary)
    return np.where(mask, np.maximum(tokens, 2), 1), mask


def both(case: str, folder, make, **settings):
    """The reference, ours with its head on, and the arguments that both are called with."""
    kind, values = CASES[case]
    reference = decoders.save(folder, kind, values | settings, make=make.from_config)
    tokens, mask = batch(values["vocab_size"])
    given = {"input_ids": torch.tensor(tokens).long(), "attention_mask": torch.tensor(mask).long()}
    if case in DECODERS:  # which here take positions from the mask
        given["position_ids"] = torch.tensor(np.maximum(mask.cumsum(-1) - 1, 0))
    head = "token_classifier" if make is transformers.AutoModelForTokenClassification else "classifier"
    pool = "first" if case in ENCODERS else "last"
    base = load_base(str(folder), kind, labels=settings["num_labels"], pool=pool, head=head)
    base_model = reference.base_model
    assert base.parameters == sum(value.numel() for value in base_model.parameters())
    return reference, graft(base.model, encoders.replaced(encoders.head_of(reference))), given, (tokens, mask)


def assert_gradients(case: str, grads, reference, loss, folder) -> None:
    """Of the head, and of every kernel and embedding below it."""
    ours, kind = parameters(grads), CASES[case][0]
    encoders.gradients(reference, loss, folder)
    for path, theirs in encoders.head_of(reference, lambda parameter: parameter.grad).items():
        encoders.assert_close(ours[path], theirs, within=1e-3, what=f"gradient of {path}")
    theirs = parameters(load_base(str(folder), kind, labels=1, head="token_classifier").model.backbone)
    encoders.assert_gradients(ours, theirs)


@pytest.mark.parametrize("case", CLASSES)
def test_sequence_classification(case, tmp_path):
    make = transformers.AutoModelForSequenceClassification
    reference, model, given, texts = both(case, tmp_path, make, num_labels=LABELS)
    labels = np.arange(4) % LABELS
    _compare_sequences(case, tmp_path, reference, model, given, texts, labels, cross_entropy)


@pytest.mark.parametrize(("case", "values"), [("bert", 1), ("roberta", 3), ("deberta v3", 1), ("qwen3", 3)])
def test_regression(case, values, tmp_path):
    make = transformers.AutoModelForSequenceClassification
    settings = {"num_labels": values, "problem_type": "regression"}
    reference, model, given, texts = both(case, tmp_path, make, **settings)
    targets = np.random.default_rng(1).normal(size=(4, values)).astype(np.float32)
    _compare_sequences(case, tmp_path, reference, model, given, texts, targets, squared_error)


def _compare_sequences(case, folder, reference, model, given, texts, labels, losses):
    # Where an encoder's first token is padding, its state is of no account, and torch gives padding no gradient.
    counting = texts[1][:, 0] if case in ENCODERS else np.ones(4, bool)

    def loss_of(model):
        logits = model(*texts)
        return losses(logits[counting], labels[counting]).mean(), logits

    grads, logits = jax.jit(jax.grad(loss_of, has_aux=True))(model)
    given = {name: value[counting] for name, value in given.items()}
    theirs = reference(**given, labels=torch.tensor(labels[counting]))
    encoders.assert_close(np.asarray(logits)[counting], theirs.logits.detach(), within=1e-4, what="logits")
    assert_gradients(case, grads, reference, theirs.loss, folder)


@pytest.mark.parametrize("case", TOKENS)
def test_token_classification(case, tmp_path):
    make = transformers.AutoModelForTokenClassification
    reference, model, given, (tokens, mask) = both(case, tmp_path, make, num_labels=LABELS)
    rng = np.random.default_rng(1)
    labels = np.where(mask & (rng.random(mask.shape) < 0.7), rng.integers(0, LABELS, mask.shape), IGNORED)

    def loss_of(model):
        logits = model(tokens, mask)
        losses, counts, _ = token_cross_entropy(lambda logits: logits, logits, labels)
        return losses.sum() / counts.sum(), logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(model)
    theirs = reference(**given, labels=torch.tensor(np.where(labels == IGNORED, -100, labels)))
    encoders.assert_close(np.asarray(logits)[mask], theirs.logits.detach()[mask], within=1e-4, what="logits")
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=1e-5)
    assert_gradients(case, grads, reference, theirs.loss, tmp_path)


@pytest.mark.parametrize("case", ["bert", "llama-grouped-tied"])
@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_sentence_embedding(case, pool, tmp_path):
    kind, values = CASES[case]
    reference = decoders.save(tmp_path, kind, values, make=transformers.AutoModel.from_config)
    base = load_base(str(tmp_path), kind, pool=pool, head="embedding")
    assert base.parameters == sum(value.numel() for value in reference.parameters())
    tokens, mask = batch(values["vocab_size"])
    hidden = np.asarray(base.model.backbone(tokens, mask))
    states = [
        {"mean": row[keep].mean(0), "first": row[keep][0], "last": row[keep][-1]}
        for row, keep in zip(hidden, mask, strict=True)
    ]
    expected = np.stack([state[pool] / np.linalg.norm(state[pool]) for state in states])
    np.testing.assert_allclose(base.model(tokens, mask), expected, atol=1e-6)
    assert base.model(tokens, mask, options=ComputeOptions(jnp.bfloat16)).dtype == jnp.float32


def test_a_dropped_out_token_head(tmp_path):
    _, model, _, texts = both("bert", tmp_path, transformers.AutoModelForTokenClassification, num_labels=LABELS)
    apply = jax.jit(lambda rate, seed: model(*texts, dropout_rate=rate, key=jax.random.key(seed)))
    np.testing.assert_allclose(apply(0.0, 0), model(*texts), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(apply(0.3, 0), apply(0.3, 0))
    assert not np.allclose(apply(0.3, 0), apply(0.3, 1))


@pytest.mark.parametrize(
    ("family", "settings", "complaint"),
    [
        (
            "vit",
            {"head": "token_classifier", "labels": 2},
            "head='token_classifier': model.family='vit' carries classifier; .* goes on bert",
        ),
        (
            "bert",
            {"head": "causal"},
            "head='causal': model.family='bert' carries classifier, token_classifier, embedding, masked; ",
        ),
        ("llama", {"head": "masked"}, "causal; masked goes on bert, roberta, deberta-v2$"),
        (
            "bert",
            {"head": "regression"},
            "head='regression': model.family='bert' carries .*; regression goes on no family",
        ),
        ("bert", {"head": "token_classifier"}, "labels=None: must be 1 or more"),
        ("bert", {"head": "embedding", "pool": "max"}, "pool='max': must be one of mean, first, last"),
    ],
)
def test_a_head_that_cannot_be_is_refused(family, settings, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        load_base(str(tmp_path), family, **settings)


def test_every_family_says_which_heads_it_carries():
    assert {head for row in FAMILIES.values() for head in row.heads} == {
        "classifier",
        "token_classifier",
        "embedding",
        "causal",
        "masked",
    }
