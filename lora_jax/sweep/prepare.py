"""Compiles the programs of packs in the background: while a pack is initialised, and while the pack before it trains.

Programs are compiled from shapes, so a pack that is prepared takes no memory on the device.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from lora_jax.evaluation import pack_evaluators
from lora_jax.sweep.choices import GEMM_OPTIONS
from lora_jax.sweep.plan import PackPlan
from lora_jax.sweep.setups import Setups
from lora_jax.train.compile import CompiledPack, compile_pack
from lora_jax.train.evaluator import TaskEvaluators
from lora_jax.train.pack import Pack, shape_pack


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedPack:
    """A pack, of shapes until it is initialised, with the programs that are being compiled for it."""

    pack: Pack
    evaluators: Sequence[TaskEvaluators]
    compiled: Future[CompiledPack]


class Preparation:
    """Prepares the packs of a sweep, each once.

    Args:
      setups: the bases and tasks.
      ahead: whether programs are compiled while an earlier pack trains, which takes cores from a CPU's training.
    """

    def __init__(self, setups: Setups, *, ahead: bool) -> None:
        self._setups, self._ahead = setups, ahead
        self._threads = ThreadPoolExecutor(thread_name_prefix="compile")
        self._prepared: dict[int, PreparedPack] = {}  # ahead of their turn, by the index of the pack

    def prepare(self, plan: PackPlan) -> PreparedPack:
        """Returns the pack of `plan`, whose programs are compiled or being compiled.

        Raises:
          UserError: the setups cannot be loaded, or refuse the settings.
        """
        ahead = self._prepared.pop(plan.index, None)
        if ahead is not None and not (ahead.compiled.done() and ahead.compiled.exception()):
            return ahead
        setups = [self._setups.get(point.config) for point in plan.points]
        one_length = plan.lengths == "longest"
        pack = shape_pack(setups, plan.points, one_length, plan.layers == "unrolled")
        evaluators = pack_evaluators(pack, one_length)
        compiled = self._threads.submit(compile_pack, pack, evaluators, GEMM_OPTIONS[plan.gemm])
        return PreparedPack(pack, evaluators, compiled)

    def prepare_ahead(self, plan: PackPlan) -> None:
        """Begins to compile the programs of a later pack, unless a base had to be loaded for it.

        An error is raised when the turn of the pack comes.
        """
        loaded = all(self._setups.has(point.config) for point in plan.points)
        if not self._ahead or plan.index in self._prepared or not loaded:
            return
        with contextlib.suppress(Exception):
            self._prepared[plan.index] = self.prepare(plan)
