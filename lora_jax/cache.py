"""The folder where downloads, prepared data and compiled programs are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns ``$LORA_JAX_CACHE``, else ``$XDG_CACHE_HOME/lora_jax``, else ``~/.cache/lora_jax``; creates nothing."""
    if named := os.environ.get("LORA_JAX_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lora_jax"
