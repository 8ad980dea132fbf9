"""The factor s on A·B, from a site's α and rank, and the other constants of its pair."""

import math

import numpy as np
from jax.dtypes import canonicalize_dtype

from lora_jax.adapters import Scaling
from lora_jax.config import LoraSettings
from lora_jax.targets import Placement

SCALINGS = {
    "lora": lambda alpha, rank: alpha / rank,
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),  # arXiv 2312.03732, eq. 4; PEFT's use_rslora
    "constant": lambda alpha, rank: alpha,
    "sqrt_rank": lambda alpha, rank: alpha * math.sqrt(rank),
}


def scaling_of(placement: Placement, settings: LoraSettings) -> Scaling:
    """Returns the constants of a site's pair, each ``[layers]``. The scale of a layer that is not adapted is 0.

    An embedding's A starts at zero and its B does not, the reverse of a linear layer's, so LoRA+ leaves it alone.
    """
    factors = [
        SCALINGS[settings.scaling](float(alpha), int(rank)) if rank else 0.0
        for alpha, rank in zip(placement.alpha, placement.rank, strict=True)
    ]
    scale = np.asarray(factors if placement.site.layers else factors[0], canonicalize_dtype(float))
    dropout, factor_dropout = (
        np.full(scale.shape, rate, np.float32) if rate else None for rate in (settings.dropout, settings.factor_dropout)
    )
    lr_ratio = np.full_like(scale, 1.0 if placement.site.lookup else settings.lr_ratio)
    return Scaling(scale, dropout, lr_ratio, factor_dropout)  # type: ignore[arg-type]
