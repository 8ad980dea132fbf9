"""How a run departs from its base: one file per method, one row here. `method.Method` is the contract.

To add one: write ``methods/<name>.py``, give it a row in METHODS, settings in ``config/methods.py`` and a file in
``conf/method/``. Packing, checkpoints, adapter files and the report follow. README.md has an example.
"""

from collections.abc import Callable
from typing import Any

from lora_jax.config import MethodSettings
from lora_jax.methods.bitfit import BitFit
from lora_jax.methods.full import Full
from lora_jax.methods.lora import Lora
from lora_jax.methods.method import AdapterInit, Method, key_of

# From a method's settings to the method.
METHODS: dict[str, Callable[[Any], Method]] = {
    "lora": Lora.from_settings,
    "full": Full.from_settings,
    "bitfit": BitFit.from_settings,
}


def method_of(settings: MethodSettings) -> Method:
    """Returns the method that `settings` are of."""
    return METHODS[settings.name](settings)


__all__ = ["METHODS", "AdapterInit", "Method", "key_of", "method_of"]
