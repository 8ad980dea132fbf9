"""RoBERTa and DeBERTa here and in Hugging Face's transformers, on small random weights: the same numbers.

The reference is saved with `save_pretrained` and loaded from there, so the tables of names are put to the test too.
"""

import copy
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lora_jax.adapters import LowRank, Replacement
from lora_jax.delta import graft, merge, parameters
from lora_jax.errors import UserError
from lora_jax.methods.method import init_head
from lora_jax.models import deberta, roberta
from lora_jax.models.options import ComputeOptions
from lora_jax.targets import sites
from lora_jax.weights.load import load_base

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS, LABELS, BATCH, TOKENS = 99, 5, 4, 20
SMALL = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4} | {
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
ODD = {"hidden_size": 30, "num_attention_heads": 3, "num_hidden_layers": 2}
DEBERTA = SMALL | {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
TEXT = {
    "roberta": ("roberta", SMALL | {"type_vocab_size": 1}),
    "roberta, odd heads": ("roberta", SMALL | ODD | {"type_vocab_size": 2, "layer_norm_eps": 1e-5}),
    "deberta v3": ("deberta-v2", DEBERTA),
    "deberta v2, convolution": ("deberta-v2", DEBERTA | {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta, odd heads, no buckets": (
        "deberta-v2",
        DEBERTA
        | ODD
        | {"conv_kernel_size": 5, "pos_att_type": ["c2p", "p2c"]}
        | {"position_buckets": -1, "max_relative_positions": 12},
    ),
}


def randomise(model) -> None:
    """Weights with some life in them: transformers' own start makes scores and logits nearly constant."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.15 if parameter.ndim > 1 else 0.1)


def gradients(model, loss, folder: Path) -> Path:
    """A checkpoint whose tensors are the gradients of `loss` with respect to the weights."""
    loss.backward()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for own, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            own.copy_(torch.zeros_like(own) if theirs.grad is None else theirs.grad)
    twin.save_pretrained(folder)
    return folder


def head_of(model, part=lambda parameter: parameter) -> dict[str, jax.Array]:
    """The reference's head as a delta; or a `part` of its parameters, such as their gradients."""
    found = {}
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier.", "pooler.", "score.")):
            *_, layer, kind = name.split(".")
            path = ("head/dense/" if layer == "dense" else "head/") + ("kernel" if kind == "weight" else "bias")
            found[path] = jnp.asarray(part(parameter).detach().numpy().T)
    return found


def replaced(values) -> dict[str, Replacement]:
    """The delta that puts these values in place of parameters."""
    return {path: Replacement(value) for path, value in values.items()}


def assert_close(ours, theirs, *, within: float, what: str) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert ours.shape == theirs.shape and difference < within, f"{what}: {difference:.1e} of the largest"


def assert_gradients(ours: dict, theirs: dict) -> None:
    """Those of every kernel and embedding."""
    compared = {path for path in theirs if path.endswith(("kernel", "embedding"))}
    assert len(compared) > 6
    for path in compared:
        assert_close(ours[f"backbone/{path}"], theirs[path], within=1e-3, what=f"gradient of {path}")


def first_layers(backbone, count: int):
    """`backbone` without its later layers."""
    short = jax.tree.map(lambda leaf: leaf, backbone)
    short.layers = jax.tree.map(lambda leaf: leaf[:count], backbone.layers)
    short.config = dataclasses.replace(backbone.config, num_hidden_layers=count)
    return short


@pytest.fixture(scope="module", params=list(TEXT))
def text(request, tmp_path_factory):
    """The family, the reference and its folder, and ours."""
    family, settings = TEXT[request.param]
    config = transformers.AutoConfig.for_model(family, **settings, num_labels=LABELS)
    reference = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    randomise(reference)
    folder = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(folder)
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    base = load_base(str(folder), family, labels=LABELS, pool="first").model
    assert set(head_of(reference)) == {path for path in parameters(base) if path.startswith("head/")}
    return family, reference, graft(base, replaced(head_of(reference)))


def batch(side: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and a mask, one row whole and the others padded on `side`, or both, with RoBERTa's padding, 1."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, WORDS, (BATCH, TOKENS)).astype(np.int32)
    mask = np.arange(TOKENS) < np.array([[TOKENS], [13], [1], [7]])
    mask = {"right": mask, "left": np.flip(mask, 1).copy(), "both": np.roll(mask, 4, axis=1)}[side]
    return np.where(mask, tokens, 1), mask


@pytest.mark.parametrize("side", ["right", "left", "both"])
def test_hidden_states_of_texts(text, side):
    _, reference, model = text
    tokens, mask = batch(side)
    with torch.no_grad():
        theirs = reference.base_model(
            torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(), output_hidden_states=True
        ).hidden_states
    last = len(theirs) - 1
    for count in range(1, last + 1) if side == "right" else [last]:
        hidden = jax.jit(lambda m: m(tokens, mask))(first_layers(model.backbone, count))
        assert_close(np.asarray(hidden)[mask], theirs[count].numpy()[mask], within=1e-4, what=f"after layer {count}")


def test_logits_and_gradients_of_texts(text, tmp_path):
    family, reference, model = text
    tokens, mask = batch("right")
    labels = np.arange(BATCH) % LABELS
    theirs = reference(
        torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(), labels=torch.tensor(labels)
    )

    def loss(m):
        logits = m(tokens, mask)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(model)
    assert_close(logits, theirs.logits.detach(), within=1e-4, what="logits")
    ours = parameters(grads)
    folder = gradients(reference, theirs.loss, tmp_path)
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    assert_gradients(ours, parameters(load_base(str(folder), family, labels=LABELS).model.backbone))


def test_a_bare_encoder_loads(tmp_path):
    """Without a head, transformers saves names without the model's own before them."""
    for family, (_, settings) in zip(("roberta", "deberta-v2"), (TEXT["roberta"], TEXT["deberta v3"]), strict=True):
        folder = tmp_path / family
        whole = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, **settings))
        whole.save_pretrained(folder)
        Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
        backbone = load_base(str(folder), family, labels=2).model.backbone
        np.testing.assert_array_equal(
            backbone.embed.word.embedding[...], whole.embeddings.word_embeddings.weight.detach().numpy()
        )


@pytest.mark.parametrize("text", ["roberta", "deberta v2, convolution"], indirect=True)
def test_dropout_is_drawn_anew_everywhere(text):
    _, _, model = text
    tokens, mask = batch("right")
    apply = jax.jit(lambda m, rate, key: m(tokens, mask, dropout_rate=rate, key=key))
    whole = apply(model, 0.0, None)
    np.testing.assert_allclose(apply(model, 0.0, jax.random.key(0)), whole, rtol=1e-5, atol=1e-5)
    one, again, other = (apply(model, 0.3, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one, whole)


@pytest.mark.parametrize("text", ["roberta", "deberta v2, convolution"], indirect=True)
def test_what_is_masked_does_not_matter(text):
    _, _, model = text
    tokens, mask = batch("right")
    apply = jax.jit(lambda m, tokens: m(tokens, mask))
    np.testing.assert_array_equal(apply(model, tokens), apply(model, np.where(mask, tokens, 0)))


def pairs(model, seed: int) -> dict:
    """A LoRA of rank 2 on all that can have one and be merged: embeddings, DeBERTa's convolution, ViT's patches."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape, scale=0.2), jnp.float32)

    found = {}
    for path, site in sites(model).items():
        if path == getattr(model, "tied", None):
            continue
        lead = () if site.layers is None else (site.layers,)
        found[f"{path}/adapter"] = LowRank(draw(*lead, site.d_in, 2), draw(*lead, 2, site.d_out))
    return found


def assert_adapts(model, *inputs) -> None:
    """Grafted equals merged, two deltas packed equal each alone, and both differ from the base."""
    deltas = [pairs(model, seed) for seed in (0, 1)]
    apply = jax.jit(lambda m: m(*inputs))
    merged = [apply(merge(model, delta)) for delta in deltas]
    packed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *deltas)
    ours = jax.jit(jax.vmap(lambda m, delta: graft(m, delta)(*inputs), in_axes=(None, 0)))(model, packed)
    for own, whole in zip(ours, merged, strict=True):
        assert_close(own, whole, within=1e-4, what="grafted and merged")
    assert np.abs(np.asarray(merged) - np.asarray(apply(model))).max() > 0.1
    narrow = jax.jit(lambda m: m(*inputs, options=ComputeOptions(jnp.bfloat16)))(model)
    assert narrow.dtype == jnp.float32
    assert_close(narrow, apply(model), within=0.1, what="bfloat16")


@pytest.mark.parametrize("text", ["roberta", "deberta v2, convolution"], indirect=True)
def test_deltas_on_texts(text):
    _, _, model = text
    assert_adapts(model, *batch("right"))


def test_roberta_refuses_a_text_beyond_its_positions():
    config = roberta.RobertaConfig(50, 16, 1, 2, 16, max_position_embeddings=10)
    model = jax.eval_shape(lambda: roberta.Roberta(config))
    for tokens in (8, 9):
        shape = (jnp.zeros((1, tokens), jnp.int32), jnp.ones((1, tokens), bool))
        if tokens == 8:
            jax.eval_shape(lambda m, shape=shape: m(*shape), model)
        else:
            with pytest.raises(UserError, match="9 tokens: this Roberta has positions for 8"):
                jax.eval_shape(lambda m, shape=shape: m(*shape), model)


@pytest.mark.parametrize("settings", [{}, {"max_relative_positions": 300}, {"position_buckets": 32}])
def test_deberta_buckets_at_full_length(settings):
    """Where a logarithm is rounded up, one wrong bit would move a distance to another bucket."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    settings = DEBERTA | {"position_buckets": 256, "max_position_embeddings": 512} | settings
    names = {field.name for field in dataclasses.fields(deberta.DebertaConfig)}
    settings |= {"layer_norm_eps": 1e-7, "hidden_act": "gelu"}
    config = deberta.DebertaConfig(**{name: value for name, value in settings.items() if name in names})
    tokens = 700
    theirs = build_relative_position(
        torch.zeros(tokens, 1), torch.zeros(tokens, 1), config.position_buckets, config.max_distance
    )[0].numpy()
    ours = deberta.distance_buckets(tokens, config)
    np.testing.assert_array_equal(ours[tokens - 1 :], theirs[:, 0].clip(-config.span, config.span - 1))
    np.testing.assert_array_equal(ours[: tokens - 1], theirs[0, 1:][::-1].clip(-config.span, config.span - 1))


@pytest.mark.parametrize(
    "change",
    [{"share_att_key": False}, {"pos_att_type": "c2p"}, {"position_biased_input": True}, {"conv_act": "relu"}],
)
def test_deberta_refuses_what_it_does_not_compute(change, tmp_path):
    config = transformers.AutoConfig.for_model("deberta-v2", **(DEBERTA | {"conv_kernel_size": 3} | change))
    config.save_pretrained(tmp_path)
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=next(iter(change))):
        load_base(str(tmp_path), "deberta-v2", labels=2)


@pytest.mark.parametrize("text", ["roberta", "deberta v3"], indirect=True)
def test_every_layer_of_a_head_starts_anew(text):
    _, _, model = text
    fresh, same, other = (
        {path: adapter.value for path, adapter in init_head(model, seed).items()} for seed in (0, 0, 1)
    )
    assert set(fresh) == {"head/dense/kernel", "head/dense/bias", "head/kernel", "head/bias"}
    for path, value in fresh.items():
        np.testing.assert_array_equal(value, same[path])
        if path.endswith("kernel"):
            assert 0.01 < np.std(value) < 0.03 and not np.allclose(value, other[path])
        else:
            assert not np.any(value)
