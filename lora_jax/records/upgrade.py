"""Records of earlier versions, turned into those of today.

Version 1 had no "version" key, and version 2 had no hashes. Both are of November 2026.
"""

import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

from lora_jax.errors import UserError, shown
from lora_jax.records.flat import flat
from lora_jax.records.schema import RECORD_VERSION

# The methods of version 1: the title, and whether every weight of the base trains.
_METHODS = {"lora": ("LoRA", False), "full": ("full fine-tuning", True)}
Part = TypeVar("Part", dict[str, Any], list[Any])
_RENAMED_SETTINGS = {"base": "base_storage"}


def upgrade_run(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Returns the content of a run.json as RunRecord has it.

    Raises:
      UserError: the file's version is newer than this program. `where` names the file.
    """
    if _version(values, where) > 1:
        return {**values, "version": RECORD_VERSION}
    parts = {key: _part(values, key, {}, where) for key in ("versions", "device", "base", "data", "config")}
    config = {_RENAMED_SETTINGS.get(key, key): value for key, value in parts["config"].items()}
    overrides = [text for text in _part(values, "overrides", [], where) if isinstance(text, str)]
    data = dict(parts["data"])
    examples = {key: data.pop(key) for key in list(data) if isinstance(data[key], int)}
    command = values.get("command")
    return {
        **values,
        **parts,
        "version": RECORD_VERSION,
        "config": config,
        "overrides": overrides,
        "axes": _axes(config, overrides),
        "data": data | {"examples": examples},
        "command": shlex.join(map(str, command)) if isinstance(command, list) else command,
    }


def upgrade_summary(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Returns the content of a summary.json as Summary has it.

    Raises:
      UserError: the file's version is newer than this program. `where` names the file.
    """
    if _version(values, where) > 1:
        return {**values, "version": RECORD_VERSION}
    return {**values, "version": RECORD_VERSION, "targets": _text(values.get("targets")), **_method(values)}


def _version(values: Mapping[str, Any], where: str) -> int:
    version = values.get("version", 1)
    if version not in range(1, RECORD_VERSION + 1):
        raise UserError(
            f"{where}: version is {version!r}; this version of lora_jax reads records up to version {RECORD_VERSION}"
        )
    return int(version)


def _part(values: Mapping[str, Any], key: str, empty: Part, where: str) -> Part:
    """Returns the member `key`, which has the type of `empty`; `empty` where there is none."""
    part = values.get(key) or empty
    if not isinstance(part, type(empty)):
        raise UserError(f"{where}: {key}={shown(part)}: must be a JSON {'object' if empty == {} else 'array'}")
    return part


def _method(values: Mapping[str, Any]) -> dict[str, Any]:
    name = str(values.get("method") or "?")
    title, trains_base = _METHODS.get(name, (name, False))
    return {"method": name, "method_title": title, "trains_base": trains_base}


def _axes(config: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Returns a run's axes from its overrides, or else from its settings: version 1 had them in summary.json alone."""
    typed = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    settings = flat(config)

    def find(name: str) -> Any:
        for values in (typed, settings):
            for key in sorted(values, key=len):
                if key in (name, f"{name}.name") or key.endswith(f".{name}"):
                    return values[key]
        return None

    def number(name: str, kind: type[int] | type[float]) -> int | float | None:
        try:
            return kind(find(name))
        except (TypeError, ValueError, OverflowError):
            return None

    method = _method({"method": find("method") or "lora"})
    axes = {name: find(name) for name in ("model", "task")} | method | {"lr": number("lr", float)}
    if not method["trains_base"]:
        axes |= {"rank": number("rank", int), "alpha": number("alpha", float), "targets": _text(find("targets"))}
    return axes | {"seed": number("seed", int)}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
