"""Attention behind one call, `AttentionContext.attend`, which chooses XLA or cuDNN.

XLA's attention takes any mask. cuDNN's fused kernel never stores the scores, but a mask would cost it a gradient as
large as all of them. It therefore takes the lengths of the texts, and `RightPadding` moves the padding behind the
tokens, so that lengths describe it.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lora_jax.errors import UserError
from lora_jax.models.layers import Key, dropout

IMPLEMENTATIONS = ("auto", "xla", "cudnn")


def attention(
    q: Float[Array, "batch seq heads d_head"],
    k: Float[Array, "batch keys kv_heads d_head"],
    v: Float[Array, "batch keys kv_heads d_head"],
    mask: Bool[Array, "#batch 1 #seq keys"] | None,
    *,
    dropout_rate: Float[Array, ""] | float = 0.0,
    key: Key = None,
    softcap: float | None = None,
) -> Float[Array, "batch seq heads d_head"]:
    """Computes scaled dot-product attention with XLA, softmax in float32 at least.

    Args:
      q: queries.
      k: keys. Each of their heads serves heads / kv_heads consecutive heads of `q`.
      v: values.
      mask: True where a query attends to a key. None lets every query attend to every key.
      dropout_rate: the dropout on attention's probabilities.
      key: the key of that dropout. None turns it off.
      softcap: scores become ``softcap * tanh(scores / softcap)``.

    Returns:
      One vector per query. A query that attends to no key gets finite numbers without meaning.
    """
    batch, seq, heads, d_head = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # Query heads that share a key have an axis of their own, so no key is repeated and no score is transposed.
    grouped = q.reshape(batch, seq, k.shape[2], -1, d_head)
    scores = jnp.einsum("btkgd,bskd->bktgs", grouped, k, preferred_element_type=wide) * d_head**-0.5
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if mask is not None:
        scores = jnp.where(mask[:, :, :, None], scores, jnp.finfo(wide).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(q.dtype), dropout_rate, key)
    mixed = jnp.einsum("bktgs,bskd->btkgd", weights, v)
    return checkpoint_name(mixed.reshape(batch, seq, heads, d_head), "attention")


@dataclasses.dataclass(frozen=True)
class RightPadding:
    """Moves the padding of each text behind its tokens, and back. Without an `order` it is the identity.

    Attributes:
      order: for each row, the column that each column takes its token from.
      lengths: the number of tokens in each row.
    """

    order: Int[Array, "batch seq"] | None = None
    lengths: Int[Array, " batch"] | None = None

    @classmethod
    def from_mask(cls, mask: Bool[Array, "batch seq"]) -> "RightPadding":
        """Returns the order that puts the unmasked tokens first."""
        # A text that is all padding counts as one token: a softmax over no key would be NaN.
        return cls(jnp.argsort(~mask, axis=-1, stable=True), jnp.maximum(mask.sum(-1, dtype=jnp.int32), 1))

    def apply(self, x: Array) -> Array:
        """Reorders ``x[batch, seq, ...]`` so that the tokens of each text come first and keep their order."""
        return x if self.order is None else take_columns(x, self.order)

    def undo(self, x: Array) -> Array:
        """Restores the order that `x` had before `apply`."""
        return x if self.order is None else take_columns(x, jnp.argsort(self.order, axis=-1))


def take_columns(x: Array, columns: Int[Array, "batch taken"]) -> Array:
    """Returns ``x[i, columns[i]]`` for every row i of ``x[batch, seq, ...]``. A row's columns differ."""
    # Saying that they differ spares the gradient a scatter-add.
    rows = jnp.arange(len(x))[:, None]
    return jnp.asarray(x).at[rows, columns].get(unique_indices=True, mode="promise_in_bounds")


