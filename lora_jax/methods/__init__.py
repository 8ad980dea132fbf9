"""Fine-tuning methods: the parameters that a run trains, and the delta that they make. One file and one row per method.

`method.Method` is the contract. To add a method: write ``methods/<name>.py``, its settings in ``config/methods.py``, a
row in METHODS and a file in ``conf/method/``. Packing, checkpoints, adapter files and the report need no change.
README.md has an example.
"""

from collections.abc import Callable
from typing import Any

from lora_jax.config import MethodSettings
from lora_jax.methods.bitfit import BitFit
from lora_jax.methods.bottleneck import BottleneckAdapters
from lora_jax.methods.full import Full
from lora_jax.methods.layerwise import Layerwise
from lora_jax.methods.lora import Lora
from lora_jax.methods.method import AdapterInit, Method, key_of
from lora_jax.methods.miss import Miss
from lora_jax.methods.prefix import PrefixTuning
from lora_jax.methods.top_layers import TopLayers
from lora_jax.methods.vera import Vera
from lora_jax.methods.virtual import VirtualTokenTuning

METHODS: dict[str, Callable[[Any], Method]] = {
    "lora": Lora.from_settings,
    "full": Full.from_settings,
    "top_layers": TopLayers.from_settings,
    "layerwise": Layerwise.from_settings,
    "bitfit": BitFit.from_settings,
    "adapter_h": BottleneckAdapters.from_settings,
    "adapter_p": BottleneckAdapters.from_settings,
    "adapter_l": BottleneckAdapters.from_settings,
    "adapter_d": BottleneckAdapters.from_settings,
    "vera": Vera.from_settings,
    "miss": Miss.from_settings,
    "prefix": PrefixTuning.from_settings,
    "prompt": VirtualTokenTuning.from_settings,
    "preembed": VirtualTokenTuning.from_settings,
    "prelayer": VirtualTokenTuning.from_settings,
}


def method_of(settings: MethodSettings) -> Method:
    """Returns the method that these settings describe."""
    return METHODS[settings.name](settings)


__all__ = ["METHODS", "AdapterInit", "Method", "key_of", "method_of"]
