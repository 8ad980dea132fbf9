"""The cache folder for downloads, prepared data and compiled programs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns ``$LORA_JAX_CACHE``, else ``$XDG_CACHE_HOME/lora_jax``, else ``~/.cache/lora_jax``. It need not exist."""
    if folder := os.environ.get("LORA_JAX_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lora_jax"


def create_private(folder: Path) -> None:
    """Creates `folder` if it does not exist, for its owner alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
