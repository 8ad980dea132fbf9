"""x·W + (x·A)·B for several projections of one x, in few kernels (Pallas, through Triton).

A small model on a large GPU spends more time on LoRA's thin products than on x·W: each is a kernel, reads all of x or
of a gradient, and is followed by another kernel that adds two parts. Here

- x·A is one kernel for all projections that read the same x;
- x·W + t·B is one kernel, as is the gradient of x, the sum over the projections of g·Wᵀ + u·Aᵀ;
- u = g·Bᵀ and the gradient of B come from one kernel, which reads g once.

Every sum has a fixed order, so results are the same bits in each call. A product that crosses blocks is written as
parts, which XLA adds. `plain_products` is the same in plain JAX.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from lora_jax.models.layers import Kernel

ROWS, WIDTH = 256, 64  # rows of x must be a multiple of the one, d_in and d_out of the other
MAX_WIDTH = 2048  # At the widths of Llama-3-8B, cuBLAS' x·W gains more than one kernel saves.
MAX_RANK = 64
MIN_RANK = 16  # the smallest side of a product on tensor cores


def fits(x: Any, kernels: Sequence[Kernel], rank: int) -> bool:
    """Returns whether `products` takes these shapes and dtypes."""
    rows = x.size // x.shape[-1]
    widths = [x.shape[-1], *(kernel.shape[-1] for kernel in kernels)]
    narrow = x.dtype in (jnp.bfloat16, jnp.float16)
    small = rank <= MAX_RANK and max(widths) <= MAX_WIDTH
    return narrow and small and rows % ROWS == 0 and all(width % WIDTH == 0 for width in widths)


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
    rank = _padded(max(a.shape[-1] for a, _ in pairs))
    factors = [(_pad(a.astype(x.dtype), -1, rank), _pad(b.astype(x.dtype), -2, rank)) for a, b in pairs]
    results = _products(x.reshape(-1, x.shape[-1]), tuple(kernels), *map(tuple, zip(*factors, strict=True)))
    return [y.reshape(*x.shape[:-1], -1) for y in results]


@jax.custom_vjp
def _products(x, kernels, all_a, all_b):
    return _forward(x, kernels, all_a, all_b)[0]


def _forward(x, kernels, all_a, all_b):
    thin = checkpoint_name(_thin(x, all_a), "thin")
    results = tuple(
        _sum_of_products([x], [w.astype(x.dtype)], [thin[None]], [b], column=i)
        for i, (w, b) in enumerate(zip(kernels, all_b, strict=True))
    )
    return results, (x, kernels, all_a, all_b, thin)


def _backward(residuals, gs):
    x, kernels, all_a, all_b, thin = residuals
    parts = [_gradients_of_b(g, thin, b, column=i) for i, (g, b) in enumerate(zip(gs, all_b, strict=True))]
    us = [u for u, _ in parts]
    grad_x = _sum_of_products(gs, [w.astype(x.dtype) for w in kernels], us, all_a, transposed=True)
    grad_a = jnp.split(_gradient_of_a(x, us).sum(0).astype(x.dtype), len(us), axis=-1)
    return grad_x, None, tuple(grad_a), tuple(grad_b.sum(0).astype(x.dtype) for _, grad_b in parts)


_products.defvjp(_forward, _backward)


def _thin(x, all_a):
    """Returns x·A of each projection, side by side."""
    rows, (d_in, rank) = 32, all_a[0].shape

    def kernel(x_ref, *refs):
        *a_refs, out_ref = refs

        def product(s):
            x = x_ref[:, s]
            return [_dot(x, a_ref[s, :]) for a_ref in a_refs]

        for i, total in enumerate(_loop(d_in, product, [jnp.zeros((rows, rank), jnp.float32) for _ in all_a])):
            out_ref[:, i * rank : (i + 1) * rank] = total.astype(out_ref.dtype)

    width = rank * len(all_a)
    return _call(
        kernel,
        grid=(x.shape[0] // rows,),
        in_specs=[
            pl.BlockSpec((rows, d_in), lambda i: (i, 0)),
            *(pl.BlockSpec((d_in, rank), lambda i: (0, 0)) for _ in all_a),
        ],
        out_specs=pl.BlockSpec((rows, width), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], width), x.dtype),
        stages=5,
        name="lora_thin",
    )(x, *all_a)


def _sum_of_products(xs, ws, thins, bs, *, column=0, transposed=False):
    """Returns the sum of x·W + t·B over projections; `transposed`: of x·Wᵀ + t·Bᵀ.

    A `thin` has parts of t, to be added, in its first axis. `column` is t's place in its last axis.
    """
    out, rank = bs[0].shape if transposed else bs[0].shape[::-1]
    rows, columns, warps = (128, 128, 8) if out % 128 == 0 and out >= 1024 else (128, 64, 4)
    count = len(xs)

    def kernel(*refs):
        *inputs, out_ref = refs
        x_refs, w_refs, thin_refs, b_refs = (inputs[i * count : (i + 1) * count] for i in range(4))
        total = jnp.zeros(out_ref.shape, jnp.float32)
        for x_ref, w_ref in zip(x_refs, w_refs, strict=True):

            def product(s, x_ref=x_ref, w_ref=w_ref):
                return _dot(x_ref[:, s], w_ref[:, s] if transposed else w_ref[s, :], right=transposed)

            total = _loop(x_ref.shape[1], product, total)
        for thin_ref, b_ref in zip(thin_refs, b_refs, strict=True):
            total += _dot(_sum_parts(thin_ref, slice(None), out_ref.dtype), b_ref[...], right=transposed)
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
            *(pl.BlockSpec((thin.shape[0], rows, rank), lambda j, i: (0, i, column)) for thin in thins),
            *(columns_of(rank) for _ in bs),
        ],
        out_specs=pl.BlockSpec((rows, columns), lambda j, i: (i, j)),
        out_shape=jax.ShapeDtypeStruct((xs[0].shape[0], out), xs[0].dtype),
        warps=warps,
        name="lora_product",
    )(*xs, *ws, *thins, *bs)


def _gradients_of_b(g, thin, b, *, column):
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
            pl.BlockSpec((rows, rank), lambda i, j: (i, column)),
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


def _gradient_of_a(x, us):
    """Returns parts of xᵀ·u of each projection, side by side: ``[parts, d_in, projections · rank]``."""
    (total, d_in), rank = x.shape, us[0].shape[-1]

    def kernel(x_ref, *refs):
        *u_refs, out_ref = refs

        def product(s):
            x = x_ref[s, :]
            return [_dot(x, _sum_parts(u_ref, s, x.dtype), left=True) for u_ref in u_refs]

        for i, grad in enumerate(_loop(ROWS, product, [jnp.zeros((WIDTH, rank), jnp.float32) for _ in us])):
            out_ref[:, i * rank : (i + 1) * rank] = grad

    width = rank * len(us)
    return _call(
        kernel,
        grid=(d_in // WIDTH, total // ROWS),
        in_specs=[
            pl.BlockSpec((ROWS, WIDTH), lambda i, j: (j, i)),
            *(pl.BlockSpec((u.shape[0], ROWS, rank), lambda i, j: (0, j, 0)) for u in us),
        ],
        out_specs=pl.BlockSpec((None, WIDTH, width), lambda i, j: (j, i, 0)),
        out_shape=jax.ShapeDtypeStruct((total // ROWS, d_in, width), jnp.float32),
        name="lora_grad_a",
    )(x, *us)


def _sum_parts(ref: Any, rows: Any, dtype: Any) -> Array:
    """Returns those rows of the sum of ``ref[parts, rows, rank]`` over its parts."""
    total: Array = functools.reduce(jnp.add, (ref[part, rows, :] for part in range(ref.shape[0])))
    return total.astype(dtype)


def _loop(length: int, product: Callable[[Any], Any], start: Any) -> Any:
    """Returns `start` plus the sum of ``product(slice)`` over slices of WIDTH elements, of arrays or trees."""

    def add(i, total):
        return jax.tree.map(jnp.add, total, product(pl.ds(i * WIDTH, WIDTH)))

    return jax.lax.fori_loop(0, length // WIDTH, add, start)


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


def _padded(rank: int) -> int:
    """Returns the power of two that `rank` is padded to: Triton has no other sizes."""
    return max(MIN_RANK, 1 << (rank - 1).bit_length())


def _pad(x: Array, axis: int, size: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)
