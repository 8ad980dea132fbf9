"""The full fine-tuning that a sweep is compared with: once per learning rate and seed, never once per rank."""

from collections.abc import Callable, Sequence

from lora_jax.config import QUANTISED, RunConfig

# What belongs to LoRA alone: full fine-tuning is the same whatever these are.
LORA_ONLY = ("rank", "alpha", "targets", "method")
Overrides = tuple[str, ...]


def baselines(
    points: Sequence[tuple[Overrides, RunConfig]], compose: Callable[[Overrides], RunConfig]
) -> list[Overrides]:
    """The overrides of every baseline that `points` call for and do not hold already.

    `compose` gives the RunConfig of some overrides. LoRA and full fine-tuning want different learning rates (LoRA's
    best is about ten times larger), so an explicit ``lr`` is scaled by the ratio of the two methods' own defaults. Full
    fine-tuning trains the base, so beside LoRA on a quantised one it is given the whole one, ``base_storage=auto``.
    """
    held = {run.identity() for _, run in points if run.method.name == run.baseline}
    wanted: list[Overrides] = []
    for overrides, run in points:
        if run.method.name == run.baseline or run.baseline == "none":
            continue
        shared = [item for item in overrides if _key(item).split(".")[0] not in LORA_ONLY]
        if run.base_storage in QUANTISED:
            shared = [*(item for item in shared if _key(item) != "base_storage"), "base_storage=auto"]
        rate = [item for item in shared if _key(item) == "lr"]
        full = compose((*(item for item in shared if item not in rate), f"method={run.baseline}"))
        if rate:
            full = full.model_copy(update={"lr": float(f"{run.lr * full.method.lr / run.method.lr:.6g}")})
        if full.identity() not in held:
            held.add(full.identity())
            wanted.append((*(f"lr={full.lr:g}" if item in rate else item for item in shared), f"method={run.baseline}"))
    return wanted


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
