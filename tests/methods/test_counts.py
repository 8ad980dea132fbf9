"""How many parameters the named models have, and how many LoRA trains of them, counted without making one.

The tables are those of lora_jax/models/README.md: what it says is what is counted.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.named_models import NAMED

from lora_jax.delta import count, parameters
from lora_jax.models import FAMILIES
from lora_jax.targets import place
from lora_jax.weights.heads import fit

ROOT = Path(__file__).parents[2]
# Counted by others: the checkpoints' own pages and transformers (whose RoBERTa has a pooler, and whose ViT a head).
PUBLISHED = {
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "roberta_base": 124_645_632 - 768 * 769,
    "roberta_large": 355_359_744 - 1024 * 1025,
    "deberta_v3_base": 183_831_552,
    "deberta_v3_large": 434_012_160,
    "deberta_v2_xxlarge": 1_564_549_632,
    "vit_b16": 86_567_656 - 1000 * 769,
    "vit_l16": 304_326_632 - 1000 * 1025,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "pythia_160m": 162_322_944,
    "llama2_7b": 6_738_415_616,
    "llama31_8b": 8_030_261_248,
    "llama32_1b": 1_235_814_400,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "qwen2_0_5b": 494_032_768,
    "qwen25_0_5b": 494_032_768,
    "qwen3_0_6b": 596_049_920,
    "gemma2_2b": 2_614_341_888,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
}


@functools.cache
def model_of(name: str, labels: int = 2) -> Any:
    """A decoder with its vocabulary on top, any other model as a classifier by its first token; shapes only."""
    kind, values = NAMED[name]
    row, values = FAMILIES[kind], {"model_type": kind, **values}
    config = row.config(**{f.name: values[f.name] for f in dataclasses.fields(row.config) if f.name in values})
    head = "causal" if row.causal else "classifier"
    model = fit(row, config, set(), head, labels=labels, pool="first").module
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model))
    return model


def loaded(model: Any) -> int:
    """What a checkpoint fills."""
    return sum(leaf.size for path, leaf in parameters(model).items() if not path.startswith("head/"))


def trainable(name: str, targets: str, rank: int) -> int:
    """What the pairs of a LoRA hold."""
    return sum(
        int(placement.rank.sum()) * (placement.site.d_in + placement.site.d_out)
        for placement in place(model_of(name), targets, rank, float).values()
    )


def table(*columns: str) -> list[list[str]]:
    """The cells, as bare text, of the page's table with these columns."""
    page = (ROOT / "lora_jax/models/README.md").read_text()
    rows = page.split(f"|{'|'.join(columns)}|\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip("` ").replace(",", "") for cell in row.strip("|").split("|")] for row in rows]


def test_every_named_model_is_in_the_table():
    rows = table("model", "family", "parameters")
    assert {row[0] for row in rows} == set(NAMED) == {file.stem for file in (ROOT / "conf/model").glob("*.yaml")}
    for name, family, parameters_there in rows:
        assert family == NAMED[name][0] and loaded(model_of(name)) == int(parameters_there), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    assert loaded(model_of(name)) == PUBLISHED[name]


def test_what_lora_trains_is_in_the_table():
    rows = table("model", "targets", "rank", "trained", "published")
    assert [row[:3] for row in rows] == [
        ["roberta_base", "qv", "8"],
        ["roberta_large", "qv", "8"],
        ["deberta_v2_xxlarge", "qv", "16"],
        ["gpt2_medium", "qv", "4"],
        ["roberta_large", "q@0", "8"],
    ]
    for name, targets, rank, trained, published in rows:
        own = trainable(name, targets, int(rank))
        assert own == int(trained)
        digits = len(re.fullmatch(r"\d+(?:\.(\d+))?M?", published)[1] or "")
        assert round(own / 1e6, digits) == float(published[:-1]) if published.endswith("M") else own == int(published)


def test_lora_on_one_square_kernel():
    [found] = place(model_of("roberta_large"), "q@0", 8, float).values()
    assert (found.site.d_in, found.site.d_out) == (1024, 1024)
    own = trainable("roberta_large", "q@0", 8)
    assert own == 16_384 and round(1 - own / 1024**2, 3) == 0.984


def test_whole_classifiers():
    assert count(model_of("vit_b16", 1000)) == 86_567_656
    assert count(model_of("vit_l16", 1000)) == 304_326_632
    # transformers' RobertaForSequenceClassification with 2 labels: the backbone, a dense layer, a linear one.
    assert count(model_of("roberta_base")) == 124_645_632 + 2 * 769
    head = {path: leaf.shape for path, leaf in parameters(model_of("roberta_base")).items() if path.startswith("head/")}
    assert head == {
        "head/dense/kernel": (768, 768),
        "head/dense/bias": (768,),
        "head/kernel": (768, 2),
        "head/bias": (2,),
    }


def test_what_is_not_in_a_layer_is_a_site_too():
    """ViT's patch projection and DeBERTa's convolution, by a regular expression."""
    [patch] = place(model_of("vit_b16"), "re:/patch$", 4, float).values()
    assert (patch.site.path, patch.site.d_in, patch.site.d_out) == ("backbone/embed/patch", 768, 768)
    [conv] = place(model_of("deberta_v2_xxlarge"), "re:/conv/", 4, float).values()
    assert (conv.site.path, conv.site.d_in, conv.site.d_out) == ("backbone/conv/window", 3 * 1536, 1536)


ENCODERS = [name for name in NAMED if not FAMILIES[NAMED[name][0]].causal]


@pytest.mark.parametrize("name", ENCODERS)
def test_heads_are_no_sites(name):
    assert not any("head" in path for path in place(model_of(name), "re:.", 1, float))


@pytest.mark.parametrize("name", NAMED)
def test_as_transformers_counts(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, values = NAMED[name]
    row = FAMILIES[kind]
    auto = transformers.AutoModelForCausalLM if row.causal else transformers.AutoModelForSequenceClassification
    auto = transformers.AutoModelForImageClassification if row.images else auto
    with torch.device("meta"):
        theirs = auto.from_config(transformers.AutoConfig.for_model(kind, **values, num_labels=2))
    assert count(model_of(name)) == sum(int(np.prod(value.shape)) for value in theirs.parameters())
