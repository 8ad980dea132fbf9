"""Target expressions: parses ``targets=...`` into the layers that LoRA adapts, with a rank and an alpha for each.

A *site* is a linear layer or an embedding that has a LoRA slot. Its name is its path without the layer's number
(``backbone/layers/attn/q``), because weights of layers are stacked. An expression selects sites and layers:

    qv                   a group: q k v o qv qkvo mlp all, which are linear layers of blocks;
                         embed (token embeddings), patch (ViT's projection)
    q+v+mlp              several groups, joined by +
    all@6:               some layers, as a Python slice: @:6, @6:, @0:12:2, @-1
    re:attn/[qv]$        a regular expression, searched for in names such as backbone/layers/3/attn/q.
                         It must come after the groups: mlp+re:attn/[qv]$
                         A pattern whose matching could take too long is refused: (a+)+$

A term that matches nothing is an error that lists the sites of the model. Otherwise a typing error would train
nothing, or everything, without a message.
"""

import dataclasses
import functools
import importlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import nnx

from lora_jax.delta import SLOT, parameters
from lora_jax.errors import UserError, shown

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
LONGEST_EXPRESSION = 4096
LONGEST_NAME = 32  # of a site with its layer, about
MOST_WAYS = 40_000  # in which a pattern may match at one place of a name, so that three .* are allowed


@dataclasses.dataclass(frozen=True)
class Site:
    """A linear layer or an embedding.

    Attributes:
      path: the path in the model, without the layer's number.
      d_in: the input size of a linear layer, or the rows of an embedding.
      d_out: the output size.
      layers: the number of stacked layers. None: the weight is not stacked.
      lookup: whether the site is an embedding.
    """

    path: str
    d_in: int
    d_out: int
    layers: int | None
    lookup: bool = False

    def names(self) -> list[str]:
        """Returns the names that regular expressions are matched with, one per layer."""
        if self.layers is None:
            return [self.path]
        return [self.path.replace("/layers/", f"/layers/{i}/") for i in range(self.layers)]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Ranks and alphas of one site, shape ``[layers]``; 0 for a layer that is not adapted."""

    site: Site
    rank: np.ndarray
    alpha: np.ndarray


def sites(base: nnx.Module) -> dict[str, Site]:
    """Returns the linear layers and embeddings of `base` outside its head, by path. `base` may be abstract."""
    result = {}
    for path, weight in parameters(base).items():
        owner, _, name = path.rpartition("/")
        slotted = hasattr(functools.reduce(getattr, owner.split("/") if owner else [], base), SLOT)
        if name in ("kernel", "embedding") and slotted and not owner.startswith("head"):
            *stacked, d_in, d_out = weight.shape
            result[owner] = Site(owner, d_in, d_out, stacked[0] if stacked else None, name == "embedding")
    return result


def select(all_sites: dict[str, Site], expression: str, *, key: str = "targets") -> dict[str, np.ndarray]:
    """Evaluates a target expression.

    Args:
      all_sites: the sites of the model, by path.
      expression: the expression.
      key: the setting that the expression comes from, for error messages.

    Returns:
      A mask of layers for each selected site, by path.

    Raises:
      UserError: a term is malformed or matches nothing.
    """
    if len(expression) > LONGEST_EXPRESSION:
        raise UserError(f"{key}={shown(expression)}: must be of at most {LONGEST_EXPRESSION} characters")
    selected = {path: np.zeros(site.layers or 1, bool) for path, site in all_sites.items()}
    for term in _terms(expression):
        pattern, at, layers = (term, "", "") if term.startswith("re:") else term.partition("@")
        chosen = _layers(layers, key, expression) if at else slice(None)
        regex = _regex(pattern, key, expression)
        matched = False
        for path, site in all_sites.items():
            hits = np.array([bool(regex.search(name)) for name in site.names()])
            in_slice = np.zeros_like(hits)
            in_slice[chosen] = True
            selected[path] |= hits & in_slice
            matched |= bool((hits & in_slice).any())
        if not matched:
            raise UserError(f"{key}={shown(expression)}: {shown(term)} matches nothing; {_list_sites(all_sites)}")
    return {path: layers for path, layers in selected.items() if layers.any()}


def select_linear(base: nnx.Module, targets: str, *, method: str) -> list[tuple[Site, np.ndarray]]:
    """Returns the linear layers that `targets` selects, each with a mask of its layers, for a `method` of those alone.

    Raises:
      UserError: a target matches nothing, or is an embedding.
    """
    all_sites = sites(base)
    selected = [(all_sites[path], layers) for path, layers in select(all_sites, targets).items()]
    for site, _ in selected:
        if site.lookup:
            raise UserError(
                f"targets={shown(targets)}: {site.path} is an embedding, and method={method} is defined for linear "
                f"layers only; use targets without it, or method=lora"
            )
    return selected


def place(
    base: nnx.Module,
    targets: str,
    rank: int,
    alpha_of,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
) -> dict[str, Placement]:
    """Computes the rank and alpha of every layer that `targets` selects.

    Args:
      base: the model; may be abstract.
      targets: the target expression.
      rank: the rank of layers that `rank_pattern` does not match.
      alpha_of: returns the alpha for a rank, for layers that `alpha_pattern` does not match.
      rank_pattern: ranks by target expression. The last match wins.
      alpha_pattern: alphas by target expression. The last match wins.

    Returns:
      A placement for each adapted site, by path.

    Raises:
      UserError: a target matches nothing, a pattern matches no target, or a rank exceeds a layer's smaller side.
    """
    all_sites = sites(base)
    chosen = select(all_sites, targets)
    ranks = {path: np.where(layers, rank, 0) for path, layers in chosen.items()}
    for expression, value in (rank_pattern or {}).items():
        for path, layers in _select_among_targets(all_sites, chosen, expression, "method.rank_pattern").items():
            ranks[path] = np.where(layers, value, ranks[path])
    alphas = {path: np.array([alpha_of(int(r)) if r else 0.0 for r in ranks[path]]) for path in chosen}
    for expression, alpha in (alpha_pattern or {}).items():
        for path, layers in _select_among_targets(all_sites, chosen, expression, "method.alpha_pattern").items():
            alphas[path] = np.where(layers, alpha, alphas[path])
    for path, per_layer in ranks.items():
        site, largest_rank = all_sites[path], int(per_layer.max())
        max_rank = min(site.d_in, site.d_out)
        if largest_rank > max_rank:
            raise UserError(
                f"rank={largest_rank}: {path} is {site.d_in} x {site.d_out}, so its rank is at most {max_rank}"
            )
    return {path: Placement(all_sites[path], ranks[path], alphas[path]) for path in chosen}


def _select_among_targets(all_sites, chosen, expression, key):
    """Returns the layers of `chosen` that a pattern's `expression` selects too."""
    selected = select(all_sites, expression, key=key)
    common = {path: layers & chosen[path] for path, layers in selected.items() if path in chosen}
    common = {path: layers for path, layers in common.items() if layers.any()}
    if not common:
        raise UserError(f"{key}: {shown(expression)} matches none of the targets {', '.join(chosen)}")
    return common


