"""Attention behind one call, `View.attend`: what computes it, and what every block is told to call it with.

XLA's takes any mask. cuDNN's fused kernel never holds the scores, but a mask would cost it a gradient as large as all
of them; so it is told lengths instead, and a `Front` puts the padding where lengths can tell of it.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lora_jax.errors import UserError
from lora_jax.models.layers import Key, dropout

IMPLEMENTATIONS = ("auto", "xla", "cudnn")


def attention(
    q: Float[Array, "batch tokens heads d_head"],
    k: Float[Array, "batch keys kv_heads d_head"],
    v: Float[Array, "batch keys kv_heads d_head"],
    mask: Bool[Array, "#batch 1 #tokens keys"] | None,
    *,
    rate: Float[Array, ""] | float = 0.0,
    key: Key = None,
    cap: float | None = None,
) -> Float[Array, "batch tokens heads d_head"]:
    """Scaled dot-product attention, by XLA; softmax in float32 at least; dropout on its probabilities, given a key.

    Each head of `k` and `v` serves heads / kv_heads consecutive heads of `q`. Scores are softly capped at ±`cap`.
    Without a `mask` every key is seen. What a token that sees no key gets is finite and has no meaning.
    """
    batch, tokens, heads, d_head = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # Heads that share a key stand beside the tokens, so that no key is repeated and no score transposed.
    grouped = q.reshape(batch, tokens, k.shape[2], -1, d_head)
    scores = jnp.einsum("btkgd,bskd->bktgs", grouped, k, preferred_element_type=wide) * d_head**-0.5
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    if mask is not None:
        scores = jnp.where(mask[:, :, :, None], scores, jnp.finfo(wide).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(q.dtype), rate, key)
    mixed = jnp.einsum("bktgs,bskd->btkgd", weights, v)
    return checkpoint_name(mixed.reshape(batch, tokens, heads, d_head), "attention")


@dataclasses.dataclass(frozen=True)
class Front:
    """Texts with their padding moved behind their tokens, and back; the identity where it has no `order`."""

    order: Int[Array, "batch tokens"] | None = None
    lengths: Int[Array, " batch"] | None = None

    @classmethod
    def of(cls, mask: Bool[Array, "batch tokens"]) -> "Front":
        # A text that is padding alone counts as one token, for a softmax over nothing would be a NaN.
        return cls(jnp.argsort(~mask, axis=-1, stable=True), jnp.maximum(mask.sum(-1, dtype=jnp.int32), 1))

    def enter(self, x: Array) -> Array:
        """``x[batch, tokens, ...]`` with every text's tokens at its front, in their order."""
        return x if self.order is None else _take(x, self.order)

    def leave(self, x: Array) -> Array:
        """`x` as it was before it entered."""
        return x if self.order is None else _take(x, jnp.argsort(self.order, axis=-1))


def _take(x: Array, order: Int[Array, "batch tokens"]) -> Array:
    # Each row is taken once, so that the gradient needs no sum.
    rows = jnp.arange(len(x))[:, None]
    return jnp.asarray(x).at[rows, order].get(unique_indices=True, mode="promise_in_bounds")


@dataclasses.dataclass(frozen=True)
class View:
    """What every block of a model is told beside its input: who sees whom, the dropout, what computes attention.

    `mask` is XLA's (None: every key is seen), `front`, `causal` and `window` are cuDNN's; they say the same.
    """

    mask: Bool[Array, "#batch 1 #tokens keys"] | None
    rate: Float[Array, ""] | float = 0.0
    cudnn: bool = False
    front: Front = Front()
    causal: bool = False
    window: int | None = None

    def attend(
        self, q: Array, k: Array, v: Array, key: Key, *, cap: float | None = None
    ) -> Float[Array, "batch tokens heads d_head"]:
        """`attention` in this view, by what it says."""
        if self.cudnn:
            return jax.nn.dot_product_attention(
                q,
                k,
                v,
                is_causal=self.causal,
                query_seq_lengths=self.front.lengths,
                key_value_seq_lengths=self.front.lengths,
                local_window_size=None if self.window is None else (self.window - 1, 0),
                implementation="cudnn",
            )
        return attention(q, k, v, self.mask, rate=self.rate, key=key, cap=cap)


def cuda_capability() -> tuple[int, int] | None:
    """The default device's CUDA compute capability, None where it is no CUDA GPU."""
    told = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(jax.devices()[0], "compute_capability", "")))
    return None if told is None else (int(told[1]), int(told[2]))


def uses_cudnn(
    asked: str,
    dtype: DTypeLike,
    d_head: int,
    obstacles: Mapping[str, bool],
    *,
    capability: Callable[[], tuple[int, int] | None] = cuda_capability,
    version: tuple[int, ...] = jax.__version_info__,
) -> bool:
    """Whether cuDNN computes an attention that was `asked` for as one of IMPLEMENTATIONS; if not, XLA does.

    ``auto`` is cuDNN wherever it can be had, and XLA elsewhere, on a TPU too. `obstacles` are the model's own, and
    whether each holds. Raises UserError for ``cudnn`` where it cannot be had, and for a name that is none of them.
    """
    if asked not in IMPLEMENTATIONS:
        raise UserError(f"model.attention={asked!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
    able = capability()
    widest = 128 if able is not None and able < (9, 0) else 256
    all_obstacles = {
        "this device is no CUDA GPU": able is None,
        "this GPU is older than compute capability 8.0": able is not None and able < (8, 0),
        f"dtype={jnp.dtype(dtype).name} is not bfloat16 or float16": dtype not in (jnp.bfloat16, jnp.float16),
        # Before, the vmap of a gradient through it could crash; a single run is a pack of one.
        f"jax {'.'.join(map(str, version))} is older than 0.11.1": version < (0, 11, 1),
        f"heads of width {d_head} are not a multiple of 8 up to {widest}": d_head % 8 > 0 or d_head > widest,
        **obstacles,
    }
    why = [reason for reason, holds in all_obstacles.items() if holds]
    if asked == "cudnn" and why:
        raise UserError(f"model.attention=cudnn cannot be had: {'; '.join(why)}. Use auto or xla")
    return asked != "xla" and not why


DROPPING = "attention drops out probabilities"  # an obstacle that every family has
