"""The settings that determine a run's base and its data, as run.json records them."""

import json
from collections.abc import Mapping
from typing import Any

_COLUMNS = ("task.kind", "task.text", "task.pair", "task.label", "task.messages", "task.id")
_DATA = ("task.name", "task.data_dir", "data_root", *_COLUMNS)
_ENCODING = ("task.eval_examples", "task.augment")
_BASE = ("model.source", "model.family", "model.pool", "dtype", "base_storage")


def data_key(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the settings that determine the data of a run. Runs with equal keys have the same data fingerprint.

    Args:
      config: the field ``config`` of a run.json. A setting that it lacks counts as null.
    """
    validation = str(validates_on_test(config))  # records of before it existed lack it
    return (*(_text(config, path) for path in _DATA), validation)


def validates_on_test(config: Mapping[str, Any]) -> bool:
    """Returns whether a run's best evaluation is chosen on the test split.

    Args:
      config: the field ``config`` of a run.json.
    """
    return bool(_value(config, "task.validation") == "test")


def inputs_key(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the settings that determine the base of a run and its data, encoded for the base.

    Runs with equal keys have the same fingerprints, unless the base or the data changed between them.

    Args:
      config: the field ``config`` of a run.json. A setting that it lacks counts as null.
    """
    encoding = [_text(config, path) for path in _ENCODING]
    packing = str(bool(_value(config, "task.packing")))  # records of before it existed lack it
    return (*data_key(config), _longest(config), *encoding, packing, *base_key(config))


def base_key(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the settings that determine the base of a run, whatever its task.

    Args:
      config: the field ``config`` of a run.json. A setting that it lacks counts as null.
    """
    return tuple(_text(config, path) for path in _BASE)


def _longest(config: Mapping[str, Any]) -> str:
    buckets = _value(config, "task.buckets")
    if isinstance(buckets, list | tuple) and buckets and all(isinstance(length, int) for length in buckets):
        return json.dumps(max(buckets))
    if buckets is None:
        return f"at most {_text(config, 'task.max_length')}"
    return json.dumps(buckets, sort_keys=True)


def _text(config: Mapping[str, Any], path: str) -> str:
    return json.dumps(_value(config, path), sort_keys=True)


def _value(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config
