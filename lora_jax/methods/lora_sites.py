"""The sites that a run of LoRA adapts, and what its variants need of them."""

import dataclasses
from typing import Any

import numpy as np
from flax import nnx

from lora_jax.config import LoraSettings, RunConfig
from lora_jax.errors import UserError
from lora_jax.targets import Placement, place

# What `share_a` gives one A: by the name of the shared A's owner, the projections of one input.
FUSED = {"qkv": ("attn/q", "attn/k", "attn/v"), "gate_up": ("mlp/gate", "mlp/up")}
HEADED = ("attn/q", "attn/k", "attn/v", "attn/o")


def settings_of(run: RunConfig) -> LoraSettings:
    """Returns the settings of the method of `run`, which is LoRA."""
    assert isinstance(run.method, LoraSettings)
    return run.method


def placements(base: nnx.Module, run: RunConfig) -> dict[str, Placement]:
    """Returns the rank and alpha of every site that `run` adapts.

    Raises:
      UserError: as `targets.place`, or a variant is not defined for a site.
    """
    settings = settings_of(run)
    placed = place(base, run.targets, run.rank, run.alpha_of, settings.rank_pattern, settings.alpha_pattern)
    lookups = [path for path, placement in placed.items() if placement.site.lookup]
    for key, given, reason in (
        ("dora=true", settings.dora, "rescales the columns of a matrix product"),
        (f"init={settings.init}", settings.has_residual, "decomposes the kernel of a linear layer"),
        ("freeze_a=true", settings.freeze_a, "would freeze an A of zeros"),
    ):
        if given and lookups:
            raise UserError(
                f"method.{key}: {reason}, and targets={run.targets!r} has the embedding {lookups[0]}; leave it out"
            )
    for path, placement in placed.items():
        largest, side = int(placement.rank.max()), min(placement.site.d_in, placement.site.d_out)
        if settings.init == "lora_ga" and 2 * largest > side:
            raise UserError(
                f"rank={largest}: {path} is {placement.site.d_in} x {placement.site.d_out}, so its rank is at most "
                f"{side // 2} with method.init=lora_ga, which takes 2r singular vectors"
            )
        if settings.per_head and not path.endswith(HEADED):
            raise UserError(
                f"method.per_head=true: q, k, v and o have heads, and targets={run.targets!r} has {path}; leave it out"
            )
    if settings.share_a != "none":
        shared_inputs(placed, settings.share_a)
    return placed


def owner_of(path: str) -> str | None:
    """Returns the path that owns the A that the site `path` may share: ``.../attn/qkv`` for ``.../attn/q``."""
    for name, members in FUSED.items():
        for member in members:
            if path.endswith(f"/{member}"):
                return f"{path.removesuffix(member.rpartition('/')[2])}{name}"
    return None


def shared_inputs(placed: dict[str, Placement], share_a: str) -> dict[str, Placement]:
    """Returns the placement of each shared A, by the path of its owner: of a layer's rank where any site is adapted.

    Raises:
      UserError: nothing would be shared, or the ranks of a layer's sites differ.
    """
    members: dict[str, list[Placement]] = {}
    for path, placement in placed.items():
        owner = owner_of(path)
        if owner is not None and share_a in ("all", owner.rpartition("/")[2]):
            members.setdefault(owner, []).append(placement)
    if not any(len(group) > 1 for group in members.values()):
        names = {"qkv": "q, k and v", "gate_up": "gate and up"}.get(share_a, "q, k and v or of gate and up")
        raise UserError(f"method.share_a={share_a}: must be none unless targets have two or more of {names}")
    shared = {}
    for owner, group in members.items():
        ranks = np.stack([placement.rank for placement in group])
        rank = ranks.max(0)
        if ((ranks != rank) & (ranks > 0)).any():
            raise UserError(f"method.share_a={share_a}: the sites of {owner} must have one rank in each layer")
        shared[owner] = dataclasses.replace(group[0], rank=rank)
    return shared


def heads_of(base: Any, path: str) -> int | None:
    """Returns the number of heads that the outputs of the site `path` belong to. None: its inputs belong to heads.

    Factors per head of an output projection are a pair like any other: its A is those of all heads, one after another.
    """
    config = base.backbone.config
    heads: int = config.n_head if hasattr(config, "n_head") else config.num_attention_heads
    if path.endswith("attn/o"):
        return None
    return heads if path.endswith("attn/q") else getattr(config, "kv_heads", heads)
