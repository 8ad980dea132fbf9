"""What a method that lengthens texts asks of a model: positions for all of its tokens."""

from typing import Any

from lora_jax.config import RunConfig
from lora_jax.errors import UserError


def check_positions(base: Any, run: RunConfig) -> None:
    """Raises UserError if the longest texts of `run`, with what a method adds, exceed the positions of `base`.

    Models without a table of positions have no limit. While texts are generated, the model checks it again, for the
    prompt and the new tokens.

    Args:
      base: the model; may be abstract.
      run: its longest bucket counts.
    """
    if run.task.buckets is None:  # the lengths come from the data, and the model checks them when it is traced
        return
    positions, longest = getattr(base.backbone.config, "max_tokens", None), run.task.buckets[-1]
    if positions is not None and longest + run.method.added_tokens > positions:
        settings = " ".join(f"method.{name}={getattr(run.method, name)}" for name in run.method.adds)
        raise UserError(
            f"{settings}: the longest bucket of task.buckets is {longest}, and this model has positions for "
            f"{positions}; must be at most {max(0, positions - longest)} together, or give shorter buckets"
        )
