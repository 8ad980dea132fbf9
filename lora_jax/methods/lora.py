"""LoRA (Hu et al., arXiv 2106.09685): W + s·A·B, with A and B trained and W frozen. And its variants, which combine.

|variant|setting|what changes|
|-|-|-|
|rsLoRA (arXiv 2312.03732)|``scaling=rslora``|s|
|LoRA+ (arXiv 2402.12354)|``lr_ratio``|the learning rate of B|
|DoRA (arXiv 2402.09353)|``dora``|the lengths of W's columns train apart: `adapters.dora`|
|PiSSA (arXiv 2404.02948), LoRA-GA (arXiv 2407.05000)|``init``|A₀ and B₀, with W - s·A₀·B₀ in place of W|
|LoRA-FA (arXiv 2308.03303)|``freeze_a``|A does not train|
|LoRA Dropout (arXiv 2404.09610)|``factor_dropout``, ``ensemble``|A and B are masked: `adapters.low_rank`|
|of fused projections (PEFT)|``share_a``|q, k and v have one A|
|of heads (Keras)|``per_head``|each head has an A, and all have one B|

The initial values are in `lora_init`, the factors s in `lora_scaling`, the sites of each variant in `lora_sites`, and
what trains beside the pairs in `trained_beside`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from lora_jax.adapters import (
    Dora,
    HeadFactors,
    InputFactor,
    LowRank,
    Magnitude,
    OutputFactor,
    Padded,
    Replacement,
)
from lora_jax.config import LoraSettings, RunConfig
from lora_jax.delta import SLOT, Delta, count, parameters
from lora_jax.methods.lora_init import gradient_pair, pair_from, principal_factors, random_pair
from lora_jax.methods.lora_scaling import scaling_of
from lora_jax.methods.lora_sites import heads_of, owner_of, placements, settings_of, shared_inputs
from lora_jax.methods.method import AdapterInit, Method, init_head, key_of
from lora_jax.methods.trained_beside import init_trained, trained_layers
from lora_jax.targets import Placement

PARTS = ("a", "magnitude")  # of a site's adapter, at paths of their own


@dataclasses.dataclass(frozen=True)
class Lora(Method):
    """Trains a low-rank pair for every target, and a new head.

    `materialise` reads the variant from what is there, so that it also takes what an adapter file has.
    """

    ensemble: int = 1

    @classmethod
    def from_settings(cls, settings: LoraSettings) -> Self:
        """Returns the method with the size of its ensemble. The shapes of a run's adapters say the rest."""
        return cls(settings.ensemble)

    def validate(self, base: nnx.Module, run: RunConfig) -> None:
        """Raises UserError for targets, ranks and patterns that `base` does not have, and what a variant cannot do."""
        trained_layers(base, settings_of(run), placements(base, run))

    def init(self, base: nnx.Module, run: RunConfig) -> AdapterInit:
        """Draws or computes a pair for every target at its true rank, and draws a head.

        Returns:
          ``params["<site>/adapter"]`` is ``LowRank(a=[layers, d_in, r], b=[layers, r, d_out])``, where r is the largest
          rank of the site in any layer. ``constants`` has a `Scaling` at the same path.
          A pair that is not zero at the start is also in ``constants["<site>/initial"]``. DoRA's lengths are
          ``params["<site>/magnitude"]``. An A that is frozen or shared is at ``<site>/a`` or, shared, at
          ``<owner>/qkv/a``, and the site has an `OutputFactor`. With factors per head it has `HeadFactors`.

        Raises:
          UserError: as `validate`.
          KeyError: ``method.init=lora_ga``, which needs `init_from_gradients`.
        """
        return self.init_from_gradients(base, run, {})

    def gradient_paths(self, base: nnx.Module, run: RunConfig) -> tuple[str, ...]:
        """Returns the kernels of the targets for LoRA-GA."""
        return tuple(f"{path}/kernel" for path in placements(base, run)) if settings_of(run).init == "lora_ga" else ()

    def gradient_batches(self, run: RunConfig) -> int:
        """Returns the setting `gradient_batches`."""
        return settings_of(run).gradient_batches

    def init_from_gradients(self, base: nnx.Module, run: RunConfig, gradients: Mapping[str, Array]) -> AdapterInit:
        """Returns what `init` describes. Only ``method.init=lora_ga`` reads `gradients`."""
        settings, placed, weights = settings_of(run), placements(base, run), parameters(base)
        shared = {} if settings.share_a == "none" else shared_inputs(placed, settings.share_a)
        head = init_head(base, run.initial_seed)
        parts = [init_trained(base, settings, placed), AdapterInit(head, trainable=count(head))]
        for path, placement in shared.items():
            parts.append(_init_shared(placement, _key(run, path), path, settings))
        for path, placement in placed.items():
            weight = weights[f"{path}/{'embedding' if placement.site.lookup else 'kernel'}"]
            if owner_of(path) in shared:
                parts.append(_init_output(placement, settings))
            elif settings.per_head and (heads := heads_of(base, path)):
                parts.append(_init_heads(placement, _key(run, path), heads, settings))
            else:
                pair = _initial_pair(placement, _key(run, path), settings, weight, gradients)
                parts.append(_init_pair(placement, pair, settings))
            if settings.dora:
                parts.append(_init_magnitude(placement, weight))
        return AdapterInit(
            {path: value for part in parts for path, value in part.params.items()},
            {path: value for part in parts for path, value in part.constants.items()},
            sum(part.trainable for part in parts),
        )

    def materialise(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Delta:
        """Returns an adapter for each site, with the scale folded into B, and what else is trained."""
        delta: Delta = {}
        for path, value in params.items():
            site, _, name = path.rpartition("/")
            if name == SLOT:
                delta[path] = _adapter(site, params, constants)
            elif path in constants:
                delta[path] = Replacement(value.value, constants[path].active)
            elif name not in PARTS:
                delta[path] = value
        return delta

    def learning_rate_multipliers(self, params: Mapping[str, Any], constants: Mapping[str, Any]) -> Any:
        """Returns LoRA+'s ratio for each B, and 1 for the rest (arXiv 2402.12354, section 4).

        PEFT also gives the ratio to every vector, such as the head's bias, and a rate of its own to embeddings.
        """
        factors = jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), dict(params))
        for path, scaling in constants.items():
            if path.endswith(f"/{SLOT}") and scaling.lr_ratio is not None:
                factors[path] = dataclasses.replace(factors[path], b=scaling.lr_ratio[..., None, None])
        return factors


