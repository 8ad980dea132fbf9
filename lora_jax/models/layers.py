"""The layers that every model family is built from, and their slots.

A *slot* is an attribute that is None until ``lora_jax.delta.graft`` puts an adapter there (``lora_jax/adapters``). A
layer knows that its slot exists and how to call what stands there, and nothing else: no rank, no alpha, no method.

Kernels are ``[d_in, d_out]``, as everywhere in Flax.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lora_jax.errors import UserError
from lora_jax.models.options import ComputeOptions
from lora_jax.models.quantised import Quantised

Key = PRNGKeyArray | None
Kernel = Float[Array, "d_in d_out"] | Quantised


class Linear(nnx.Module):
    """Computes y = x·W + b; with an adapter grafted, what the adapter makes of x and W, plus b."""

    weight = "kernel"  # the parameter that an adapter works on

    def __init__(self, d_in: int, d_out: int, *, bias: bool = True):
        self.kernel = nnx.Param(jnp.zeros((d_in, d_out)))
        self.bias = nnx.Param(jnp.zeros(d_out)) if bias else nnx.data(None)
        self.adapter: Any = nnx.data(None)

    def __call__(self, x: Float[Array, "... d_in"], key: Key = None) -> Float[Array, "... d_out"]:
        kernel = self.kernel.get_value()
        return self.add_bias(product(x, kernel) if self.adapter is None else self.adapter(x, kernel, key))

    def add_bias(self, y: Float[Array, "... d_out"]) -> Float[Array, "... d_out"]:
        """Returns the layer's output: `y` plus the bias, if there is one."""
        return checkpoint_name(y if self.bias is None else y + self.bias.astype(y.dtype), "linear")


def apply_together(layers: Sequence[Linear], x: Float[Array, "... d_in"], keys: Sequence[Key]) -> list[Array]:
    """Applies several linear layers to one x. Adapters that have an `apply_together` are applied in common kernels."""
    adapters = [layer.adapter for layer in layers]
    together = getattr(adapters[0], "apply_together", None)
    if together is None or any(type(adapter) is not type(adapters[0]) for adapter in adapters):
        return [layer(x, key) for layer, key in zip(layers, keys, strict=True)]
    results = together(adapters, x, [layer.kernel.get_value() for layer in layers], keys)
    return [layer.add_bias(y) for layer, y in zip(layers, results, strict=True)]


def product(x: Float[Array, "... d_in"], kernel: Kernel) -> Float[Array, "... d_out"]:
    """Computes x·W. Where W is stored narrower than `x`, the backward pass widens it anew, and keeps no wide W."""
    if takes_bfloat16(x) and not isinstance(kernel, Quantised):
        return bfloat16_product(x, kernel)
    narrow = isinstance(kernel, Quantised) or kernel.dtype.itemsize < x.dtype.itemsize
    return (jax.checkpoint(_product) if narrow else _product)(x, kernel)


def _product(x, kernel):
    return x @ kernel.astype(x.dtype)


def takes_bfloat16(x: Array) -> bool:
    """Returns whether the products of `x` take operands in bfloat16 and add in float32.

    ``jax.default_matmul_precision("bfloat16")`` asks for this. GPUs and TPUs heed it, and XLA's CPU backend does not.
    """
    asked = jax.default_matmul_precision.value == "bfloat16"
    return asked and x.dtype == jnp.float32 and jax.default_backend() == "cpu"


@jax.custom_vjp
def bfloat16_product(x: Float[Array, "... d_in"], w: Float[Array, "d_in d_out"]) -> Float[Array, "... d_out"]:
    """Computes x·w in float32, of operands that are rounded to bfloat16. So does its backward pass."""
    return _dot_bfloat16(x, w, x.ndim - 1, 0)


def _bfloat16_product_forward(x, w):
    return bfloat16_product(x, w), (x.astype(jnp.bfloat16), w)


def _bfloat16_product_backward(residuals, g):
    x, w = residuals
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.astype(jnp.bfloat16).reshape(-1, g.shape[-1])
    return _dot_bfloat16(g_rows, w, 1, 1).reshape(x.shape), _dot_bfloat16(rows, g_rows, 0, 0).astype(w.dtype)


def _dot_bfloat16(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    # Zen 4's bfloat16 instructions are used only with a float32 result, and are then twice as fast as float32's.
    narrow = (x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))
    return jax.lax.dot_general(*narrow, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)


