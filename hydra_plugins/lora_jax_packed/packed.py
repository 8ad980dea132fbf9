"""The Hydra launcher `packed`, and the sweeper that goes with it.

The launcher trains all jobs of a multirun in as few programs as possible.

Each job runs through Hydra's ``run_job``, as in every launcher (folders, ``.hydra/``, callbacks). Its task function
only returns the point. Then all points train together, with the baselines that they need.

Hydra imports this file at every start, so JAX is imported only when the launcher runs.
"""

import functools
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class PackedLauncher(Launcher):
    """Launches the jobs of a multirun in packs."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config
        self.baselines: set[str] = set()  # identities of the baselines of earlier launches of this sweep

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Trains the jobs. Returns a JobReturn per job: its best validation metric, or nan for a run without one."""
        from lora_jax.commands import exit_on_user_error
        from lora_jax.commands.composition import note_point
        from lora_jax.config import parse
        from lora_jax.sweep.baseline import baselines

        setup_globals()
        home = Path(self.config.hydra.sweep.dir)
        with exit_on_user_error():
            jobs = [self._job(note_point, overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
            points = [job.return_value for job in jobs]
            resume = [f"resume='{points[0].config.resume}'"] if points[0].config.resume else []
            # Hydra takes a tenth of a second to compose settings, and most points have the same baseline.
            compose = functools.cache(lambda overrides: parse(self._compose(overrides)))
            for overrides in baselines([(p.overrides, p.config) for p in points], compose):
                if (identity := compose(overrides).identity()) not in self.baselines:
                    self.baselines.add(identity)
                    job = self._job(note_point, [*overrides, *resume], initial_job_idx + len(points))
                    points.append(job.return_value)
            # Equal runs (such as full fine-tuning at two ranks) train once.
            first = {point.config.identity(): point for point in reversed(points)}
            distinct = [point for point in points if first[point.config.identity()] is point]
            from lora_jax.sweep.run import run_points  # imports JAX, which the checks above do not need

            gc.freeze()  # else each collection while JAX traces programs would scan what the imports made, in vain
            summaries = run_points(distinct, home=home, group=home.name)
        by_identity = {point.config.identity(): s for point, s in zip(distinct, summaries, strict=True)}
        for job in jobs:
            score = by_identity[job.return_value.config.identity()].score("valid")
            job.return_value = float("nan") if score is None else score
        return jobs

    def _job(self, task: TaskFunction, overrides: Sequence[str], index: int) -> JobReturn:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = index
        job = run_job(
            task_function=task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.context,
            configure_logging=False,
        )
        if isinstance(job._return_value, Exception):  # a UserError, without Hydra's message around it
            raise job._return_value
        return job

    def _compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        from lora_jax.commands.composition import plain

        return plain(self.context.config_loader.load_sweep_config(self.config, list(overrides)))


class PackedSweeper(BasicSweeper):
    """Hydra's basic sweeper, without its composition of every job, which PackedLauncher does anyway before training."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if not isinstance(self.launcher, PackedLauncher):
            super().validate_batch_is_legal(batch)


@dataclass
class PackedLauncherConf:
    _target_: str = "hydra_plugins.lora_jax_packed.packed.PackedLauncher"


@dataclass
class PackedSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.lora_jax_packed.packed.PackedSweeper"


store = ConfigStore.instance().store
store(group="hydra/launcher", name="packed", node=PackedLauncherConf, provider="lora_jax")
store(group="hydra/sweeper", name="packed", node=PackedSweeperConf, provider="lora_jax")
