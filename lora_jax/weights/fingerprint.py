"""Fingerprints of models: SHA-256 over all parameters. That of a backbone is computed once for all heads on it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from lora_jax.delta import parameters

# The prefix of new parameters. They are not read from a checkpoint, but initialised (methods/method.py).
NEW = "head/"


def fingerprint(module: nnx.Module) -> str:
    """Returns a sha256 over the path, dtype, shape and bytes of every parameter, in order of path."""
    return hash_head(hash_backbone(module), module)


def hash_backbone(module: nnx.Module) -> Any:
    """Returns a hash object that has the parameters before the head, in order of path."""
    digest = hashlib.sha256()
    _update(digest, {path: leaf for path, leaf in parameters(module).items() if path < NEW})
    return digest


def hash_head(backbone: Any, module: nnx.Module) -> str:
    """Returns the fingerprint of a module with the hashed `backbone`, which does not change."""
    digest = backbone.copy()
    _update(digest, {path: leaf for path, leaf in parameters(module).items() if path >= NEW})
    return str(digest.hexdigest())


def _update(digest: Any, leaves: Mapping[str, Any]) -> None:
    for path, leaf in sorted(leaves.items()):
        for keys, part in jax.tree_util.tree_leaves_with_path(leaf):  # a quantised kernel has several arrays
            array = np.ascontiguousarray(part)
            digest.update(f"{path}{jax.tree_util.keystr(keys)} {array.dtype.name} {part.shape}\n".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