@dataclasses.dataclass(frozen=True)
class AttentionContext:
    """What every block of a model receives beside its input: masks, dropout, and the choice of implementation.

    `mask` is for XLA. `padding`, `causal` and `window` say the same to cuDNN.

    Attributes:
      mask: True where a query attends to a key. None lets every query attend to every key.
      dropout_rate: the dropout inside blocks, on attention's probabilities too.
      cudnn: whether cuDNN computes attention.
      padding: how the texts were reordered.
      causal: whether a token attends only to itself and earlier tokens.
      window: how many of those tokens it attends to. None means all.
      virtual: the number of the virtual token in each column, as `BlockSlot` takes it.
    """

    mask: Bool[Array, "#batch 1 #seq keys"] | None
    dropout_rate: Float[Array, ""] | float = 0.0
    cudnn: bool = False
    padding: RightPadding = RightPadding()
    causal: bool = False
    window: int | None = None
    virtual: Int[Array, "batch seq"] | None = None

    def attend(
        self,
        q: Float[Array, "batch seq heads d_head"],
        k: Float[Array, "batch keys kv_heads d_head"],
        v: Float[Array, "batch keys kv_heads d_head"],
        key: Key,
        *,
        softcap: float | None = None,
        prefix: Any = None,
    ) -> Float[Array, "batch seq heads d_head"]:
        """Computes `attention` as this context describes.

        Args:
          q: queries.
          k: keys.
          v: values.
          key: the key of the dropout, or None.
          softcap: as `attention` takes it.
          prefix: what is grafted into the attention's `prefix` slot, or None. ``prefix.extend(k, v)`` returns
            ``(k, v, visible)`` with `length` more keys and values in front, and `visible`, Bool ``[length]``, says
            which of them queries attend to. Shorter prefixes can thus be padded in a pack.
        """
        mask = self.mask
        if prefix is not None:
            assert not self.cudnn, PREFIX_OBSTACLE
            mask = mask if mask is not None else jnp.ones((1, 1, 1, k.shape[1]), bool)
            k, v, visible = prefix.extend(k, v)
            front = jnp.broadcast_to(visible, (*mask.shape[:-1], visible.shape[-1]))
            mask = jnp.concatenate([front, mask], axis=-1)
        if self.cudnn:
            return jax.nn.dot_product_attention(
                q,
                k,
                v,
                is_causal=self.causal,
                query_seq_lengths=self.padding.lengths,
                key_value_seq_lengths=self.padding.lengths,
                local_window_size=None if self.window is None else (self.window - 1, 0),
                implementation="cudnn",
            )
        return attention(q, k, v, mask, dropout_rate=self.dropout_rate, key=key, softcap=softcap)


def prefix_size(prefix: Any) -> int:
    """Returns how many keys a grafted `prefix` has, hidden ones included. Without one (None), 0."""
    return 0 if prefix is None else int(prefix.visible.shape[-1])


def after_prefix(positions: Int[Array, "#batch seq"], prefix: Any) -> Int[Array, "#batch seq"]:
    """Returns the positions of tokens that stand after the visible keys of a grafted `prefix`, if there is one.

    So it is in ``transformers``, where a prefix is a cache of earlier tokens. All layers share the positions: the layer
    with the most visible keys counts.

    Args:
      positions: the position of each token in its text.
      prefix: what is grafted into attention's `prefix` slot in all layers, or None. Its `visible` is
        ``[layers, length]``.
    """
    return positions if prefix is None else positions + prefix.visible.sum(-1, dtype=jnp.int32).max()


def cuda_capability() -> tuple[int, int] | None:
    """Returns the default device's CUDA compute capability, or None where it is no CUDA GPU."""
    match = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(jax.devices()[0], "compute_capability", "")))
    return None if match is None else (int(match[1]), int(match[2]))


def uses_cudnn(
    implementation: str,
    dtype: DTypeLike,
    d_head: int,
    obstacles: Mapping[str, bool],
    *,
    capability: Callable[[], tuple[int, int] | None] = cuda_capability,
    version: tuple[int, ...] = jax.__version_info__,
) -> bool:
    """Returns whether cuDNN computes attention. Otherwise XLA does.

    Args:
      implementation: one of IMPLEMENTATIONS. ``auto`` takes cuDNN wherever it works, and XLA elsewhere and on TPUs.
      dtype: the dtype of queries, keys and values.
      d_head: the width of a head.
      obstacles: the model's own reasons against cuDNN, and whether each holds.
      capability: returns the device's compute capability.
      version: JAX's version.

    Raises:
      UserError: `implementation` is ``cudnn`` and an obstacle holds, or is not one of IMPLEMENTATIONS.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"model.attention={implementation!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
    device = capability()
    max_d_head = 128 if device is not None and device < (9, 0) else 256
    all_obstacles = {
        "this device is no CUDA GPU": device is None,
        "this GPU is older than compute capability 8.0": device is not None and device < (8, 0),
        f"dtype={jnp.dtype(dtype).name} is not bfloat16 or float16": dtype not in (jnp.bfloat16, jnp.float16),
        # Before 0.11.1 the vmap of a gradient through cuDNN could crash, and a single run is a pack of one.
        f"jax {'.'.join(map(str, version))} is older than 0.11.1": version < (0, 11, 1),
        f"heads of width {d_head} are not a multiple of 8 up to {max_d_head}": d_head % 8 > 0 or d_head > max_d_head,
        **obstacles,
    }
    reasons = [reason for reason, holds in all_obstacles.items() if holds]
    if implementation == "cudnn" and reasons:
        raise UserError(f"model.attention=cudnn is not available: {'; '.join(reasons)}. Use auto or xla")
    return implementation != "xla" and not reasons


# Obstacles to cuDNN that every family has.
DROPOUT_OBSTACLE = "attention drops out probabilities"
PREFIX_OBSTACLE = "a prefix extends the keys of attention"
