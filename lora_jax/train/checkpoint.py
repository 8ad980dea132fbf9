"""Where a pack was: deltas, optimizer states and progress, never the base.

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
        """Saves a pytree of arrays and what else is known after `step` updates; returns before it is on disk.

        What there is of this step already stays.
        """
        if step == self._manager.latest_step():
            return
        # A copy, since the step donates these buffers while orbax still writes.
        owned = jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(arrays))
        note = {"base": self._fingerprint, **progress}
        self._manager.save(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(owned), note=ocp.args.JsonSave(note))
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest complete checkpoint as (arrays shaped as `like`, progress); None where there is none.

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
        """Makes packs of some of its runs out of the newest checkpoint: the step, or None where there is none.

        A part is (its own checkpoints' folder, the places of its runs, what its arrays are shaped like). It may lack
        sites, and be padded to lower ranks, than the whole: what it leaves out there is zero for its runs.
        """
        restored = self.restore(like)
        if restored is None:
            return None
        arrays, note = restored
        held = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)}
        for folder, members, own in parts:

            def of(path, leaf, members=members):
                whole = np.asarray(held[jax.tree_util.keystr(path)])
                return whole[list(members)][(slice(None), *(slice(size) for size in leaf.shape[1:]))]

            progress = {
                name: [value[i] for i in members] if isinstance(value, list) else value
                for name, value in note["progress"].items()
            }
            shutil.rmtree(folder, ignore_errors=True)  # of a split that was interrupted
            with contextlib.closing(PackCheckpoints(folder, base_fingerprint=self._fingerprint)) as part:
                part.save(note["progress"]["step"], jax.tree_util.tree_map_with_path(of, own), {"progress": progress})
        return int(note["progress"]["step"])

    def close(self) -> None:
        """Waits for what is being written."""
        with contextlib.closing(self._manager):
            self._manager.wait_until_finished()
