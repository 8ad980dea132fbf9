"""Factors on the learning rate, as constants beside the parameters that they belong to."""

from jaxtyping import Array, Float

from lora_jax.adapters.padded import Padded, adapter


@adapter
class LearningRateFactor(Padded):
    """What a parameter's learning rate is multiplied by: a factor for each layer if it is stacked. 0 freezes."""

    factor: Float[Array, "*layers"]
