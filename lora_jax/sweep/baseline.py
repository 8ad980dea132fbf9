"""Baselines of a sweep: full fine-tuning once per learning rate and seed, not once per rank."""

from collections.abc import Callable, Sequence

from lora_jax.config import QUANTISED, RunConfig

# Settings that full fine-tuning does not read.
LORA_ONLY = ("rank", "alpha", "targets", "method", "base")
Overrides = tuple[str, ...]


def baselines(
    points: Sequence[tuple[Overrides, RunConfig]], compose: Callable[[Overrides], RunConfig]
) -> list[Overrides]:
    """Returns the overrides of each baseline that `points` need and do not include.

    LoRA and full fine-tuning need different learning rates (LoRA's best is six to ten times larger), so an explicit
    ``lr`` is scaled by the ratio of the two methods' defaults. Full fine-tuning trains the base, so the baseline of
    LoRA on a quantised base has ``base_storage=auto``.

    Args:
      points: overrides and settings of the runs of the sweep.
      compose: returns the settings that some overrides give.
    """
    present = {run.identity() for _, run in points if run.method.name == run.baseline}
    missing: list[Overrides] = []
    for overrides, run in points:
        if run.method.name == run.baseline or run.baseline == "none":
            continue
        shared = [item for item in overrides if _key(item).split(".")[0] not in LORA_ONLY]
        if run.base_storage in QUANTISED:
            shared = [*(item for item in shared if _key(item) != "base_storage"), "base_storage=auto"]
        lr_overrides = [item for item in shared if _key(item) == "lr"]
        full = compose((*(item for item in shared if item not in lr_overrides), f"method={run.baseline}"))
        if lr_overrides:
            full = full.model_copy(update={"lr": float(f"{run.lr * full.method.lr / run.method.lr:.6g}")})
        if full.identity() not in present:
            present.add(full.identity())
            items = [f"lr={full.lr:g}" if item in lr_overrides else item for item in shared]
            missing.append((*items, f"method={run.baseline}"))
    return missing


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
