"""A point of a sweep: one run, with its name and folder."""

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lora_jax.config.run import RunConfig
from lora_jax.errors import UserError

RESERVED = (".hydra", "adapter", "checkpoints", "report", "wandb")  # folders that are not those of runs
LONGEST_NAME = 255  # bytes of a file's name


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep.

    Attributes:
      name: the name within the sweep.
      folder: the folder of its results.
      config: its settings.
      overrides: the overrides of the command line.
    """

    name: str
    folder: Path
    config: RunConfig
    overrides: tuple[str, ...] = ()


def check_names(names: Iterable[str]) -> None:
    """Checks the names of a sweep's points, which are the paths of their folders within the sweep's folder.

    Raises:
      UserError: a name is none of a folder, or two points would have one folder, or one inside of the other's.
    """
    paths = sorted(PurePosixPath(name).parts for name in names)
    for parts in paths:
        name = "/".join(parts)
        if not parts or parts[0] == "/" or ".." in parts or set(parts) & set(RESERVED):
            raise UserError(
                f"hydra.sweep.subdir={name!r}: must be a folder inside of the sweep's, and not {', '.join(RESERVED)}"
            )
        if longest := max((part for part in parts if len(part.encode()) > LONGEST_NAME), key=len, default=""):
            raise UserError(
                f"hydra.sweep.subdir={longest[:60]!r}...: this point's folder has a name of {len(longest.encode())} "
                f"bytes; must be at most {LONGEST_NAME}; number the points with hydra.sweep.subdir='${{hydra.job.num}}'"
            )
    for one, other in itertools.pairwise(paths):
        if other[: len(one)] == one:
            names = " and ".join(dict.fromkeys(("/".join(one), "/".join(other))))
            raise UserError(
                f"hydra.sweep.subdir: two points of the sweep would write to one folder ({names}); give each its own, "
                f"such as hydra.sweep.subdir='${{hydra.job.num}}'"
            )
