"""Composes settings with Hydra, and trains the runs that they describe."""

import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_jax.commands.refusals import exit_on_error, explain_hydra
from lora_jax.config import RunConfig, parse
from lora_jax.config.point import Point
from lora_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]
# The folder is beside the package in a checkout, and inside it in an installation.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


def point_name(override_dirname: str, method: str) -> str:
    """Returns the name of a point's folder: Hydra's name, or the method if that is empty.

    Slashes and control characters are percent-encoded, so different overrides have different names.
    """
    return re.sub(r"[%/\x00-\x1f\x7f]", lambda match: f"%{ord(match[0]):02X}", override_dirname) or f"method={method}"


# conf/run.yaml names the folders of points with this resolver.
OmegaConf.register_new_resolver("point_name", point_name, replace=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """Returns the composed settings as plain data, without the key ``hydra``."""
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        values = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def compose_run(*overrides: str) -> RunConfig:
    """Returns the settings that these overrides give: ``compose_run("rank=4", "targets=qv")``.

    Raises:
      UserError: Hydra cannot compose them, or a setting is invalid.
    """
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return parse(plain(compose("run", list(overrides))))
    except HydraException as error:
        raise UserError(explain_hydra(error, setting_names("run"))) from None


def note_point(config: DictConfig) -> Point:
    """Returns the point of the settings that Hydra has composed."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    sweeping = hydra.mode == RunMode.MULTIRUN
    name = folder.relative_to(Path(hydra.sweep.dir).absolute()).as_posix() if sweeping else folder.name
    overrides = tuple(item for item in hydra.overrides.task if not item.startswith("resume="))
    return Point(name, folder, parse(plain(config)), overrides)


def train(config: DictConfig) -> float:
    """Trains the one run that Hydra has composed. Returns its best validation metric, or nan."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    sweep = Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else folder
    with exit_on_error(sweep):
        from lora_jax.host import start_devices
        from lora_jax.sweep.run import run_points

        start_devices()
        point = note_point(config)
        (summary,) = run_points([point], home=folder, group=sweep.name, sweep=sweep)
        score = summary.score("valid")
        return float("nan") if score is None else score


def setting_names(config_name: str) -> list[str]:
    """Returns the keys of the composed settings of ``conf/<config_name>.yaml``, such as ``task.buckets``."""
    from lora_jax.records import flat  # slow to import, and help does not need it

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return list(flat(plain(compose(config_name))))
