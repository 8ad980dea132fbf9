"""The commands in ``experiments/``: arguments before Hydra, training within Hydra, results after Hydra.

Heavy modules are imported late, so that help and error messages appear at once.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lora_jax.commands.refusals import exit_on_user_error

__all__ = ["exit_on_user_error", "run"]


def run(task: Callable[[Any], float], *, kind: str, results: Path) -> NoReturn:
    """Runs ``experiments.sweep`` or ``experiments.train``, and ends the process.

    The exit status is 0, 1 if a run failed or diverged, 2 for a UserError or an error of Hydra, or 130 if interrupted.

    Args:
      task: Hydra's task function. It trains the composed settings.
      kind: ``sweep`` for a multirun, ``run`` for a single run; also the name of the primary config.
      results: the parent of new result folders.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lora_jax.commands.arguments import arguments, removed_if_empty
    from lora_jax.commands.composition import CONF, setting_names
    from lora_jax.commands.refusals import explain_hydra
    from lora_jax.errors import UserError

    # With HYDRA_FULL_ERROR Hydra raises its errors, so that they can be printed like every UserError.
    traceback_wanted = os.environ.setdefault("HYDRA_FULL_ERROR", "1") != "1"
    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=kind)(task)
    with exit_on_user_error():
        sys.argv[1:], folder = arguments(sys.argv[1:], kind=kind, results=results)
        try:
            if folder is None:
                main()
                sys.exit(0)
            from lora_jax.commands.results import complete, finish

            with removed_if_empty(folder, results):
                main()
            if kind == "sweep":
                complete(folder)
            sys.exit(finish(folder))
        except (HydraException, OmegaConfBaseException) as error:
            if traceback_wanted:
                raise
            raise UserError(explain_hydra(error, setting_names(kind))) from None
        except KeyboardInterrupt:
            resume = f"; continue with resume={folder}" if folder is not None and folder.exists() else ""
            print(f"interrupted{resume}", file=sys.stderr)
            sys.exit(130)
