"""From a head's name to the module that carries it, and to the tensors of a checkpoint that fill that module."""

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

# Where a tensor of a checkpoint goes: a path, or several that share it.
Paths = str | tuple[str, ...]

# Those that have labels of their own, and so a head that starts anew.
LABELLED = ("classifier", "token_classifier")


class Fitting(NamedTuple):
    """A module, abstract (shapes only), and what of a checkpoint belongs in it.

    `names` maps the checkpoint's names to paths, as `weights.load.fill` reads them; names that fully match a regex of
    `ignored` may be left unused.
    """

    module: nnx.Module
    names: dict[str, Paths]
    ignored: tuple[str, ...]


def check_head(family: str, head: str, labels: int | None, pool: str) -> None:
    """Raises UserError for a head that `family` does not carry, or settings that the head cannot have."""
    row = FAMILIES[family]
    if head not in row.heads:
        able = ", ".join(name for name, other in FAMILIES.items() if head in other.heads) or "no family"
        raise UserError(f"head={head!r}: model.family={family!r} carries {', '.join(row.heads)}; {head} goes on {able}")
    if head in LABELLED and (labels is None or labels < 1):
        raise UserError(f"labels={labels}: must be 1 or more")
    if row.images or head not in ("classifier", "embedding"):
        return
    if pool not in POOLS:
        raise UserError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
    if head == "classifier" and pool == "first" and not hasattr(row.module, "pool_first"):
        raise UserError(f"pool='first': {family} has no pooler; must be mean or last")


def fit(row: Family, config: Any, held: Collection[str], head: str, *, labels: int, pool: str) -> Fitting:
    """The module that carries `head` on a backbone of `config`, for a checkpoint that holds the names `held`."""
    prefix = max(row.prefixes, key=lambda prefix: sum(prefix + name.replace("{}", "0") in held for name in row.names))
    names: dict[str, Paths] = {prefix + name: _below_backbone(paths) for name, paths in row.names.items()}
    ignored = row.ignored
    if head == "causal":
        names[row.lm_head] = "lm_head/kernel"
    if row.causal and (head != "causal" or config.tie_word_embeddings):
        # A decoder's own lm_head has no place under another head, nor a stored copy of a tied one anywhere.
        ignored = (*ignored, re.escape(row.lm_head))
    if head == "masked":
        own = max(row.masked_heads, key=lambda table: len(table.paths.keys() & set(held)))
        names |= own.paths
        # The family ignores the heads of other tasks. This one it must not; only the copies that tying leaves.
        place = re.escape(own.prefix)
        ignored = (*(f"(?!{place})(?:{pattern})" for pattern in ignored), rf"{place}decoder\.(weight|bias)")
    module = jax.eval_shape(lambda: _carry(row, config, held, prefix, head, labels, pool))
    there = parameters(module)
    # A family's table lists the names of all its configurations.
    present = {name: paths for name, paths in names.items() if any(path in there for path in as_tuple(paths))}
    return Fitting(module, present, ignored)


def as_tuple(paths: Paths) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths


def _carry(
    row: Family, config: Any, held: Collection[str], prefix: str, head: str, labels: int, pool: str
) -> nnx.Module:
    backbone: Any = row.module(config)
    poolers = [prefix + name for name in row.names if name.startswith("pooler.")]
    if poolers and not (head == "classifier" and pool == "first") and not any(name in held for name in poolers):
        backbone.pooler = nnx.data(None)  # this head does not read it, and such a head's checkpoints often lack it
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
    raise ValueError(f"head={head!r}: no module carries it")


def _below_backbone(paths: Paths) -> Paths:
    return f"backbone/{paths}" if isinstance(paths, str) else tuple(f"backbone/{path}" for path in paths)
