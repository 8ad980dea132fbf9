"""From a plain mapping to a RunConfig, or to an error that a person can act on."""

import re
from collections.abc import Mapping
from typing import Any

import pydantic

from lora_jax.config.run import RunConfig
from lora_jax.errors import UserError


def parse(settings: Mapping[str, Any]) -> RunConfig:
    """Returns a validated RunConfig from a mapping, as Hydra composes it.

    Raises UserError naming each bad key, its value, and what would be accepted.
    """
    try:
        return RunConfig.model_validate(dict(settings))
    except pydantic.ValidationError as error:
        # Where several kinds of value would do, there is an error for each.
        explained: dict[str, dict[str, None]] = {}
        for start, message in map(_explain, error.errors()):
            explained.setdefault(start, {})[message] = None
        raise UserError("\n".join(start + " or ".join(messages) for start, messages in explained.items())) from None


# What pydantic puts into a location and nobody typed: the kind of value that it tried.
_TRIED = re.compile(r"(constrained-)?(int|float|str|dict)(\[.*\])?|literal\[.*\]|function-\w+\[.*\]|none")


def _explain(item: Any) -> tuple[str, str]:
    # A discriminated union puts the tag ("lora") into the location; the user typed method.rank_pattern, no tag.
    parts = [part for i, part in enumerate(item["loc"]) if not (i == 1 and item["loc"][0] == "method")]
    key = ".".join(str(part) for part in parts if not _TRIED.fullmatch(str(part)))
    if item["type"] == "extra_forbidden":
        return f"unknown setting {key}={item['input']!r}", ""
    if item["type"] == "missing":
        return f"{key} is missing", ""
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("must be ")
    return (f"{key}={item['input']!r}: must be ", message) if key else ("", message)
