"""Parses a plain mapping into a RunConfig, and explains pydantic's errors in the user's terms."""

import re
from collections.abc import Mapping
from typing import Any

import pydantic

from lora_jax.config.run import RunConfig
from lora_jax.errors import UserError, shown


def parse(settings: Mapping[str, Any]) -> RunConfig:
    """Returns the RunConfig of a mapping as Hydra composes it.

    Raises:
      UserError: a setting is invalid. The message names each bad key, its value, and what would be accepted.
    """
    try:
        return RunConfig.model_validate(dict(settings))
    except pydantic.ValidationError as error:
        # A setting that accepts several types has an error for each of them.
        explained: dict[str, dict[str, None]] = {}
        for start, message in map(_explain, error.errors()):
            explained.setdefault(start, {})[message] = None
        raise UserError("\n".join(start + " or ".join(messages) for start, messages in explained.items())) from None


# Parts of a location that the user did not type: the types that pydantic tried.
_TRIED = re.compile(r"(constrained-)?(int|float|str|dict)(\[.*\])?|literal\[.*\]|function-\w+\[.*\]|none")


def _explain(item: Any) -> tuple[str, str]:
    # A discriminated union adds its tag ("lora") to the location, but the user typed method.rank_pattern.
    parts = [part for i, part in enumerate(item["loc"]) if not (i == 1 and item["loc"][0] == "method")]
    key = ".".join(_name(str(part)) for part in parts if not _TRIED.fullmatch(str(part)))
    if item["type"] == "extra_forbidden":
        return f"unknown setting {key}={shown(item['input'])}", ""
    if item["type"] == "missing":
        return f"{key} is missing", ""
    if item["type"] == "union_tag_invalid":
        return f"{key}.name={shown(item['input']['name'])}: must be ", f"one of {item['ctx']['expected_tags']}"
    message = item["msg"].removeprefix("Value error, ")
    _, verb, rest = message.rpartition(" should have ")
    if verb:
        return f"{key}={shown(item['input'])}: must have ", rest
    message = message.removeprefix("Input should be ").removeprefix("must be ")
    return (f"{key}={shown(item['input'])}: must be ", message) if key else ("", message)


def _name(part: str) -> str:
    return part if part.isprintable() and len(part) <= 200 else shown(part)
