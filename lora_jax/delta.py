"""The algebra of deltas, on plain pytrees: graft, merge, parameters, count. No files, no devices, no kinds of adapter.

A *delta* is a flat dict from a path to what goes there::

    {"backbone/layers/attn/q/adapter": LowRank(a, b),    # into a slot
     "head/kernel": Replacement(value)}                  # in place of a parameter

The base is only ever read. Layers are stacked, so a path names a weight of every layer at once.
"""

from typing import Any, Protocol, Self

import jax
from flax import nnx
from jaxtyping import Array

from lora_jax.errors import UserError
from lora_jax.models.quantised import is_quantised

SLOT = "adapter"  # the last part of the path of a slot


class Adapter(Protocol):
    """What a delta holds at a path: a pytree of arrays. ``adapters/`` has the kinds, and what they share."""

    def graft(self, module: nnx.Module, name: str) -> None:
        """Puts itself at the attribute `name` of `module`, which is a copy that may be changed."""

    def merge(self, module: nnx.Module, name: str, *, sign: int = 1) -> None:
        """Changes the parameters of `module`, a copy, so that it computes what it does with this grafted.

        ``sign=-1`` takes away again what was added. Raises UserError where no parameters can do that.
        """

    @property
    def size(self) -> int | None:
        """The length of the axes that padding may extend (a rank, a width), or None where there are none."""

    def resize(self, size: int) -> Self:
        """Returns a copy padded or cut to `size`; padding changes neither what it computes nor how it trains."""

    def neutral(self) -> Self:
        """Returns what stands for this in a run that does not use it: it changes nothing, and does not train."""

    def complete(self, example: Self) -> Self:
        """Returns a copy that has every optional field that `example` has, at a neutral value."""


Delta = dict[str, Adapter]


def parameters(module: nnx.Module) -> dict[str, Array]:
    """Returns every parameter of `module` by path, ``"backbone/layers/attn/q/kernel"``; a quantised kernel is one."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(module, is_leaf=is_quantised)
    return {_path(keys): leaf for keys, leaf in leaves}


def graft(base: nnx.Module, delta: Delta) -> nnx.Module:
    """Returns `base` with `delta` in place: new module objects around the same arrays.

    Raises KeyError for a path that `base` has neither a parameter nor a slot for.
    """
    model = _copy(base)
    for path, adapter in delta.items():
        adapter.graft(*_owner(model, path))
    return model


def merge(base: nnx.Module, delta: Delta, *, sign: int = 1) -> nnx.Module:
    """Returns a model without filled slots that computes what ``graft(base, delta)`` does.

    `delta` is a method's materialised delta. ``sign=-1`` takes away what was merged before. A quantised base becomes
    one of full width, every kernel of it: a sum would be rounded to few bits again.

    Raises UserError for an adapter that does not merge, and for one on an embedding whose table is the output layer too
    (a head's `tied`): grafted it adapts the lookup alone, as in PEFT, and merged it would change the output.
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
        adapter.merge(*_owner(model, path), sign=sign)
    return model


def count(tree: Any) -> int:
    """Returns how many numbers a tree of arrays (or of shapes) holds; a quantised kernel as many as it stands for."""
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
