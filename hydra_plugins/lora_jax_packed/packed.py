"""The Hydra launcher `packed`, and the sweeper that goes with it.

The launcher trains all jobs of a multirun in as few programs as possible.

Each job runs through Hydra's ``run_job``, as in every launcher (folders, ``.hydra/``, callbacks). Its task function
only returns the point. Then all points train together, with the baselines that they need.

Hydra imports this file at every start, so JAX is imported only when the launcher runs.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
        from lora_jax.commands import exit_on_error
        from lora_jax.commands.arguments import quoted
        from lora_jax.commands.composition import note_point, plain
        from lora_jax.config import parse
        from lora_jax.config.point import check_names
        from lora_jax.host import start_devices
        from lora_jax.sweep.baseline import baselines

        setup_globals()
        home = Path(self.config.hydra.sweep.dir)
        with exit_on_error(home):
            configs = [self._composed(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
            check_names({str(config.hydra.sweep.subdir) for config in configs})
            jobs = [self._job(note_point, config) for config in configs]
            points = [job.return_value for job in jobs]
            start_devices()
            resume = [f"resume={quoted(points[0].config.resume)}"] if points[0].config.resume else []
            # Hydra takes a tenth of a second to compose settings, and most points have the same baseline.
            compose = functools.cache(lambda overrides: self._composed([*overrides, *resume]))
            settings = functools.cache(lambda overrides: parse(plain(compose(overrides))))
            for overrides in baselines([(p.overrides, p.config) for p in points], settings):
                if (identity := settings(overrides).identity()) not in self.baselines:
                    self.baselines.add(identity)
                    config = number_job(compose(overrides), initial_job_idx + len(points))
                    points.append(self._job(note_point, config).return_value)
            # Equal runs (such as full fine-tuning at two ranks) train once.
            first = {point.config.identity(): point for point in reversed(points)}
            distinct = [point for point in points if first[point.config.identity()] is point]
            check_names(point.name for point in distinct)
            for point in points:
                if point.name != (trained := first[point.config.identity()].name):
                    print(f"{point.name} is the same run as {trained}, which is trained once", flush=True)
            from lora_jax.sweep.run import run_points  # imports JAX, which the checks above do not need

            summaries = run_points(distinct, home=home, group=home.name)
        by_identity = {point.config.identity(): s for point, s in zip(distinct, summaries, strict=True)}
        for job in jobs:
            score = by_identity[job.return_value.config.identity()].score("valid")
            job.return_value = float("nan") if score is None else score
        return jobs

    def _composed(self, overrides: Sequence[str], index: int = 0) -> DictConfig:
        return compose_job(self.context, self.config, overrides, index)

    def _job(self, task: TaskFunction, config: DictConfig) -> JobReturn:
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


class PackedSweeper(BasicSweeper):
    """Hydra's basic sweeper, with another check of jobs before they are launched.

    PackedLauncher composes every job anyway before it trains. For other launchers, jobs must have different folders.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if isinstance(self.launcher, PackedLauncher):
            return
        from lora_jax.config.point import check_names

        assert self.hydra_context is not None and self.config is not None
        configs = [compose_job(self.hydra_context, self.config, overrides, i) for i, overrides in enumerate(batch)]
        check_names(str(config.hydra.sweep.subdir) for config in configs)


def compose_job(context: HydraContext, master: DictConfig, overrides: Sequence[str], index: int) -> DictConfig:
    """Returns the settings of one job of a multirun, with its number."""
    return number_job(context.config_loader.load_sweep_config(master, list(overrides)), index)


def number_job(config: DictConfig, index: int) -> DictConfig:
    """Gives the settings of a job its number, and returns them."""
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = index
    return config


@dataclass
class PackedLauncherConf:
    _target_: str = "hydra_plugins.lora_jax_packed.packed.PackedLauncher"


@dataclass
class PackedSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.lora_jax_packed.packed.PackedSweeper"


store = ConfigStore.instance().store
store(group="hydra/launcher", name="packed", node=PackedLauncherConf, provider="lora_jax")
store(group="hydra/sweeper", name="packed", node=PackedSweeperConf, provider="lora_jax")
