"""The model families and their checkpoints. A new family is one file in this package and one row in FAMILIES."""

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
    """Describes how to read the checkpoints of one family. models/bert.py explains the tables.

    Attributes:
      config: a dataclass whose fields are keys of ``config.json``, `hidden_size` among them.
      module: creates the backbone from a config.
      names: names of tensors to parameter paths.
      prefixes: what may stand before those names.
      renamed: parts of names in older checkpoints to today's.
      ignored: regular expressions of tensors that a checkpoint may hold and the backbone does not need.
      fixed: keys that config.json must set to these values or leave out.
      defaults: whether config.json may leave out a field that has a default.
      causal: whether the family is a decoder, for language modelling.
      masked_heads: the names that checkpoints have for its head of masked language modelling.
      transpose: whether the checkpoint's kernels are ``[d_out, d_in]``.
      by_head: whether the outputs of a fused tensor are ordered by head: q, k and v of the first, then of the second.
      lm_head: the name of a decoder's output layer.
      windows: the shapes of convolution kernels, by tensor name, as in models/vit.py.
      images: whether the family reads images instead of tokens.
      activation: the activation of the dense layer in a classifier's head, or None without such a layer.
    """

    config: type[Any]
    module: Callable[[Any], nnx.Module]
    names: Mapping[str, str | tuple[str, ...]]
    prefixes: tuple[str, ...] = ("",)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: bool = False
    causal: bool = False
    masked_heads: tuple[masked.Names, ...] = ()
    transpose: bool = True
    by_head: bool = False
    lm_head: str = "lm_head.weight"
    windows: Mapping[str, Callable[[Any], tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    images: bool = False
    activation: Callable[[Array], Array] | None = None

    def groups(self, config: Any) -> int:
        """Returns the number of groups in a fused tensor's outputs. Each group has a part of every path."""
        return config.num_attention_heads if self.by_head else 1

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that this family supports. `weights.load.load_base` describes them."""
        if self.images:
            return ("classifier",)
        over_vocabulary = (*["causal"] * self.causal, *["masked"] * bool(self.masked_heads))
        return ("classifier", "token_classifier", "embedding", *over_vocabulary)


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

# Keyed by the `model_type` in config.json.
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
    "deberta-v2": Family(  # the model_type of v3's checkpoints too
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
