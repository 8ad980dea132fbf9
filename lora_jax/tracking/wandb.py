"""Weights & Biases as a sink. The package is imported when a run first needs it."""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lora_jax.errors import UserError, redact
from lora_jax.records import MetricsRecord, RunRecord, Summary
from lora_jax.tracking.sink import SinkSettings

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
LONGEST_NAME = 128  # W&B's limit, in characters


class WandbSession:
    """What the W&B runs of a sweep share: whether W&B works, who is logged in, whether the server is reached.

    What fails to start once is not tried again for every other run, and an unreachable server is waited for once.
    """

    def __init__(self) -> None:
        self._works = True
        self._logged_in: bool | None = None  # None: not asked yet
        self._server_reached: bool | None = None  # None: not tried yet

    def sink(self, settings: SinkSettings) -> "WandbSink | None":
        """Returns a sink for one more run; None where W&B is disabled, or has failed to start.

        Raises:
          UserError: the mode, or the environment's WANDB_MODE, is none of MODES.
        """
        mode = _requested_mode(settings.wandb.mode)
        return WandbSink(self, settings.wandb.project, mode) if mode != "disabled" and self._works else None

    def start(self, mode: str, **options: Any) -> Any:
        """Returns a W&B run, offline if the server cannot be reached.

        Args:
          mode: auto, online or offline. auto is online if this user is logged in to W&B.
          options: of ``wandb.init``.
        """
        try:
            if mode == "auto":
                mode = "online" if self._is_logged_in() else "offline"
            return self._start(mode, options)
        except Exception:
            self._works = False
            raise

    def _start(self, mode: str, options: Mapping[str, Any]) -> Any:
        import wandb

        if mode == "online" and self._server_reached is not False:
            try:
                run = _init("online", options)
                self._server_reached = True
                return run
            except Exception as error:
                log.warning(
                    "W&B cannot be reached (%s); runs are recorded offline, to send with `wandb sync`",
                    redact(str(error)),
                )
                if self._server_reached is None:  # no run is alive: W&B's service, which still holds the id, can go
                    wandb.teardown()
                self._server_reached = False
        return _init("offline", options)

    def _is_logged_in(self) -> bool:
        """Returns whether W&B finds credentials (environment, settings, netrc), without network or prompt."""
        if self._logged_in is None:
            try:
                import wandb

                wandb.setup(wandb.Settings(silent=True))
                self._logged_in = bool(wandb.login(prompt=False, verify=False))
            except Exception as error:
                log.warning("W&B failed (%s: %s); runs are recorded offline", type(error).__name__, redact(str(error)))
                self._logged_in = False
        return self._logged_in


class WandbSink:
    """One W&B run: the metrics over tokens, the summary's figures, and the adapter as an artifact."""

    title = "W&B"

    def __init__(self, session: WandbSession, project: str, mode: str):
        self._session, self._project, self._mode = session, project, mode
        self._run: Any = None

    def start(self, run: RunRecord, folder: Path, *, group: str, run_id: str) -> None:
        content = run.to_json()
        settings = content.pop("config")
        self._artifact_name = _artifact_name(group, run.name, run_id)
        self._run = self._session.start(
            self._mode,
            project=self._project,
            dir=folder,
            group=_shown_name(group, hashlib.sha256(group.encode()).hexdigest()[:16]),
            name=_shown_name(run.name, run_id),
            job_type="train",
            config={**settings, "run": content},
            id=run_id,
            resume="allow",
            reinit="create_new",
        )

    def log(self, record: MetricsRecord) -> None:
        self._run.log(record.model_dump())

    def finish(self, summary: Summary, adapter: Path | None) -> None:
        self._run.summary.update(_flat(summary.to_json()))
        if adapter is not None:
            import wandb

            artifact = wandb.Artifact(self._artifact_name, type="adapter")
            # "immutable" uploads from where the files lie; the default copies them to a staging folder under ~ first.
            artifact.add_dir(str(adapter), policy="immutable")
            self._run.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        if self._run is not None:
            self._run.finish(exit_code=exit_code)


def _requested_mode(setting: str) -> str:
    """Returns one of MODES: `setting`, or the environment's ``WANDB_MODE`` where `setting` is auto.

    Raises:
      UserError: the setting or the variable is none of MODES.
    """
    if setting not in MODES:
        raise UserError(f"wandb={setting!r} is not a way to use W&B; choose one of {', '.join(MODES)}")
    variable = os.environ.get("WANDB_MODE") or "auto"
    if setting == "auto" and variable not in MODES:
        raise UserError(f"the environment's WANDB_MODE={variable!r} is not known here; set one of {', '.join(MODES)}")
    return variable if setting == "auto" else setting


def _init(mode: Literal["online", "offline"], options: Mapping[str, Any]) -> Any:
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    # An upload that hangs at the end is given up: `wandb sync` can send it later, from the folder.
    settings = wandb.Settings(silent=True, console="off", init_timeout=30, finish_timeout=120)
    run = wandb.init(mode=mode, settings=settings, **options)
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")
    return run


def _artifact_name(group: str, name: str, run_id: str) -> str:
    return _fitted(re.sub(r"[^\w.-]+", "-", f"{group}-{name}"), run_id)


def _shown_name(name: str, ending: str) -> str:
    """Returns `name` without letters that are not printed, in W&B's length."""
    return _fitted("".join(letter if letter.isprintable() else " " for letter in name), ending)


def _fitted(name: str, ending: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - len(ending) - 1]}-{ending}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat
