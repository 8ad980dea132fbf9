"""Adapters: typed pytrees for a model's slots, or in place of its parameters. One file and one row per kind.

An adapter defines how it is applied, how it merges into the base, how it is padded, and its neutral value for runs
that do not use it. `lora_jax.delta.Adapter` is the contract.

To add one: write a dataclass in ``adapters/<kind>.py``, decorate it with `adapter`, and add a row to ADAPTERS.
"""

from lora_jax.adapters.bottleneck import Bottleneck, BottleneckBiases, BottleneckKernels
from lora_jax.adapters.dora import Dora, Magnitude
from lora_jax.adapters.learning_rate import LearningRateFactor
from lora_jax.adapters.low_rank import HeadFactors, InputFactor, LowRank, OutputFactor, Scaling
from lora_jax.adapters.miss import MissBlock, MissIndex
from lora_jax.adapters.padded import Padded, adapter, padded_axis
from lora_jax.adapters.prefix import Prefix, Visibility
from lora_jax.adapters.replacement import Activity, OutputMask, OutputReplacement, Replacement, TopReplacement
from lora_jax.adapters.vera import VeraProjections, VeraVectors
from lora_jax.adapters.virtual import VirtualRows, VirtualStates, VirtualTokens

# By the name of a kind in adapter files. Constants of methods (`Scaling`, `Activity`) are stored in the same way.
ADAPTERS: dict[str, type[Padded]] = {
    "low_rank": LowRank,
    "scaling": Scaling,
    "magnitude": Magnitude,
    "input_factor": InputFactor,
    "output_factor": OutputFactor,
    "head_factors": HeadFactors,
    "replacement": Replacement,
    "output_replacement": OutputReplacement,
    "output_mask": OutputMask,
    "activity": Activity,
    "bottleneck_kernels": BottleneckKernels,
    "bottleneck_biases": BottleneckBiases,
    "vera_vectors": VeraVectors,
    "vera_projections": VeraProjections,
    "miss_block": MissBlock,
    "miss_index": MissIndex,
    "top_replacement": TopReplacement,
    "learning_rate_factor": LearningRateFactor,
    "prefix": Prefix,
    "visibility": Visibility,
    "virtual_tokens": VirtualTokens,
    "virtual_rows": VirtualRows,
    "virtual_states": VirtualStates,
}

__all__ = [
    "ADAPTERS",
    "Activity",
    "Bottleneck",
    "BottleneckBiases",
    "BottleneckKernels",
    "Dora",
    "HeadFactors",
    "InputFactor",
    "LearningRateFactor",
    "LowRank",
    "Magnitude",
    "MissBlock",
    "MissIndex",
    "OutputFactor",
    "OutputMask",
    "OutputReplacement",
    "Padded",
    "Prefix",
    "Replacement",
    "Scaling",
    "TopReplacement",
    "VeraProjections",
    "VeraVectors",
    "VirtualRows",
    "VirtualStates",
    "VirtualTokens",
    "Visibility",
    "adapter",
    "padded_axis",
]