bfloat16_product.defvjp(_bfloat16_product_forward, _bfloat16_product_backward)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes the exact GELU (Hendrycks & Gimpel, arXiv 1606.08415).

    Its backward pass saves `x` alone. Autodiff would save more.
    """
    return x * _normal_cdf(x)


def _gelu_backward(x, g):
    return (g * (_normal_cdf(x) + x * jnp.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5),)


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Embedding(nnx.Module):
    """Looks up rows of a table by index; with an adapter grafted, what the adapter's `lookup` makes of index and table.

    As in PEFT, where a model uses the table a second time, as its output layer, that use is not adapted.
    """

    weight = "embedding"  # the parameter that an adapter works on

    def __init__(self, count: int, width: int):
        self.embedding = nnx.Param(jnp.zeros((count, width)))
        self.adapter: Any = nnx.data(None)

    def __call__(self, index: Int[Array, "..."], dtype: DTypeLike) -> Float[Array, "... width"]:
        table = self.embedding[...]
        if self.adapter is not None:
            return self.adapter.lookup(index, table, dtype)
        return jnp.take(table, index, axis=0).astype(dtype)

    def attend(self, x: Float[Array, "... width"]) -> Float[Array, "... count"]:
        """Each state times each row: a tied output layer."""
        return jnp.einsum("...d,vd->...v", x, self.embedding.astype(x.dtype))


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis. Computes in float32 at least."""

    def __init__(self, width: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.mean(centred * centred, -1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * self.scale.astype(wide.dtype) + self.bias.astype(wide.dtype)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, times ``offset + scale``. Computes in float32 at least.

    Llama's `offset` is 0. Gemma's is 1, because its checkpoints store the scale minus one.
    """

    def __init__(self, width: int, *, epsilon: float, offset: float = 0.0):
        self.scale = nnx.Param(jnp.full(width, 1 - offset))
        self.epsilon = epsilon
        self.offset = offset

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        normal = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.epsilon)
        return (normal * (self.scale.astype(wide.dtype) + self.offset)).astype(x.dtype)


def dropout(x: Float[Array, "..."], rate: Float[Array, ""] | float, key: Key) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and scales the others by 1/(1 - rate).

    Args:
      x: any array.
      rate: may be traced, so that runs with different rates share a program. It is rounded to the nearest 1/65536:
        16 random bits per element cost half of 32, which is noticeable on a CPU.
      key: None turns dropout off.
    """
    if key is None:
        return x
    threshold = jnp.round(jnp.asarray(rate, jnp.float32) * 65536).astype(jnp.uint32)
    keep = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32) >= threshold
    return jnp.where(keep, x / (1 - threshold / 65536).astype(x.dtype), jnp.zeros((), x.dtype))


def fold(key: Key, site: int | Int[Array, ""]) -> Key:
    """Derives the key of one site in a module from the module's key. None stays None."""
    return None if key is None else jax.random.fold_in(key, site)


REMAT = ("none", "dots", "layer")
# What `remat=dots` saves: the results of matmuls. A linear layer has one, with the parts of base and LoRA already added
# (apart, they would take twice the memory). x·A is as narrow as the rank, and B's gradient needs it.
SAVED_NAMES = ("linear", "thin", "attention")
_save_dots = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES),
    # cuDNN's attention: its result, and what else its gradient needs.
    lambda primitive, *_, **__: primitive.name.startswith("dot_product_attention_fwd"),
)


def stack_layers(make_block: Callable[[], nnx.Module], count: int) -> Any:
    """Returns one module whose arrays have a leading axis of `count` layers, for `scan_layers`."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), make_block())


def scan_layers(layers: Any, x: Any, key: Key, apply: Callable[..., Any], options: ComputeOptions) -> Any:
    """Applies the layers one after another: ``x = apply(layer, x, layer_key)``.

    Args:
      layers: a tree of arrays with a leading axis of layers.
      x: the first layer's input, an array or a tree.
      key: layer i gets ``fold(key, i)``.
      apply: computes one layer.
      options: `unroll` and `remat`. The backward pass computes again what the forward pass did not save: ``none``
        saves all that the backward pass reads, ``dots`` what SAVED_NAMES lists, ``layer`` a layer's input alone.

    Returns:
      The last layer's output.

    Raises:
      UserError: `options.remat` is not in REMAT.
    """
    count = jax.tree.leaves(layers)[0].shape[0]

    def body(x, item):
        layer, index = item
        return apply(layer, x, fold(key, index)), None

    if options.remat not in REMAT:
        raise UserError(f"model.remat={options.remat!r}: must be one of {', '.join(REMAT)}")
    if options.remat != "none":
        # Forward and backward pass are two loops, so XLA cannot merge what is computed twice. Without a loop it could,
        # and would undo the rematerialisation.
        no_loop = options.unroll is True or options.unroll >= count
        body = jax.checkpoint(body, policy=_save_dots if options.remat == "dots" else None, prevent_cse=no_loop)
    return jax.lax.scan(body, x, (layers, jnp.arange(count)), unroll=options.unroll)[0]
