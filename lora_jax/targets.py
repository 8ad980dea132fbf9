"""Which weights LoRA adapts: from what a person types to ranks and alphas, layer by layer.

A *site* is a linear layer or an embedding that has a LoRA slot, named by its path without the layer's number
(``backbone/layers/attn/q``); weights of layers are stacked. An expression picks sites and layers:

    qv                   a group: q k v o qv qkvo mlp all, all of which are linear layers of blocks;
                         embed (of words), patch (ViT's projection)
    q+v+mlp              several, joined by +
    all@6:               only some layers, as in a Python slice: @:6, @6:, @0:12:2, @-1
    re:attn/[qv]$        a regular expression, searched for in names such as backbone/layers/3/attn/q;
                         after groups, mlp+re:attn/[qv]$, it comes last

What matches nothing is an error that lists what could be: training silently nothing, or everything, is the mistake
this file exists to prevent.
"""

import dataclasses
import functools
import re

import numpy as np
from flax import nnx

from lora_jax.delta import SLOT, parameters
from lora_jax.errors import UserError

GROUPS = {
    "q": r"/attn/q$",
    "k": r"/attn/k$",
    "v": r"/attn/v$",
    "o": r"/attn/o$",
    "qv": r"/attn/[qv]$",
    "qkvo": r"/attn/[qkvo]$",
    "mlp": r"/layers/\d+/mlp/",
    "all": r"/layers/\d+/(attn|mlp)/",
    "embed": r"/embed(/word)?$",
    "patch": r"/embed/patch$",
}


@dataclasses.dataclass(frozen=True)
class Site:
    """A linear layer, or an embedding of `d_in` rows, a `lookup`; `layers` is None where it is not stacked."""

    path: str
    d_in: int
    d_out: int
    layers: int | None
    lookup: bool = False

    def names(self) -> list[str]:
        """One name per layer, as regular expressions see them."""
        if self.layers is None:
            return [self.path]
        return [self.path.replace("/layers/", f"/layers/{i}/") for i in range(self.layers)]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Rank and alpha of one site: an entry per layer, 0 where that layer is not adapted."""

    site: Site
    rank: np.ndarray
    alpha: np.ndarray


def sites(base: nnx.Module) -> dict[str, Site]:
    """Every linear layer and embedding of `base` below its head, by path. `base` may be abstract (shapes only)."""
    found = {}
    for path, weight in parameters(base).items():
        owner, _, name = path.rpartition("/")
        slotted = hasattr(functools.reduce(getattr, owner.split("/") if owner else [], base), SLOT)
        if name in ("kernel", "embedding") and slotted and not owner.startswith("head"):
            *stacked, d_in, d_out = weight.shape
            found[owner] = Site(owner, d_in, d_out, stacked[0] if stacked else None, name == "embedding")
    return found


def select(found: dict[str, Site], expression: str, *, key: str = "targets") -> dict[str, np.ndarray]:
    """The layers that `expression` picks: path to a boolean per layer.

    Raises UserError, naming `key`, where a term is malformed or matches nothing.
    """
    picked = {path: np.zeros(site.layers or 1, bool) for path, site in found.items()}
    for term in _terms(expression):
        pattern, at, layers = (term, "", "") if term.startswith("re:") else term.partition("@")
        chosen = _layers(layers, key, expression) if at else slice(None)
        regex = _regex(pattern, key, expression)
        matched = False
        for path, site in found.items():
            hits = np.array([bool(regex.search(name)) for name in site.names()])
            within = np.zeros_like(hits)
            within[chosen] = True
            picked[path] |= hits & within
            matched |= bool((hits & within).any())
        if not matched:
            raise UserError(f"{key}={expression!r}: {term!r} matches nothing; {_offer(found)}")
    return {path: layers for path, layers in picked.items() if layers.any()}


def place(
    base: nnx.Module,
    targets: str,
    rank: int,
    alpha_of,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
) -> dict[str, Placement]:
    """Rank and alpha for every site that `targets` picks.

    `alpha_of(rank)` gives α where `alpha_pattern` does not; the patterns' keys are expressions, the last match wins.
    Raises UserError for a rank above a layer's smaller side, and for a pattern that meets no target.
    """
    found = sites(base)
    chosen = select(found, targets)
    ranks = {path: np.where(layers, rank, 0) for path, layers in chosen.items()}
    for expression, value in (rank_pattern or {}).items():
        for path, layers in _meet(found, chosen, expression, "method.rank_pattern").items():
            ranks[path] = np.where(layers, value, ranks[path])
    alphas = {path: np.array([alpha_of(int(r)) if r else 0.0 for r in ranks[path]]) for path in chosen}
    for expression, alpha in (alpha_pattern or {}).items():
        for path, layers in _meet(found, chosen, expression, "method.alpha_pattern").items():
            alphas[path] = np.where(layers, alpha, alphas[path])
    for path, per_layer in ranks.items():
        site, asked = found[path], int(per_layer.max())
        if asked > (most := min(site.d_in, site.d_out)):
            raise UserError(f"rank={asked}: {path} is {site.d_in} x {site.d_out}, so its rank is at most {most}")
    return {path: Placement(found[path], ranks[path], alphas[path]) for path in chosen}


def _meet(found, chosen, expression, key):
    picked = select(found, expression, key=key)
    both = {path: layers & chosen[path] for path, layers in picked.items() if path in chosen}
    both = {path: layers for path, layers in both.items() if layers.any()}
    if not both:
        raise UserError(f"{key}: {expression!r} meets none of the targets: {', '.join(chosen)}")
    return both


def _terms(expression: str) -> list[str]:
    """A regular expression comes last, since it may have a + of its own."""
    groups, regex, pattern = expression.partition("re:")
    if not regex:
        return groups.split("+")
    return [*(groups.removesuffix("+").split("+") if groups else []), regex + pattern]


def _regex(pattern: str, key: str, expression: str) -> re.Pattern:
    if pattern in GROUPS:
        return re.compile(GROUPS[pattern])
    if not pattern.startswith("re:"):
        raise UserError(f"{key}={expression!r}: {pattern!r} is no group; use {', '.join(GROUPS)}, or re:<regex>")
    try:
        return re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise UserError(f"{key}={expression!r}: not a regular expression: {error}") from None


def _layers(text: str, key: str, expression: str) -> slice | int:
    if not re.fullmatch(r"-?\d+|(-?\d+)?:(-?\d+)?(:-?0*[1-9]\d*)?", text):
        raise UserError(f"{key}={expression!r}: layers are a number or a slice such as 0:6, got {text!r}")
    numbers = [int(part) if part else None for part in text.split(":")]
    if len(numbers) == 1:
        index = int(text)
        return slice(index, index + 1 or None)
    return slice(*numbers)


def _offer(found: dict[str, Site]) -> str:
    names = [f"{site.path} ({site.layers} layers)" if site.layers else site.path for site in found.values()]
    return "this model has " + ", ".join(names)
