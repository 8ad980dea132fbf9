"""The model families: what of a checkpoint becomes which module. Another family is one file here and one row below."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from lora_jax.models import bert, deberta, gemma, gpt2, gpt_neox, llama, masked, roberta, vit


@dataclasses.dataclass(frozen=True)
class Family:
    """How to read one family's checkpoints.

    `config` is a dataclass whose fields are keys of ``config.json``, `hidden_size` among them; `module` makes the
    backbone from it. The rest are tables beside the module, explained in models/bert.py.
    """

    config: type[Any]
    module: Callable[[Any], nnx.Module]
    names: Mapping[str, str | tuple[str, ...]]
    prefixes: tuple[str, ...] = ("",)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: bool = False  # whether config.json may leave out a field that has a default
    causal: bool = False  # whether it is a decoder, for language modelling
    masked_heads: tuple[masked.Names, ...] = ()  # what checkpoints may call its head for masked language modelling
    transpose: bool = True  # whether the checkpoint's kernels are [d_out, d_in]
    by_head: bool = False  # whether a fused tensor's outputs go head by head: its part of each path, then the next's
    lm_head: str = "lm_head.weight"  # what checkpoints call a decoder's own output layer
    windows: Mapping[str, Callable[[Any], tuple[int, ...]]] = dataclasses.field(default_factory=dict)  # see vit.py
    images: bool = False  # whether it reads pictures, not tokens
    activation: Callable[[Array], Array] | None = None  # of the dense layer in a classifier's head, if it has one

    def groups(self, config: Any) -> int:
        """In how many groups, each with a part of every path, the outputs of a fused tensor come."""
        return config.num_attention_heads if self.by_head else 1

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that it can carry; `weights.load.load_base` says what they are."""
        if self.images:
            return ("classifier",)
        over_words = (*["causal"] * self.causal, *["masked"] * bool(self.masked_heads))
        return ("classifier", "token_classifier", "embedding", *over_words)


_LLAMA = Family(
    llama.LlamaConfig,
    llama.Llama,
    llama.NAMES,
    llama.PREFIXES,
    ignored=llama.IGNORED,
    fixed=llama.FIXED,
    defaults=True,
    causal=True,
)

_GEMMA = Family(
    gemma.GemmaConfig,
    gemma.Gemma,
    gemma.NAMES,
    gemma.PREFIXES,
    ignored=gemma.IGNORED,
    fixed=gemma.FIXED,
    defaults=True,
    causal=True,
)

# By the `model_type` that config.json gives.
FAMILIES: dict[str, Family] = {
    "bert": Family(
        bert.BertConfig,
        bert.Bert,
        bert.NAMES,
        bert.PREFIXES,
        bert.RENAMED,
        bert.IGNORED,
        bert.FIXED,
        masked_heads=(masked.BERT,),
    ),
    "roberta": Family(
        roberta.RobertaConfig,
        roberta.Roberta,
        roberta.NAMES,
        roberta.PREFIXES,
        bert.RENAMED,
        roberta.IGNORED,
        roberta.FIXED,
        masked_heads=(masked.ROBERTA,),
        activation=jnp.tanh,
    ),
    "deberta-v2": Family(  # v3's checkpoints say so too
        deberta.DebertaConfig,
        deberta.Deberta,
        deberta.NAMES,
        deberta.PREFIXES,
        ignored=deberta.IGNORED,
        fixed=deberta.FIXED,
        defaults=True,
        windows=deberta.WINDOWS,
        masked_heads=(masked.DEBERTA, masked.BERT),
        activation=functools.partial(jax.nn.gelu, approximate=False),
    ),
    "vit": Family(
        vit.VitConfig,
        vit.Vit,
        vit.NAMES,
        vit.PREFIXES,
        ignored=vit.IGNORED,
        defaults=True,
        windows=vit.WINDOWS,
        images=True,
    ),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": dataclasses.replace(_GEMMA, config=gemma.Gemma2Config, names=gemma.NAMES2),
    "gemma3_text": dataclasses.replace(_GEMMA, config=gemma.Gemma3Config, names=gemma.NAMES2),
    "gpt2": Family(
        gpt2.Gpt2Config,
        gpt2.Gpt2,
        gpt2.NAMES,
        gpt2.PREFIXES,
        ignored=gpt2.IGNORED,
        fixed=gpt2.FIXED,
        defaults=True,
        causal=True,
        transpose=False,
    ),
    "gpt_neox": Family(
        gpt_neox.GptNeoxConfig,
        gpt_neox.GptNeox,
        gpt_neox.NAMES,
        gpt_neox.PREFIXES,
        ignored=gpt_neox.IGNORED,
        defaults=True,
        causal=True,
        by_head=True,
        lm_head="embed_out.weight",
    ),
}