def _terms(expression: str) -> list[str]:
    """Splits an expression at +. A regular expression may contain +, so it extends to the end."""
    groups, regex, pattern = expression.partition("re:")
    if not regex:
        return groups.split("+")
    return [*(groups.removesuffix("+").split("+") if groups else []), regex + pattern]


def _regex(pattern: str, key: str, expression: str) -> re.Pattern:
    if pattern in GROUPS:
        return re.compile(GROUPS[pattern])
    if not pattern.startswith("re:"):
        raise UserError(
            f"{key}={shown(expression)}: {shown(pattern)} is not a target group; use {', '.join(GROUPS)} or re:<regex>"
        )
    pattern = pattern.removeprefix("re:")
    try:
        regex = re.compile(pattern)
        ways = _ways(_PARSER.parse(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{key}={shown(expression)}: not a regular expression: {error}") from None
    if ways > MOST_WAYS:
        raise UserError(
            f"{key}={shown(expression)}: may take too long to match; use fewer repetitions, and none within another"
        )
    return regex


_PARSER = importlib.import_module("re._parser")  # has no other name that is not deprecated


def _ways(pattern: Iterable[tuple[Any, Any]]) -> int:
    """Returns a bound on the ways to match a parsed pattern at one place of a name; at most MOST_WAYS + 1.

    Matching tries them one after another. It takes their number times the name's length in the worst case.
    """
    ways = 1
    for operator, argument in pattern:
        match str(operator):
            case "BRANCH":
                ways *= sum(map(_ways, argument[1]))
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                fewest, most, repeated = argument
                once = _ways(repeated)
                ways *= max(1, sum(once**times for times in range(fewest, min(most, LONGEST_NAME) + 1)))
            case "SUBPATTERN":
                ways *= _ways(argument[-1])
            case "ATOMIC_GROUP":
                ways *= _ways(argument)
            case "ASSERT" | "ASSERT_NOT":
                ways *= _ways(argument[1])
            case "GROUPREF_EXISTS":
                ways *= sum(_ways(part) for part in argument[1:] if part)
        ways = min(ways, MOST_WAYS + 1)
    return ways


def layer_mask(text: str, layers: int, *, key: str) -> np.ndarray:
    """Returns a mask, shape ``[layers]``, of the layers that `text` selects: a number or a Python slice, as after @.

    Args:
      text: the number or slice.
      layers: the number of layers of the model.
      key: the setting that `text` comes from, for error messages.

    Raises:
      UserError: `text` is malformed or selects no layer.
    """
    mask = np.zeros(layers, bool)
    mask[_layers(text, key, text)] = True
    if not mask.any():
        raise UserError(f"{key}={shown(text)}: selects none of the {layers} layers of this model")
    return mask


def _layers(text: str, key: str, expression: str) -> slice:
    number = "-?[0-9]{1,9}"
    if not re.fullmatch(f"{number}|({number})?:({number})?(:(?!-?0+$)({number})?)?", text):
        raise UserError(f"{key}={shown(expression)}: layers are a number or a slice such as 0:6, got {shown(text)}")
    numbers = [int(part) if part else None for part in text.split(":")]
    if len(numbers) == 1:
        index = int(text)
        return slice(index, index + 1 or None)
    return slice(*numbers)


def _list_sites(all_sites: dict[str, Site]) -> str:
    names = [f"{site.path} ({site.layers} layers)" if site.layers else site.path for site in all_sites.values()]
    return "this model has " + ", ".join(names)
