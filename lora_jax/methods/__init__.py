"""How a run departs from its base: one file per method, one row here.

A method is a module with three functions:

    check(base, run)                    raises UserError where `run` asks for what `base`, maybe abstract, has not
    start(base, run) -> Start           the parameters it trains, at their true rank, and its constants
    materialise(params, constants)      those, as a delta that ``graft`` can put into the base; pure and traced

To add one: write ``methods/<name>.py``, give it a row in METHODS, settings in ``config.py`` and a file in
``conf/method/``. Everything else (packing, checkpoints, the report) follows.
"""

from types import ModuleType

from lora_jax.methods import full, lora
from lora_jax.methods.start import Start

METHODS: dict[str, ModuleType] = {"lora": lora, "full": full}

__all__ = ["METHODS", "Start"]
