"""Caches the bases and tasks of a sweep, so that each is loaded once if memory allows."""

from lora_jax.config import RunConfig
from lora_jax.data.tasks import find_task
from lora_jax.errors import UserError
from lora_jax.records import base_key, inputs_key
from lora_jax.train.memory import budget, size
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.setup import Setup, load_setup
from lora_jax.weights.load import Base

SHARE = 0.25  # largest share of the memory free at the start that cached bases may take


class Setups:
    """A cache of setups, bounded by the bytes of their bases.

    Setups of several tasks share the backbone of their base. The least recently used setup is evicted first. The most
    recently used setup is never evicted, whatever its size.
    """

    def __init__(self, capacity: int | None = None):
        self._capacity = round(SHARE * budget()) if capacity is None else capacity
        self._setups: dict[tuple[str, ...], Setup] = {}  # in order of use, the most recent last
        self._bases: dict[tuple[str, ...], tuple[str, ...]] = {}  # the key of each setup's base
        self._fingerprints: dict[tuple[str, ...], tuple[str, str]] = {}  # of base and data, when they were first loaded

    def get(self, run: RunConfig) -> Setup:
        """Returns the setup that `run` needs.

        Raises:
          UserError: as `load_setup` does, or the base or the data has changed since it was loaded before.
        """
        key = inputs_key(run.model_dump(mode="json"))
        if key not in self._setups:
            self._evict(self._capacity // 2)  # frees memory before the new base is loaded
            self._bases[key] = (*base_key(run.model_dump(mode="json")), OBJECTIVES[find_task(run.task).objective].head)
            setup = load_setup(run, self._loaded_base(self._bases[key]))
            fingerprints = setup.base.fingerprint, setup.data.fingerprint
            if self._fingerprints.setdefault(key, fingerprints) != fingerprints:
                raise UserError(
                    f"{run.model.source} or the data of task={run.task.name} has changed while the sweep ran; restore "
                    f"it, and resume the sweep"
                )
            self._setups[key] = setup
        self._setups[key] = self._setups.pop(key)
        self._evict(self._capacity)
        return self._setups[key]

    def has(self, run: RunConfig) -> bool:
        """Returns whether the setup that `run` needs is loaded."""
        return inputs_key(run.model_dump(mode="json")) in self._setups

    def _loaded_base(self, key: tuple[str, ...]) -> Base | None:
        return next((setup.base for inputs, setup in self._setups.items() if self._bases[inputs] == key), None)

    def _evict(self, capacity: int) -> None:
        while len(self._setups) > 1 and self._bytes() > capacity:
            del self._setups[next(iter(self._setups))]

    def _bytes(self) -> int:
        """Returns the bytes of the bases, each counted once."""
        return sum({self._bases[key]: size(setup.base.model) for key, setup in self._setups.items()}.values())
