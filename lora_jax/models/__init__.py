"""The model families: what of a checkpoint becomes which module. Another family is one file here and one row below."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from lora_jax.models import bert


@dataclasses.dataclass(frozen=True)
class Family:
    """How to read one family's checkpoints.

    `config` is a dataclass whose fields are keys of ``config.json``, `hidden_size` among them; `module` makes the
    backbone from it. The rest are tables beside the module, explained in models/bert.py.
    """

    config: type[Any]
    module: Callable[[Any], nnx.Module]
    names: Mapping[str, str]
    prefixes: tuple[str, ...] = ("",)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# By the `model_type` that config.json gives.
FAMILIES: dict[str, Family] = {
    "bert": Family(bert.BertConfig, bert.Bert, bert.NAMES, bert.PREFIXES, bert.RENAMED, bert.IGNORED, bert.FIXED),
}
