"""Checkpoints of a pack: deltas, optimizer states and progress, never the base.

A pack is saved as a whole, because a run continues bit for bit only in the same pack.
"""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epy

with epy.lazy_imports():  # a quarter of a second, which a sweep spends only once its programs are compiled
    import orbax.checkpoint as ocp


class PackCheckpoints:
    """Checkpoints of one pack. Orbax writes them in the background and keeps the newest two."""

    def __init__(self, folder: Path, *, base_fingerprint: str):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)  # orbax needs absolute paths
        self._fingerprint = base_fingerprint

    def save(self, step: int, arrays: Any, progress: dict[str, Any]) -> None:
        """Starts to save a checkpoint, and returns before it is on disk.

        An existing checkpoint of the same step is not replaced.

        Args:
          step: the number of updates done.
          arrays: a pytree of arrays.
          progress: any JSON object.
        """
        if step == self._manager.latest_step():
            return
        # The train step donates these buffers while orbax is still writing, so orbax gets a copy.
        host_copy = jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(arrays))
        note = {"base": self._fingerprint, **progress}
        self._manager.save(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(host_copy), note=ocp.args.JsonSave(note))
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest complete checkpoint as (arrays, progress), or None if there is none.

        Args:
          like: arrays or shapes with the structure of the saved arrays.

        Raises:
          ValueError: the checkpoint belongs to another base.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), note=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        if restored.note["base"] != self._fingerprint:
            raise ValueError(
                f"the checkpoint is for base {restored.note['base'][:12]}, this base is {self._fingerprint[:12]}"
            )
        return restored.arrays, restored.note

    def split(self, like: Any, parts: Sequence[tuple[Path, Sequence[int], Any]]) -> int | None:
        """Splits the newest checkpoint into checkpoints of smaller packs.

        Args:
          like: arrays or shapes of the whole pack.
          parts: one triple for each smaller pack: the folder of its checkpoints, the indices of its runs in the whole
            pack, and the shapes of its arrays. A smaller pack may lack paths of the whole pack and may be padded to
            smaller sizes, because what it leaves out is neutral for its runs.

        Returns:
          The step of the checkpoint, or None if there is none.
        """
        restored = self.restore(like)
        if restored is None:
            return None
        arrays, note = restored
        whole = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)}
        for folder, runs, shapes in parts:

            def take(path: Any, leaf: Any, runs: Sequence[int] = runs) -> np.ndarray:
                array = np.asarray(whole[jax.tree_util.keystr(path)])
                return array[list(runs)][(slice(None), *(slice(size) for size in leaf.shape[1:]))]

            progress = {
                name: [value[i] for i in runs] if isinstance(value, list) else value
                for name, value in note["progress"].items()
            }
            shutil.rmtree(folder, ignore_errors=True)  # may remain of an interrupted split
            with contextlib.closing(PackCheckpoints(folder, base_fingerprint=self._fingerprint)) as checkpoints:
                checkpoints.save(
                    note["progress"]["step"], jax.tree_util.tree_map_with_path(take, shapes), {"progress": progress}
                )
        return int(note["progress"]["step"])

    def close(self) -> None:
        """Waits until all checkpoints are on disk, and closes the manager."""
        with contextlib.closing(self._manager):
            self._manager.wait_until_finished()
