"""Adapters: typed pytrees for a model's slots, or in place of its parameters. One file and one row per kind.

An adapter defines how it is applied, how it merges into the base, how it is padded, and its neutral value for runs
that do not use it. `lora_jax.delta.Adapter` is the contract.

To add one: write a dataclass in ``adapters/<kind>.py``, decorate it with `adapter`, and add a row to ADAPTERS.
"""

from lora_jax.adapters.low_rank import LowRank, Scaling
from lora_jax.adapters.padded import Padded, adapter, padded_axis
from lora_jax.adapters.replacement import Activity, Replacement

# By the name of a kind in adapter files. Constants of methods (`Scaling`, `Activity`) are stored in the same way.
ADAPTERS: dict[str, type[Padded]] = {
    "low_rank": LowRank,
    "scaling": Scaling,
    "replacement": Replacement,
    "activity": Activity,
}

__all__ = ["ADAPTERS", "Activity", "LowRank", "Padded", "Replacement", "Scaling", "adapter", "padded_axis"]
