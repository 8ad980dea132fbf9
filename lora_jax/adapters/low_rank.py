"""The low-rank pair of LoRA (Hu et al., arXiv 2106.09685): W + A·B.

Kernels are ``[d_in, d_out]``, as everywhere in Flax, so A is ``[d_in, r]`` and B is ``[r, d_out]``. The paper's eq. 3
writes W + (α/r)·B·A for the transposed kernel. A method folds the scale into B before the pair is grafted.

Zero-padding the rank is exact: with the extra columns of A and rows of B at zero, A·B is the same and both gradients
are exactly zero there, so an element-wise optimizer leaves them at zero. So a pair of zeros is neutral.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lora_jax.adapters.padded import Padded, adapter, padded_axis
from lora_jax.models.layers import Kernel, Key, dropout, product, takes_bfloat16


@adapter
class LowRank(Padded):
    """A and B of one site, stacked over layers if the site is.

    `dropout` is the dropout rate on A's input and `factor_dropout` that on the factors themselves, if any.
    """

    a: Float[Array, "*layers d_in rank"] = padded_axis(-1)
    b: Float[Array, "*layers rank d_out"] = padded_axis(-2)
    dropout: Float[Array, "*layers"] | None = None
    factor_dropout: Float[Array, "*layers"] | None = None

    def __call__(self, x: Float[Array, "... d_in"], kernel: Kernel, key: Key) -> Float[Array, "... d_out"]:
        """Computes x·(W + A·B), with dropout if there is a `key`."""
        pair = self.masked(key)
        a, b = pair.a.astype(x.dtype), pair.b.astype(x.dtype)
        if key is None or self.dropout is None:
            if _forms_product(x):
                return merged_product(x, kernel, a, b)
            dropped = x
        else:
            dropped = dropout(x, self.dropout, key)
        thin: Array = checkpoint_name(product(dropped, a), "thin")  # type: ignore[no-untyped-call]
        return product(x, kernel) + product(thin, b)

    def fused(self, dtype: DTypeLike) -> "FusedLowRank":
        """Returns the pair in `dtype`, for `FusedLowRank` to apply."""
        return FusedLowRank(self.a.astype(dtype), self.b.astype(dtype), self.dropout, self.factor_dropout)

    def pair(self, input_factor: "InputFactor | None" = None) -> "LowRank":
        """Returns itself: A and B are together."""
        return self

    def masked(self, key: Key) -> "LowRank":
        """Returns the pair with rows of A and columns of B zeroed, if there is a `key` and a rate.

        This is LoRA Dropout (arXiv 2404.09610): all tokens of a step have one mask, no part of the rank is dropped, and
        what remains is not rescaled.
        """
        if key is None or self.factor_dropout is None:
            return self
        keep = 1 - self.factor_dropout
        rows = jax.random.bernoulli(jax.random.fold_in(key, 0), keep, self.a.shape[-2:-1])
        columns = jax.random.bernoulli(jax.random.fold_in(key, 1), keep, self.b.shape[-1:])
        return LowRank(jnp.where(rows[:, None], self.a, 0), jnp.where(columns, self.b, 0), self.dropout)

    def lookup(
        self, index: Int[Array, "..."], table: Float[Array, "d_in d_out"], dtype: DTypeLike
    ) -> Float[Array, "... d_out"]:
        """Computes rows of an embedding table plus rows of A times B. As in PEFT, without dropout."""
        rows = jnp.take(table, index, axis=0).astype(dtype)
        return rows + jnp.take(self.a, index, axis=0).astype(dtype) @ self.b.astype(dtype)

    def product(self) -> Float[Array, "*layers d_in d_out"]:
        """Computes ΔW = A·B, in float32 at least."""
        wide = jnp.promote_types(self.a.dtype, jnp.float32)
        return jnp.matmul(self.a.astype(wide), self.b.astype(wide), precision="highest")

    def shapes_at(self, module: Any, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of A and B for the weight of `module`, at the rank of this pair."""
        *layers, d_in, d_out = getattr(module, module.weight).get_value().shape
        rank = self.a.shape[-1]
        rates = dict.fromkeys(("dropout", "factor_dropout"), tuple(layers))
        return {"a": (*layers, d_in, rank), "b": (*layers, rank, d_out), **rates}

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts the pair into the slot `name` of `module`."""
        setattr(module, name, nnx.data(self))

    def merge(self, module: Any, name: str, *, sign: int = 1) -> None:
        """Adds ``sign``·A·B to the weight of `module`, a linear layer or an embedding."""
        weight = getattr(module, module.weight).get_value()
        setattr(module, module.weight, nnx.Param(weight + sign * self.product().astype(weight.dtype)))


@adapter
class FusedLowRank(LowRank):
    """A pair that Pallas kernels apply, where shapes allow and A's input is not dropped out."""

    def __call__(self, x: Float[Array, "... d_in"], kernel: Kernel, key: Key) -> Float[Array, "... d_out"]:
        """Computes x·(W + A·B)."""
        return self.apply_together([self], x, [kernel], [key])[0]

    @staticmethod
    def apply_together(
        pairs: Sequence["FusedLowRank"], x: Float[Array, "... d_in"], kernels: Sequence[Kernel], keys: Sequence[Key]
    ) -> list[Array]:
        """Computes x·(W + A·B) for several projections of one x."""
        # Importing Pallas takes a second or more.
        from lora_jax.kernels import low_rank as kernel

        drops = any(key is not None and pair.dropout is not None for pair, key in zip(pairs, keys, strict=True))
        if drops or not kernel.fits(x, kernels, max(pair.a.shape[-1] for pair in pairs)):
            if len(pairs) == 1:
                return [LowRank.__call__(pairs[0], x, kernels[0], keys[0])]
            return [pair(x, w, key) for pair, w, key in zip(pairs, kernels, keys, strict=True)]
        masked = [pair.masked(key) for pair, key in zip(pairs, keys, strict=True)]
        return kernel.products(x, kernels, [(pair.a, pair.b) for pair in masked])


