"""The algebra of deltas, on plain pytrees: graft, merge, pad, count. No files, no devices, no method names.

A *delta* is a flat dict from a path to what goes there::

    {"backbone/layers/attn/q/lora": {"a": [layers, d_in, r], "b": [layers, r, d_out]},   # into a slot
     "head/kernel": [d_in, labels]}                                                      # in place of a parameter

The base is only ever read. Layers are stacked, so a path names a weight of every layer at once, and a layer that a
run does not adapt simply has zeros there.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from lora_jax.errors import UserError
from lora_jax.models.quantised import is_quantised

Delta = dict[str, Any]  # an array, or a dict of arrays, by path


def parameters(module: nnx.Module) -> dict[str, Array]:
    """Every parameter of `module` by path, ``"backbone/layers/attn/q/kernel"``; a quantised kernel is one of them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(module, is_leaf=is_quantised)
    return {_path(keys): leaf for keys, leaf in leaves}


def graft(base: nnx.Module, delta: Delta) -> nnx.Module:
    """`base` with `delta` in place: new module objects around the same arrays.

    Raises KeyError for a path that `base` has neither a parameter nor a slot for.
    """
    model = jax.tree.map(lambda leaf: leaf, base)
    for path, value in delta.items():
        *owners, name = path.split("/")
        module = model
        for owner in owners:
            module = getattr(module, owner, None)
        if not hasattr(module, name):
            raise KeyError(f"no parameter or slot at {path!r}")
        setattr(module, name, nnx.data(value) if isinstance(value, dict) else nnx.Param(value))
    return model


def merge(base: nnx.Module, delta: Delta, *, sign: int = 1) -> nnx.Module:
    """A model without slots that computes what ``graft(base, delta)`` does: each kernel or table becomes W + A·B.

    `delta` is a method's materialised delta (scale folded into B). ``sign=-1`` takes A·B away again. A quantised base
    becomes one of full width, every kernel of it: W + A·B would be rounded to few bits again.

    Raises UserError for a pair on an embedding whose table is the output layer too (a head's `tied`): grafted it adapts
    the lookup alone, as in PEFT, and merged it would change the output.
    """
    base = graft(base, {path: leaf.astype(leaf.dtype) for path, leaf in parameters(base).items() if is_quantised(leaf)})
    kernels = parameters(base)
    merged = {}
    for path, value in delta.items():
        if isinstance(value, dict):
            owner = path.removesuffix("/lora")
            if owner == getattr(base, "tied", None):
                raise UserError(
                    f"{owner} is adapted, and its table is the output layer too: it cannot be merged, only grafted"
                )
            name = f"{owner}/kernel" if f"{owner}/kernel" in kernels else f"{owner}/embedding"
            merged[name] = kernels[name] + sign * product_of(value).astype(kernels[name].dtype)
        else:
            merged[path] = value
    return graft(base, merged)


def product_of(pair: dict[str, Array]) -> Array:
    """ΔW = A·B, ``[..., d_in, d_out]``, in float32 at least."""
    wide = jnp.promote_types(pair["a"].dtype, jnp.float32)
    return jnp.matmul(pair["a"].astype(wide), pair["b"].astype(wide), precision="highest")


def ranks(delta: Delta) -> dict[str, int]:
    """The rank that each LoRA pair is stored at."""
    return {path: value["a"].shape[-1] for path, value in delta.items() if isinstance(value, dict)}


def resize(delta: Delta, rank: dict[str, int]) -> Delta:
    """`delta` with A's columns and B's rows zero-padded, or cut, to ``rank[path]``.

    Padding changes nothing: with the extra columns of A and rows of B at zero, A·B is the same and both gradients are
    exactly zero there, so any element-wise optimizer leaves them at zero.
    """

    def to(array, axis, size):
        if array.shape[axis] >= size:
            return array[(..., slice(size), *[slice(None)] * (-1 - axis))]
        width = [(0, 0)] * array.ndim
        width[axis] = (0, size - array.shape[axis])
        return jnp.pad(array, width)

    return {
        path: {"a": to(value["a"], -1, rank[path]), "b": to(value["b"], -2, rank[path])}
        if isinstance(value, dict)
        else value
        for path, value in delta.items()
    }


def count(tree) -> int:
    """How many numbers a tree of arrays (or of shapes) holds; a quantised kernel as many as it stands for."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree, is_leaf=is_quantised))


def _path(keys) -> str:
    names = [str(getattr(key, "name", getattr(key, "key", key))) for key in keys]
    return "/".join(name for name in names if name != "value")
