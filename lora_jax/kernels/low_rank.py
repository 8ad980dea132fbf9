"""x·W + (x·A)·B for several projections of one x, in few kernels (Pallas, through Triton).

A small model on a large GPU spends more time on LoRA's thin products than on x·W: each is a kernel, reads all of x or
of a gradient, and is followed by another kernel that adds two parts. Here

- x·A is one kernel for all projections that read the same x;
- x·W + t·B is one kernel, as is the gradient of x, the sum over the projections of g·Wᵀ + u·Aᵀ;
- u = g·Bᵀ and the gradient of B come from one kernel, which reads g once.

A product that crosses blocks is written as parts, which XLA adds in a fixed order: results are the same bits in each
call. `plain_products` is the same in plain JAX. What was measured: results/bench/kernels-h100.md.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from lora_jax.kernels.choice import MAX_WIDTH
from lora_jax.models.layers import Kernel

ROWS, WIDTH = 256, 64  # rows of x must be a multiple of the one, d_in and d_out of the other
MIN_RANK, MAX_RANK = 16, 64  # of all projections together: what tensor cores need, and what was tried


def fits(x: Any, kernels: Sequence[Kernel], rank: int) -> bool:
    """Returns whether `products` takes these shapes and dtypes."""
    rows = x.size // x.shape[-1]
    widths = [x.shape[-1], *(kernel.shape[-1] for kernel in kernels)]
    narrow = x.dtype in (jnp.bfloat16, jnp.float16)
    small = padded_rank(padded_rank(rank) * len(kernels)) <= MAX_RANK and max(widths) <= MAX_WIDTH
    return narrow and small and rows % ROWS == 0 and all(width % WIDTH == 0 for width in widths)


def padded_rank(rank: int) -> int:
    """Returns the power of two that `rank` is padded to: Triton has no other sizes."""
    return max(MIN_RANK, 1 << (rank - 1).bit_length())


def plain_products(
    x: Float[Array, "... d_in"],
    kernels: Sequence[Kernel],
    pairs: Sequence[tuple[Float[Array, "d_in rank"], Float[Array, "rank _"]]],
) -> list[Array]:
    """Computes what `products` does, in plain JAX."""
    return [
        x @ w.astype(x.dtype) + (x @ a.astype(x.dtype)) @ b.astype(x.dtype)
        for w, (a, b) in zip(kernels, pairs, strict=True)
    ]


def products(
    x: Float[Array, "... d_in"],
    kernels: Sequence[Kernel],
    pairs: Sequence[tuple[Float[Array, "d_in rank"], Float[Array, "rank _"]]],
) -> list[Array]:
    """Computes ``x·W + (x·A)·B`` for each kernel W and its pair. A kernel is frozen and gets no gradient.

    Args:
      x: in bfloat16 or float16.
      kernels: one for each projection. One that is stored in another dtype is converted here and in the backward pass.
      pairs: the A and B of each projection.

    Returns:
      The output of each projection, in the dtype of `x`.
    """
    rank = padded_rank(max(a.shape[-1] for a, _ in pairs))
    # The As side by side; to a power of two, as Triton needs.
    a = _pad(
        jnp.concatenate([_pad(a.astype(x.dtype), -1, rank) for a, _ in pairs], -1), -1, padded_rank(rank * len(pairs))
    )
    all_b = tuple(_pad(b.astype(x.dtype), -2, rank) for _, b in pairs)
    results = _products(x.reshape(-1, x.shape[-1]), tuple(kernels), a, all_b)
    return [y.reshape(*x.shape[:-1], -1) for y in results]


@jax.custom_vjp
def _products(x, kernels, a, all_b):
    return _forward(x, kernels, a, all_b)[0]


def _forward(x, kernels, a, all_b):
    thin = checkpoint_name(_thin(x, a), "thin")
    results = tuple(
        _sum_of_products([x], [w.astype(x.dtype)], thin, b, place=i)
        for i, (w, b) in enumerate(zip(kernels, all_b, strict=True))
    )
    return results, (x, kernels, a, all_b, thin)


def _backward(residuals, gs):
    x, kernels, a, all_b, thin = residuals
    parts = [_gradients_of_b(g, thin, b, place=i) for i, (g, b) in enumerate(zip(gs, all_b, strict=True))]
    # XLA adds the parts of u faster than the kernels below would, which read them several times.
    u = _pad(jnp.concatenate([u.sum(0) for u, _ in parts], -1).astype(x.dtype), -1, a.shape[-1])
    grad_x = _sum_of_products(gs, [w.astype(x.dtype) for w in kernels], u, a, transposed=True)
    grad_a = _gradient_of_a(x, u).sum(0).astype(x.dtype)
    return grad_x, None, grad_a, tuple(grad_b.sum(0).astype(x.dtype) for _, grad_b in parts)


_products.defvjp(_forward, _backward)


def _thin(x, a):
    """Returns x·A."""
    rows, (d_in, rank) = 32, a.shape

    def kernel(x_ref, a_ref, out_ref):
        total = _loop(d_in, lambda s: _dot(x_ref[:, s], a_ref[s, :]), jnp.zeros(out_ref.shape, jnp.float32))
        out_ref[...] = total.astype(out_ref.dtype)

    return _call(
        kernel,
        grid=(x.shape[0] // rows,),
        in_specs=[pl.BlockSpec((rows, d_in), lambda i: (i, 0)), pl.BlockSpec((d_in, rank), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((rows, rank), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], rank), x.dtype),
        stages=5,
        name="lora_thin",
    )(x, a)


def _sum_of_products(xs, ws, thin, b, *, place=0, transposed=False):
    """Returns Σ x·W + t·B, or if `transposed` Σ x·Wᵀ + t·Bᵀ. Of `thin`, t is the block of columns at `place`."""
    out, rank = b.shape if transposed else b.shape[::-1]
    rows, columns, warps = (128, 128, 8) if out % 128 == 0 and out >= 1024 else (128, 64, 4)

    def kernel(*refs):
        *in_refs, thin_ref, b_ref, out_ref = refs
        total = jnp.zeros(out_ref.shape, jnp.float32)
        for x_ref, w_ref in zip(in_refs[: len(xs)], in_refs[len(xs) :], strict=True):

            def product(s, x_ref=x_ref, w_ref=w_ref):
                return _dot(x_ref[:, s], w_ref[:, s] if transposed else w_ref[s, :], right=transposed)

            total = _loop(x_ref.shape[1], product, total)
        total += _dot(thin_ref[...], b_ref[...], right=transposed)
        out_ref[...] = total.astype(out_ref.dtype)

    def columns_of(depth):
        block = (columns, depth) if transposed else (depth, columns)
        return pl.BlockSpec(block, lambda j, i: (j, 0) if transposed else (0, j))

    return _call(
        kernel,
        grid=(out // columns, xs[0].shape[0] // rows),  # blocks that run together share columns of W
        in_specs=[
            *(pl.BlockSpec((rows, x.shape[1]), lambda j, i: (i, 0)) for x in xs),
            *(columns_of(x.shape[1]) for x in xs),
            pl.BlockSpec((rows, rank), lambda j, i: (i, place)),
            columns_of(rank),
        ],
        out_specs=pl.BlockSpec((rows, columns), lambda j, i: (i, j)),
        out_shape=jax.ShapeDtypeStruct((xs[0].shape[0], out), xs[0].dtype),
        warps=warps,
        name="lora_product",
    )(*xs, *ws, thin, b)


def _gradients_of_b(g, thin, b, *, place):
    """Returns parts of u = g·Bᵀ, ``[parts, rows, rank]``, and parts of tᵀ·g, ``[parts, rank, d_out]``."""
    rows, (rank, out) = 128, b.shape
    split = next(n for n in (4, 3, 2, 1) if out // WIDTH % n == 0)  # so that there are enough blocks for the device
    width = out // split

    def kernel(g_ref, thin_ref, b_ref, u_ref, grad_ref):
        thin = thin_ref[...]

        def product(s):
            g = g_ref[:, s]
            grad_ref[:, s] = _dot(thin, g, left=True)
            return _dot(g, b_ref[:, s], right=True)

        u_ref[...] = _loop(width, product, jnp.zeros(u_ref.shape, jnp.float32))

    blocks = g.shape[0] // rows
    return _call(
        kernel,
        grid=(blocks, split),
        in_specs=[
            pl.BlockSpec((rows, width), lambda i, j: (i, j)),
            pl.BlockSpec((rows, rank), lambda i, j: (i, place)),
            pl.BlockSpec((rank, width), lambda i, j: (0, j)),
        ],
        out_specs=[
            pl.BlockSpec((None, rows, rank), lambda i, j: (j, i, 0)),
            pl.BlockSpec((None, rank, width), lambda i, j: (i, 0, j)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((split, g.shape[0], rank), jnp.float32),
            jax.ShapeDtypeStruct((blocks, rank, out), jnp.float32),
        ],
        name="lora_grad_b",
    )(g, thin, b)


def _gradient_of_a(x, u):
    """Returns parts of xᵀ·u, ``[parts, d_in, rank]``."""
    (total, d_in), rank = x.shape, u.shape[1]

    def kernel(x_ref, u_ref, out_ref):
        zeros = jnp.zeros(out_ref.shape, jnp.float32)
        out_ref[...] = _loop(ROWS, lambda s: _dot(x_ref[s, :], u_ref[s, :], left=True), zeros)

    return _call(
        kernel,
        grid=(d_in // WIDTH, total // ROWS),
        in_specs=[pl.BlockSpec((ROWS, WIDTH), lambda i, j: (j, i)), pl.BlockSpec((ROWS, rank), lambda i, j: (j, 0))],
        out_specs=pl.BlockSpec((None, WIDTH, rank), lambda i, j: (j, i, 0)),
        out_shape=jax.ShapeDtypeStruct((total // ROWS, d_in, rank), jnp.float32),
        name="lora_grad_a",
    )(x, u)


def _loop(length: int, product: Callable[[Any], Array], start: Array) -> Array:
    """Returns `start` plus the sum of ``product(slice)`` over the slices of WIDTH elements."""
    return jax.lax.fori_loop(0, length // WIDTH, lambda i, total: total + product(pl.ds(i * WIDTH, WIDTH)), start)


def _dot(a: Array, b: Array, *, left: bool = False, right: bool = False) -> Array:
    """Returns a·b in float32, with the factor on that side transposed."""
    dimensions = (((0 if left else 1,), (1 if right else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _call(kernel: Callable[..., None], *, warps: int = 4, stages: int = 3, **options: Any) -> Callable[..., Any]:
    # On a CPU, for tests, Pallas interprets the kernel.
    return pl.pallas_call(
        kernel,
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=jax.default_backend() == "cpu",
        **options,
    )


def _pad(x: Array, axis: int, size: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)
