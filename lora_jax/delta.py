"""The algebra of deltas, on plain pytrees: graft, merge, parameters, count. It knows no kind of adapter.

A *delta* is a flat dict from paths to adapters::

    {"backbone/layers/attn/q/adapter": LowRank(a, b),    # into a slot
     "head/kernel": Replacement(value)}                  # in place of a parameter

The base is never changed. Layers are stacked, so a path names a weight of every layer at once.
"""

from typing import Any, Protocol, Self

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from lora_jax.errors import UserError
from lora_jax.models.quantised import is_quantised

SLOT = "adapter"  # the last part of the path of a slot


class Adapter(Protocol):
    """A value of a delta: a pytree of arrays. ``adapters/`` has the kinds, and what they share."""

    def check_site(self, module: nnx.Module, name: str, *, path: str) -> None:
        """Raises UserError, with `path`, unless its shapes are those that the attribute `name` of `module` needs.

        Without it, an adapter of one layer would be broadcast to all of them. Shapes are known when a step is traced,
        so this takes no time in a compiled step.
        """

    def graft(self, module: nnx.Module, name: str) -> None:
        """Sets itself as the attribute `name` of `module`, a copy that may be changed."""

    def fused(self, dtype: DTypeLike) -> "Adapter":
        """Returns one that computes the same in `dtype` with the kernels of ``kernels/``, or itself."""

    def merge(self, module: nnx.Module, name: str, *, sign: int = 1) -> None:
        """Changes the parameters of `module`, a copy, so that it computes the same as with this adapter grafted.

        ``sign=-1`` undoes a merge. Raises UserError if no parameters compute the same.
        """

    @property
    def size(self) -> int | None:
        """The length of the padded axes (a rank, a width), or None without such axes."""

    def resize(self, size: int) -> Self:
        """Returns a copy padded or cut to `size`. Padding changes neither its outputs nor its updates."""

    def neutral(self) -> Self:
        """Returns an adapter of these shapes for a run without one: it has no effect and no gradient."""

    def complete(self, example: Self) -> Self:
        """Returns a copy with all optional fields that `example` has. New fields have neutral values."""


Delta = dict[str, Adapter]


def parameters(module: nnx.Module) -> dict[str, Array]:
    """Returns the parameters of `module` by path, ``"backbone/layers/attn/q/kernel"``. A quantised kernel is one."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(module, is_leaf=is_quantised)
    return {_path(keys): leaf for keys, leaf in leaves}


def graft(base: nnx.Module, delta: Delta) -> nnx.Module:
    """Returns `base` with the adapters of `delta` at their paths: new module objects around the same arrays.

    Raises:
      KeyError: `base` has neither a parameter nor a slot at a path.
      UserError: an adapter does not have the shapes that its place needs.
    """
    model = _copy(base)
    for path, adapter in delta.items():
        module, name = _owner(model, path)
        adapter.check_site(module, name, path=path)
        adapter.graft(module, name)
    return model


def merge(base: nnx.Module, delta: Delta, *, sign: int = 1) -> nnx.Module:
    """Returns a model with empty slots that computes the same as ``graft(base, delta)``.

    All kernels of a quantised base are dequantised first, because quantising the sum would round it again.

    Args:
      base: the frozen model.
      delta: a method's materialised delta.
      sign: -1 undoes a merge.

    Raises:
      UserError: an adapter cannot be merged, does not have the shapes that its place needs, or adapts an embedding that
        is the output layer too (a head's `tied`). Grafted, such an adapter affects the lookup alone, as in PEFT.
        Merged, it would change the output as well.
    """
    model = jax.tree.map(
        lambda leaf: leaf.astype(leaf.dtype) if is_quantised(leaf) else leaf, _copy(base), is_leaf=is_quantised
    )
    for path, adapter in delta.items():
        owner, _, name = path.rpartition("/")
        if name == SLOT and owner == getattr(base, "tied", None):
            raise UserError(
                f"{owner} is adapted, and its table is the output layer too: it cannot be merged, only grafted"
            )
        module, name = _owner(model, path)
        adapter.check_site(module, name, path=path)
        adapter.merge(module, name, sign=sign)
    return model


def count(tree: Any) -> int:
    """Returns the number of elements in a tree of arrays or shapes. A quantised kernel counts its weights."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree, is_leaf=is_quantised))


def _copy(base: nnx.Module) -> nnx.Module:
    return jax.tree.map(lambda leaf: leaf, base)


def _owner(model: nnx.Module, path: str) -> tuple[nnx.Module, str]:
    """Returns the module that has the last part of `path` as an attribute, and that part."""
    *owners, name = path.split("/")
    module: Any = model
    for owner in owners:
        module = getattr(module, owner, None)
    if not hasattr(module, name):
        raise KeyError(f"no parameter or slot at {path!r}")
    return module, name


def _path(keys: Any) -> str:
    names = [str(getattr(key, "name", getattr(key, "key", key))) for key in keys]
    return "/".join(name for name in names if name != "value")
