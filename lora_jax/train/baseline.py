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
    fine-tuning trains the base, so beside LoRA on a quantised one it is given the whole one, ``base=auto``.
    """
    held = {identity(run) for _, run in points if run.method.name == "full"}
    wanted: list[Overrides] = []
    for overrides, run in points:
        if run.method.name == "full" or run.baseline == "none":
            continue
        shared = [item for item in overrides if _key(item).split(".")[0] not in LORA_ONLY]
        if run.base in QUANTISED:
            shared = [*(item for item in shared if _key(item) != "base"), "base=auto"]
        rate = [item for item in shared if _key(item) == "lr"]
        full = compose((*(item for item in shared if item not in rate), "method=full"))
        if rate:
            full = full.model_copy(update={"lr": float(f"{run.lr * full.method.lr / run.method.lr:.6g}")})
        if identity(full) not in held:
            held.add(identity(full))
            wanted.append((*(f"lr={full.lr:g}" if item in rate else item for item in shared), "method=full"))
    return wanted


def identity(run: RunConfig) -> str:
    """The same for runs that train alike: full fine-tuning has no rank, alpha or targets."""
    if run.method.name == "full":
        return run.model_dump_json(exclude=set(LORA_ONLY)) + " full"
    return run.model_dump_json()


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
