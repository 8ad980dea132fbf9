"""Starts a run from an adapter that was trained before, such as MRPC from MNLI's (Hu et al., 2021, section 5.1)."""

import dataclasses
import hashlib
from pathlib import Path

import jax

from lora_jax.adapters import Padded
from lora_jax.config import RunConfig
from lora_jax.errors import UserError
from lora_jax.methods import AdapterInit
from lora_jax.train.initial import initial_shapes
from lora_jax.train.setup import Setup
from lora_jax.weights.adapters import TENSORS, Adapter, load_adapter
from lora_jax.weights.load import with_labels


def start_from(setup: Setup, run: RunConfig, init: AdapterInit) -> AdapterInit:
    """Returns `init` with the parameters of the adapter that `run` starts from, if it names one.

    The head stays new, since the adapter's is for other labels. What the adapter computes does not change: its scales
    come with it. Dropout and learning rates are the run's.

    Raises:
      UserError: as `check_start`.
    """
    if run.base is None:
        return init
    adapter = _load(setup, run)
    _check(run.base, adapter, init)
    params = {path: adapter.params[path] if _is_adapter(path) else value for path, value in init.params.items()}
    constants = {path: adapter.constants[path].continued(value) for path, value in init.constants.items()}
    return dataclasses.replace(init, params=params, constants=constants)


def check_start(setup: Setup, run: RunConfig) -> None:
    """Checks the adapter that `run` starts from against the base and the settings, before anything is compiled.

    Raises:
      UserError: there is no adapter, it was trained on another base, or its paths, ranks or settings are not the run's.
    """
    if run.base is not None:
        _check(run.base, _load(setup, run), initial_shapes(setup.base.model, run))


def start_fingerprint(run: RunConfig) -> str | None:
    """Returns the SHA-256 of the adapter that `run` starts from, or None where it starts anew."""
    if run.base is None:
        return None
    file = _folder(run.base) / TENSORS
    if not file.is_file():
        return "missing"
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _folder(base: str) -> Path:
    folder = Path(base).expanduser()
    return folder / "adapter" if (folder / "adapter").is_dir() else folder


def _load(setup: Setup, run: RunConfig) -> Adapter:
    assert run.base is not None
    base, source = setup.base, setup.base.source
    folder = _folder(run.base)
    adapter = load_adapter(folder, base_fingerprint=None)
    labels = len(adapter.config.get("labels") or ())
    # A fingerprint covers the head, which had as many outputs as the adapter's task has labels.
    if setup.outputs is not None and labels:
        base = with_labels(base, labels)
    if adapter.base_fingerprint != base.fingerprint:
        raise UserError(
            f"base={run.base}: the adapter was trained on {adapter.base_source} "
            f"({adapter.base_fingerprint[:12]}), not on {source} ({base.fingerprint[:12]}); must be the same base"
        )
    return adapter


def _check(base: str, adapter: Adapter, init: AdapterInit) -> None:
    ours = _shapes(init.params) | _kinds(init.constants)
    theirs = _shapes(adapter.params) | _kinds(adapter.constants)
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            raise UserError(
                f"base={base}: {path} is {theirs.get(path, 'missing')} in the adapter and {ours.get(path, 'missing')} "
                f"in this run; must have the same method, targets and ranks"
            )


def _shapes(params: dict[str, Padded]) -> dict[str, str]:
    """Returns the kind and the shapes of each adapter in words."""
    return {
        path: f"{type(value).__name__} {', '.join(str(list(leaf.shape)) for leaf in jax.tree.leaves(value))}"
        for path, value in params.items()
        if _is_adapter(path)
    }


def _kinds(constants: dict[str, Padded]) -> dict[str, str]:
    return {f"the constant of {path}": type(value).__name__ for path, value in constants.items()}


def _is_adapter(path: str) -> bool:
    return not path.startswith("head/")
