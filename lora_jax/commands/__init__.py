"""What the commands in ``experiments/`` do: their arguments before Hydra, training within it, results after it.

Nothing heavy is imported before it is needed, so that help and refusals come at once.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lora_jax.commands.refusals import exit_on_user_error

__all__ = ["exit_on_user_error", "run"]


def run(task: Callable[[Any], float], *, kind: str, results: Path) -> NoReturn:
    """Runs ``experiments.sweep`` or ``experiments.train``: `task` trains what Hydra has composed, `kind` is as below.

    Ends the process: 0, 1 where a run failed or diverged, 2 for what the user got wrong, 130 when interrupted.

    Args:
      task: Hydra's task function.
      kind: ``sweep`` for a multirun, ``run`` for a single one; also the name of the primary config.
      results: where new folders are made.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lora_jax.commands.arguments import arguments, removed_if_empty
    from lora_jax.commands.composition import CONF, setting_names
    from lora_jax.commands.refusals import explain_hydra
    from lora_jax.errors import UserError

    # Hydra raises its errors in place of printing them, so that they can end like every other bad input.
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
            resume = f"; go on with it by resume={folder}" if folder is not None and folder.exists() else ""
            print(f"stopped{resume}", file=sys.stderr)
            sys.exit(130)