def _key(run: RunConfig, path: str) -> PRNGKeyArray:
    # The stream's name is older than the slot's: a seed gives the numbers that it has always given.
    return key_of(run.initial_seed, f"{path}/lora")


def _initial_pair(
    placement: Placement, key: PRNGKeyArray, settings: LoraSettings, weight: Any, gradients: Mapping[str, Array]
) -> LowRank:
    scale = scaling_of(placement, settings).scale
    if settings.init == "pissa":
        return pair_from(weight, placement, scale, principal_factors)
    if settings.init == "lora_ga":
        return gradient_pair(gradients[f"{placement.site.path}/kernel"], placement, scale, settings.gamma)
    return random_pair(placement, key, settings.init)


def _init_pair(placement: Placement, pair: LowRank, settings: LoraSettings) -> AdapterInit:
    """Returns a site of its own A and B. What is not zero at the start is subtracted from the base's kernel."""
    site, ranks = placement.site, int(placement.rank.sum())
    path = f"{site.path}/{SLOT}"
    constants: dict[str, Padded] = {path: scaling_of(placement, settings)}
    if settings.has_residual:
        constants[f"{site.path}/initial"] = pair
    if settings.freeze_a:
        constants[f"{site.path}/a"] = InputFactor(pair.a)
        return AdapterInit({path: OutputFactor(pair.b)}, constants, ranks * site.d_out)
    return AdapterInit({path: pair}, constants, ranks * (site.d_in + site.d_out))


