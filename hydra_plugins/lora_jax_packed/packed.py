"""The Hydra launcher `packed`: takes a whole multirun and trains it in as few programs as it can.

Each job goes through Hydra's own ``run_job`` as any launcher's does (folders, ``.hydra/``, callbacks), but with a task
that only notes what is asked. Then all of them train together, with the baselines that they call for.

Hydra imports this file at every start, so JAX and what needs it are imported when the launcher runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class PackedLauncher(Launcher):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config
        self.baselines: set[str] = set()  # by an earlier launch of this sweep

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One JobReturn per job: its best validation metric, or nan for a run that has none."""
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
            for overrides in baselines([(p.overrides, p.config) for p in points], lambda o: parse(self._compose(o))):
                if (who := parse(self._compose(overrides)).identity()) not in self.baselines:
                    self.baselines.add(who)
                    job = self._job(note_point, [*overrides, *resume], initial_job_idx + len(points))
                    points.append(job.return_value)
            # The same run asked for twice (full fine-tuning at two ranks) trains once.
            first = {point.config.identity(): point for point in reversed(points)}
            distinct = [point for point in points if first[point.config.identity()] is point]
            from lora_jax.sweep.run import run_points  # with JAX: what is refused above need not wait for it

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
        if isinstance(job._return_value, Exception):  # what the user got wrong, without Hydra's words around it
            raise job._return_value
        return job

    def _compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        from lora_jax.commands.composition import plain

        return plain(self.context.config_loader.load_sweep_config(self.config, list(overrides)))


@dataclass
class PackedLauncherConf:
    _target_: str = "hydra_plugins.lora_jax_packed.packed.PackedLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="packed", node=PackedLauncherConf, provider="lora_jax")