@adapter
class InputFactor(Padded):
    """A apart from its B: frozen, or shared by several sites."""

    a: Float[Array, "*layers d_in rank"] = padded_axis(-1)


@adapter
class OutputFactor(Padded):
    """B apart from its A."""

    b: Float[Array, "*layers rank d_out"] = padded_axis(-2)

    def pair(self, input_factor: InputFactor) -> LowRank:
        """Returns A and B together. In a pack, other runs may share an A of a larger rank among other sites."""
        return LowRank(input_factor.resize(self.b.shape[-2]).a, self.b)


@adapter
class HeadFactors(Padded):
    """An A for each head, and one B for all heads, of a projection to heads.

    This is what Keras' EinsumDense.enable_lora makes of Gemma's query and value.
    """

    a: Float[Array, "*layers heads d_in rank"] = padded_axis(-1)
    b: Float[Array, "*layers rank d_head"] = padded_axis(-2)

    def pair(self, input_factor: InputFactor | None = None) -> LowRank:
        """Returns the same as a pair of rank heads·r: the As side by side, and a block-diagonal B."""
        *layers, heads, d_in, rank = self.a.shape
        a = jnp.moveaxis(self.a, -3, -2).reshape(*layers, d_in, heads * rank)
        diagonal = jnp.eye(heads, dtype=self.b.dtype)[:, None, :, None]
        b = (diagonal * self.b[..., None, :, None, :]).reshape(*layers, heads * rank, heads * self.b.shape[-1])
        return LowRank(a, b)


@adapter
class Scaling(Padded):
    """The constants of a pair.

    Attributes:
      scale: the factor on A·B; 0 in a layer that is not adapted.
      dropout: the dropout rate on A's input, if any.
      lr_ratio: B's learning rate over A's (LoRA+). None, in old adapter files, stands for 1.
      factor_dropout: the dropout rate on the factors, if any.
    """

    scale: Float[Array, "*layers"]
    dropout: Float[Array, "*layers"] | None = None
    lr_ratio: Float[Array, "*layers"] | None = None
    factor_dropout: Float[Array, "*layers"] | None = None

    def continued(self, fresh: Self) -> Self:
        """Returns these constants with the dropout and learning rates of `fresh`. The scale belongs to the pair."""
        return dataclasses.replace(
            self, dropout=fresh.dropout, lr_ratio=fresh.lr_ratio, factor_dropout=fresh.factor_dropout
        )


@jax.custom_vjp
def merged_product(
    x: Float[Array, "... d_in"], w: Kernel, a: Float[Array, "d_in rank"], b: Float[Array, "rank d_out"]
) -> Float[Array, "... d_out"]:
    """Computes x·(W + A·B) through the sum, and never forms the gradient of A·B. W is frozen and gets no gradient.

    On a CPU the thin products (x·A)·B and (g·Bᵀ)·Aᵀ run at a fraction of a square matmul's speed, and this has four
    thin products where autodiff has six: a step of four packed MiniLM runs takes 540 ms in place of 757. On an
    accelerator packed runs would lose their common x·W.
    """
    return x @ (w.astype(x.dtype) + a @ b)


def _merged_product_forward(x: Any, w: Any, a: Any, b: Any) -> Any:
    return merged_product(x, w, a, b), (x, w, a, b)


def _merged_product_backward(residuals: Any, g: Any) -> Any:
    x, w, a, b = residuals
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    grad_a = _contract(rows, _contract(g_rows, b, 1, 1), 0, 0)
    grad_b = _contract(rows @ a, g_rows, 0, 0)
    return _contract(g_rows, w.astype(x.dtype) + a @ b, 1, 1).reshape(x.shape), None, grad_a, grad_b


def _contract(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    # Before a product with a transpose, XLA copies the matrix: 42 MB a run and step for MiniLM.
    return jax.lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())))


merged_product.defvjp(_merged_product_forward, _merged_product_backward)


def _forms_product(x: Array) -> bool:
    # Below float32, W + A·B would round a small A·B away; and a text's single next token is not worth forming it.
    wide = x.dtype in (jnp.float32, jnp.float64) and not takes_bfloat16(x)
    return jax.default_backend() == "cpu" and wide and x.shape[-2] > 1
