"""How many parameters the encoders have, and how many LoRA trains of them, without allocating any."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from lora_jax.delta import count, parameters
from lora_jax.models import FAMILIES, deberta, roberta, vit
from lora_jax.models.heads import Classifier, ImageClassifier
from lora_jax.targets import place

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
DEBERTA: dict[str, Any] = {
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "pos_att_type": ["p2c", "c2p"],
    "hidden_act": "gelu",
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
V2_XXLARGE: dict[str, Any] = {
    "hidden_size": 1536,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
}
VIT: dict[str, Any] = {"image_size": 224, "patch_size": 16, "num_channels": 3, "layer_norm_eps": 1e-12} | {
    "hidden_act": "gelu"
}

# The family's name, its configuration, and the parameters of the backbone.
MODELS: dict[str, tuple[str, Any, int]] = {
    # 124,645,632 with the pooler, as transformers' RobertaModel has it: 768 x 768 + 768 more.
    "roberta-base": ("roberta", roberta.RobertaConfig(), 124_645_632 - 768 * 769),
    "roberta-large": ("roberta", roberta.RobertaConfig(**LARGE), 355_359_744 - 1024 * 1025),
    "deberta-v3-base": ("deberta-v2", deberta.DebertaConfig(**DEBERTA, **BASE), 183_831_552),
    "deberta-v3-large": ("deberta-v2", deberta.DebertaConfig(**DEBERTA, **LARGE), 434_012_160),
    "deberta-v2-xxlarge": ("deberta-v2", deberta.DebertaConfig(**DEBERTA, **V2_XXLARGE), 1_564_549_632),
    "vit-b16": ("vit", vit.VitConfig(**VIT, **BASE), 86_567_656 - 1000 * 769),
    "vit-l16": ("vit", vit.VitConfig(**VIT, **LARGE), 304_326_632 - 1000 * 1025),
}


@functools.cache
def abstract(name: str, labels: int = 2):
    """The model with a classifier's head, shapes only."""
    family, config, _ = MODELS[name]
    row = FAMILIES[family]
    if family == "vit":
        return jax.eval_shape(lambda: ImageClassifier(row.module(config), config.hidden_size, labels))
    return jax.eval_shape(
        lambda: Classifier(row.module(config), config.hidden_size, labels, pool="first", activation=row.activation)
    )


def trainable(name: str, targets: str, rank: int) -> int:
    """What the pairs of a LoRA hold."""
    return sum(
        int(placement.rank.sum()) * (placement.site.d_in + placement.site.d_out)
        for placement in place(abstract(name), targets, rank, float).values()
    )


@pytest.mark.parametrize("name", MODELS)
def test_backbones(name):
    model = abstract(name)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model))
    assert count(model.backbone) == MODELS[name][2]


def test_whole_classifiers():
    assert count(abstract("vit-b16", 1000)) == 86_567_656
    assert count(abstract("vit-l16", 1000)) == 304_326_632
    # transformers' RobertaForSequenceClassification with 2 labels: the backbone, a dense layer, a linear one.
    assert count(abstract("roberta-base")) == 124_645_632 + 2 * 769
    head = {path: leaf.shape for path, leaf in parameters(abstract("roberta-base")).items() if path.startswith("head/")}
    assert head == {
        "head/dense/kernel": (768, 768),
        "head/dense/bias": (768,),
        "head/kernel": (768, 2),
        "head/bias": (2,),
    }


@pytest.mark.parametrize(
    ("name", "rank", "expected"),
    # LoRA's table 2 (arXiv 2106.09685): 0.3M, 0.8M, 4.7M, on q and v.
    [("roberta-base", 8, 294_912), ("roberta-large", 8, 786_432), ("deberta-v2-xxlarge", 16, 4_718_592)],
)
def test_lora_on_q_and_v(name, rank, expected):
    assert trainable(name, "qv", rank) == expected


def test_lora_on_one_square_kernel():
    [found] = place(abstract("roberta-large"), "q@0", 8, float).values()
    assert (found.site.d_in, found.site.d_out) == (1024, 1024)
    own = trainable("roberta-large", "q@0", 8)
    assert own == 16_384 and round(1 - own / 1024**2, 3) == 0.984


def test_what_is_not_in_a_layer_is_a_site_too():
    """ViT's patch projection and DeBERTa's convolution, by a regular expression."""
    [patch] = place(abstract("vit-b16"), "re:/patch$", 4, float).values()
    assert (patch.site.path, patch.site.d_in, patch.site.d_out) == ("backbone/embed/patch", 768, 768)
    [conv] = place(abstract("deberta-v2-xxlarge"), "re:/conv/", 4, float).values()
    assert (conv.site.path, conv.site.d_in, conv.site.d_out) == ("backbone/conv/window", 3 * 1536, 1536)


@pytest.mark.parametrize("name", MODELS)
def test_heads_are_no_sites(name):
    assert not any("head" in path for path in place(abstract(name), "re:.", 1, float))


@pytest.mark.parametrize("name", MODELS)
def test_as_transformers_counts(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, config, _ = MODELS[name]
    keys = {key: value for key, value in vars(config).items() if key != "pos_att_type"}
    if family == "deberta-v2":
        keys["pos_att_type"] = list(config.pos_att_type)
    auto = transformers.AutoModelForImageClassification if family == "vit" else None
    auto = auto or transformers.AutoModelForSequenceClassification
    with torch.device("meta"):
        theirs = auto.from_config(transformers.AutoConfig.for_model(family, **keys, num_labels=2))
    assert count(abstract(name)) == sum(int(np.prod(value.shape)) for value in theirs.parameters())
