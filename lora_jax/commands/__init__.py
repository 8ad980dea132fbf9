"""The commands in ``experiments/``: arguments before Hydra, training within Hydra, results after Hydra.

Heavy modules are imported late, so that help and error messages appear at once.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lora_jax.commands.refusals import exit_on_error

__all__ = ["exit_on_error", "run"]


def run(task: Callable[[Any], float], *, kind: str, results: Path) -> NoReturn:
    """Runs ``experiments.sweep`` or ``experiments.train``, and ends the process.

    The exit status is 0; 1 if a run failed or diverged; 2 for an error of the user, the disk or Hydra; 130 if SIGINT
    interrupts it, and 143 if SIGTERM does.

    Args:
      task: Hydra's task function. It trains the composed settings.
      kind: ``sweep`` for a multirun, ``run`` for a single run; also the name of the primary config.
      results: the parent of new result folders.
    """
    from lora_jax.commands.interruption import interruptible

    folder: Path | None = None

    def interrupted() -> str:
        resumable = folder is not None and (folder / "command.json").exists()
        return f"interrupted; continue with resume={folder}" if resumable else "interrupted"

    with interruptible(interrupted), exit_on_error():
        import hydra
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from lora_jax.commands.arguments import arguments
        from lora_jax.commands.composition import CONF, setting_names
        from lora_jax.commands.refusals import explain_hydra
        from lora_jax.errors import UserError

        # With HYDRA_FULL_ERROR Hydra raises its errors, so that they can be printed like every UserError.
        traceback_wanted = os.environ.setdefault("HYDRA_FULL_ERROR", "1") != "1"
        main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=kind)(task)
        given = arguments(sys.argv[1:], kind=kind, results=results)
        sys.argv[1:], folder = given.hydra, given.folder
        try:
            if folder is None:
                main()
                sys.exit(0)
            from lora_jax.commands.folder import claimed
            from lora_jax.commands.results import complete, finish

            with exit_on_error(folder), claimed(folder, kind=kind, new=given.new, results=results):
                main()
                if kind == "sweep":
                    complete(folder)
                status = finish(folder)
            sys.exit(status)
        except (HydraException, OmegaConfBaseException) as error:
            if traceback_wanted:
                raise
            raise UserError(explain_hydra(error, setting_names(kind))) from None