def _init_shared(placement: Placement, key: PRNGKeyArray, owner: str, settings: LoraSettings) -> AdapterInit:
    """Returns the A of several sites."""
    a = {f"{owner}/a": InputFactor(random_pair(placement, key, settings.init).a)}
    if settings.freeze_a:
        return AdapterInit({}, dict(a))
    return AdapterInit(dict(a), trainable=int(placement.rank.sum()) * placement.site.d_in)


def _init_output(placement: Placement, settings: LoraSettings) -> AdapterInit:
    """Returns a site of a shared A: its B, of zeros."""
    site, path = placement.site, f"{placement.site.path}/{SLOT}"
    layers = () if site.layers is None else (site.layers,)
    b = OutputFactor(jnp.zeros((*layers, int(placement.rank.max()), site.d_out)))
    return AdapterInit({path: b}, {path: scaling_of(placement, settings)}, int(placement.rank.sum()) * site.d_out)


def _init_heads(placement: Placement, key: PRNGKeyArray, heads: int, settings: LoraSettings) -> AdapterInit:
    """Returns a site with an A for each head of its outputs, and one B."""
    site, path = placement.site, f"{placement.site.path}/{SLOT}"
    d_head = site.d_out // heads
    of_head = dataclasses.replace(placement, site=dataclasses.replace(site, d_out=d_head))
    pairs = [random_pair(of_head, jax.random.fold_in(key, head), settings.init) for head in range(heads)]
    factors = HeadFactors(jnp.stack([pair.a for pair in pairs], -3), pairs[0].b)
    trainable = int(placement.rank.sum()) * (heads * site.d_in + d_head)
    return AdapterInit({path: factors}, {path: scaling_of(placement, settings)}, trainable)


def _init_magnitude(placement: Placement, kernel: Any) -> AdapterInit:
    """Returns the lengths of the base's columns. At the start W + s·A·B, less what PiSSA subtracts, is the base's W."""
    wide: Array = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    lengths = jnp.sqrt((wide * wide).sum(-2)).astype(jnp.zeros(()).dtype)
    active = placement.rank > 0 if placement.site.layers else placement.rank[0] > 0
    magnitude = Magnitude(jnp.where(active[..., None], lengths, 0))
    return AdapterInit({f"{placement.site.path}/magnitude": magnitude}, {}, int(active.sum()) * placement.site.d_out)


def _adapter(site: str, params: Mapping[str, Any], constants: Mapping[str, Any]) -> LowRank | Dora:
    """Returns the adapter of one site, whose A may be frozen or belong to several sites."""
    scaling = constants[f"{site}/{SLOT}"]
    places = [(part, f"{owner}/a") for owner in (site, owner_of(site)) for part in (params, constants)]
    input_factor = next((part[path] for part, path in places if path in part), None)
    pair: LowRank = params[f"{site}/{SLOT}"].pair(input_factor)
    scale = scaling.scale[..., None, None].astype(pair.b.dtype)
    a, b = pair.a, pair.b * scale
    initial = constants.get(f"{site}/initial")
    if initial is not None:
        # s·A·B - s·A₀·B₀ as one pair. The base, which other runs share, keeps W.
        a = jnp.concatenate([a, initial.a.astype(a.dtype)], -1)
        b = jnp.concatenate([b, -scale * initial.b.astype(b.dtype)], -2)
    dropout, factor_dropout = (
        None if rate is None else jnp.broadcast_to(rate, scaling.scale.shape)
        for rate in (scaling.dropout, scaling.factor_dropout)
    )
    magnitude = params.get(f"{site}/magnitude")
    if magnitude is None:
        return LowRank(a, b, dropout, factor_dropout)
    return Dora(a, b, magnitude.value, scaling.scale > 0, dropout, factor_dropout)
