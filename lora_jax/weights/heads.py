"""Builds the module of a head on a backbone, and maps the tensors of a checkpoint to the module's parameters."""

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
from flax import nnx

from lora_jax.delta import parameters
from lora_jax.errors import UserError
from lora_jax.models import FAMILIES, Family
from lora_jax.models.causal import CausalLM
from lora_jax.models.heads import POOLS, Classifier, ImageClassifier, SentenceEncoder, TokenClassifier
from lora_jax.models.masked import MaskedLM

# The paths that a tensor of a checkpoint fills: one, or several that share a fused tensor.
Paths = str | tuple[str, ...]

# Heads with labels. They are initialised and not read from a checkpoint.
LABELLED = ("classifier", "token_classifier")


class Fitting(NamedTuple):
    """An abstract module and the tensors of a checkpoint that fill it.

    Attributes:
      module: the module, shapes only.
      names: paths by the checkpoint's names of tensors (see `weights.load.fill`).
      ignored: regexes. Tensors whose names fully match one may remain unused.
    """

    module: nnx.Module
    names: dict[str, Paths]
    ignored: tuple[str, ...]


def check_head(family: str, head: str, labels: int | None, pool: str) -> None:
    """Raises UserError if `family` does not support `head`, or if the head does not support the settings."""
    row = FAMILIES[family]
    if head not in row.heads:
        supporting = ", ".join(name for name, other in FAMILIES.items() if head in other.heads) or "no family"
        raise UserError(
            f"head={head!r}: model.family={family!r} carries {', '.join(row.heads)}; {head} goes on {supporting}"
        )
    if head in LABELLED and (labels is None or labels < 1):
        raise UserError(f"labels={labels}: must be 1 or more")
    if row.images or head not in ("classifier", "embedding"):
        return
    if pool not in POOLS:
        raise UserError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
    if head == "classifier" and pool == "first" and not hasattr(row.module, "pool_first"):
        raise UserError(f"pool='first': {family} has no pooler; must be mean or last")


def fit(row: Family, config: Any, stored_names: Collection[str], head: str, *, labels: int, pool: str) -> Fitting:
    """Builds the abstract module of `head` on a backbone of `config`.

    Args:
      row: the family of the model.
      config: the config of the backbone.
      stored_names: the names of the tensors in the checkpoint. They determine the prefix of the names, and whether the
        backbone has a pooler.
      head: the name of the head.
      labels: the number of labels, for heads that have them.
      pool: the pooling, for heads that pool.
    """
    prefix = max(
        row.prefixes, key=lambda prefix: sum(prefix + name.replace("{}", "0") in stored_names for name in row.names)
    )
    names: dict[str, Paths] = {prefix + name: _below_backbone(paths) for name, paths in row.names.items()}
    ignored = row.ignored
    if head == "causal":
        names[row.lm_head] = "lm_head/kernel"
    if row.causal and (head != "causal" or config.tie_word_embeddings):
        # A decoder's lm_head is not used under another head, and a stored copy of a tied lm_head is never used.
        ignored = (*ignored, re.escape(row.lm_head))
    if head == "masked":
        table = max(row.masked_heads, key=lambda candidate: len(candidate.paths.keys() & set(stored_names)))
        names |= table.paths
        # The family ignores the heads of other tasks. This head must be read, except for the copies that tying leaves.
        prefix_regex = re.escape(table.prefix)
        ignored = (
            *(f"(?!{prefix_regex})(?:{pattern})" for pattern in ignored),
            rf"{prefix_regex}decoder\.(weight|bias)",
        )
    module = jax.eval_shape(lambda: _build(row, config, stored_names, prefix, head, labels, pool))
    existing = parameters(module)
    # The table of a family has the names of all its configurations.
    present = {name: paths for name, paths in names.items() if any(path in existing for path in as_tuple(paths))}
    return Fitting(module, present, ignored)


def as_tuple(paths: Paths) -> tuple[str, ...]:
    """Returns `paths` as a tuple, of one path or several."""
    return (paths,) if isinstance(paths, str) else paths


def _build(
    row: Family, config: Any, stored_names: Collection[str], prefix: str, head: str, labels: int, pool: str
) -> nnx.Module:
    """Builds the module of `head` on a backbone of `config`."""
    backbone: Any = row.module(config)
    poolers = [prefix + name for name in row.names if name.startswith("pooler.")]
    if poolers and not (head == "classifier" and pool == "first") and not any(name in stored_names for name in poolers):
        backbone.pooler = nnx.data(None)  # this head does not use it, and checkpoints often lack it
    width = config.hidden_size
    match head:
        case "classifier" if row.images:
            return ImageClassifier(backbone, width, labels)
        case "classifier":
            return Classifier(backbone, width, labels, pool=pool, activation=row.activation)
        case "token_classifier":
            return TokenClassifier(backbone, width, labels)
        case "embedding":
            return SentenceEncoder(backbone, pool=pool)
        case "causal":
            return CausalLM(backbone)
        case "masked":
            return MaskedLM(backbone)
    raise ValueError(f"head={head!r}: no module implements it")


def _below_backbone(paths: Paths) -> Paths:
    return f"backbone/{paths}" if isinstance(paths, str) else tuple(f"backbone/{path}" for path in paths)
