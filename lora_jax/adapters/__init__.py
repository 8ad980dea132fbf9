"""What can stand in a model's slot, or in place of one of its parameters: one file a kind, one row here.

An adapter is a pytree of arrays that knows how to apply itself, how to merge into the base, which of its axes padding
may extend, and what it looks like where a run does not use it. `lora_jax.delta.Adapter` is the contract.

To add one: write a dataclass in ``adapters/<kind>.py``, decorate it with `adapter`, and give it a row in ADAPTERS, by
which adapter files name it.
"""

from lora_jax.adapters.low_rank import LowRank, Scaling
from lora_jax.adapters.padded import Padded, adapter, padded_axis
from lora_jax.adapters.replacement import Activity, Replacement

# By the name that adapter files give a kind. Fixed values that a method keeps beside its adapters are stored likewise.
ADAPTERS: dict[str, type[Padded]] = {
    "low_rank": LowRank,
    "scaling": Scaling,
    "replacement": Replacement,
    "activity": Activity,
}

__all__ = ["ADAPTERS", "Activity", "LowRank", "Padded", "Replacement", "Scaling", "adapter", "padded_axis"]
