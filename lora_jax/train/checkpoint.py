"""Checkpoints of a pack: deltas, optimizer states and progress, never the base.

A pack is saved as a whole, because a run continues to the same bits only in the company it had.
"""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class PackCheckpoints:
    """The checkpoints of one pack, written in the background by orbax; the newest two are kept."""

    def __init__(self, folder: Path, *, base_fingerprint: str):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)  # orbax needs absolute paths
        self._fingerprint = base_fingerprint

    def save(self, step: int, arrays: Any, progress: dict[str, Any]) -> None:
        """Saves a pytree of arrays and `progress`, any JSON, after `step` updates; returns before it is on disk.

        A checkpoint of this step that is there already stays as it is.
        """
        if step == self._manager.latest_step():
            return
        # A copy, since the step donates these buffers while orbax still writes.
        copied = jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(arrays))
        note = {"base": self._fingerprint, **progress}
        self._manager.save(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(copied), note=ocp.args.JsonSave(note))
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest complete checkpoint as (arrays shaped as `like`, progress), or None where there is none.

        Raises ValueError when it belongs to another base.
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
        """Makes checkpoints of smaller packs out of the newest one. Returns its step, or None where there is none.

        Args:
          like: what the arrays of the whole pack are shaped like.
          parts: of each smaller pack the folder of its checkpoints, its runs by their place in the whole, and what its
            arrays are shaped like. It may lack paths of the whole, and be padded to smaller sizes: what it leaves out
            is neutral for its runs.
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
            shutil.rmtree(folder, ignore_errors=True)  # of a split that was interrupted
            with contextlib.closing(PackCheckpoints(folder, base_fingerprint=self._fingerprint)) as part:
                part.save(
                    note["progress"]["step"], jax.tree_util.tree_map_with_path(take, shapes), {"progress": progress}
                )
        return int(note["progress"]["step"])

    def close(self) -> None:
        """Waits until everything is on disk, and closes."""
        with contextlib.closing(self._manager):
            self._manager.wait_until_finished()
