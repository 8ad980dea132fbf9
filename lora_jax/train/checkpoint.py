"""Checkpoints of a pack: deltas, optimizer states and progress, never the base.

A pack is saved as a whole, because a run continues bit for bit only in the same pack.
"""

import contextlib
import logging
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epy

from lora_jax.errors import UserError, message_of
from lora_jax.records.sealed import seal, unseal
from lora_jax.train.memory import is_out_of_memory

with epy.lazy_imports():  # a quarter of a second, which a sweep spends only once its programs are compiled
    import orbax.checkpoint as ocp

logger = logging.getLogger("lora_jax")


class PackCheckpoints:
    """Checkpoints of one pack. Orbax writes them in the background and keeps the newest two.

    Args:
      folder: the folder of the checkpoints.
      base_fingerprint: the fingerprint of the base of the runs.
      runs: the names of the runs, in the order of the pack.
      warn: receives a line for each damaged checkpoint.
    """

    def __init__(
        self, folder: Path, *, base_fingerprint: str, runs: Sequence[str], warn: Callable[[str], None] = logger.warning
    ):
        self._folder = folder.absolute()  # orbax needs absolute paths
        self._opened: Any = None
        self._owner = {"base": base_fingerprint, "runs": list(runs)}
        self._warn = warn
        self._damaged: list[int] = []

    @property
    def _manager(self) -> Any:
        """Orbax's manager, which takes a second to import: a pack that needs no checkpoint never opens it."""
        if self._opened is None:
            # Orbax measures its timeouts by the wall clock, which may jump. It waits at most 300 s for directories that
            # a thread creates, whatever timeout_secs is, and its other threads then wait for them forever.
            patient = ocp.options.AsyncOptions(timeout_secs=10**9, create_directories_asynchronously=False)
            sys.unraisablehook = _report_unraisable
            self._opened = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=2, enable_async_checkpointing=True, async_options=patient
                ),
            )
        return self._opened

    def save(self, step: int, arrays: Any, progress: dict[str, Any]) -> None:
        """Starts to save a checkpoint, and returns before it is on disk.

        An existing checkpoint of the same step is not replaced.

        Args:
          step: the number of updates done.
          arrays: a pytree of arrays.
          progress: any JSON object.
        """
        while self._damaged:
            self._manager.delete(self._damaged.pop())
        if step == self._manager.latest_step():
            return
        # The train step donates these buffers while orbax is still writing, so orbax gets a copy.
        leaves, structure = jax.tree.flatten(jax.device_get(arrays))
        with ThreadPoolExecutor() as threads:  # numpy copies without Python's lock
            host_copy = jax.tree.unflatten(structure, threads.map(np.array, leaves))
        note = seal({**self._owner, "arrays": _checksums(host_copy), **progress})
        self._manager.save(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(host_copy), note=ocp.args.JsonSave(note))
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest intact checkpoint as (arrays, progress), or None if there is none.

        Args:
          like: arrays or shapes with the structure of the saved arrays.

        Raises:
          UserError: the checkpoint belongs to another base or to other runs.
        """
        if not self._folder.exists():
            return None
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
        with _quiet():
            for step in sorted(self._manager.all_steps(), reverse=True):
                try:
                    note = self._read_note(step)
                    if self._is_owner(note):
                        return self._read_arrays(step, abstract, note["arrays"]), note
                except Exception as error:  # orbax and its stores raise exceptions of many types
                    if is_out_of_memory(error):
                        raise
                    self._damaged.append(step)
                    reason = f"{type(error).__name__}: {message_of(error)}"
                    self._warn(f"{self._folder / str(step)} is damaged and is not used ({reason})")
                    continue
                raise UserError(
                    f"{self._folder / str(step)} is a checkpoint of other runs or of another base ({_text(note)}), "
                    f"expected {_text(self._owner)}; remove the folder to train these runs from their start"
                )
        if self._damaged:
            self._warn(f"{self._folder} has no intact checkpoint, so its runs start anew from step 0")
        return None

    def _is_owner(self, note: Mapping[str, Any]) -> bool:
        return {key: note[key] for key in self._owner} == self._owner

    def _read_note(self, step: int) -> dict[str, Any]:
        restored = self._manager.restore(step, args=ocp.args.Composite(note=ocp.args.JsonRestore()))
        return unseal(restored.note, where="its note")

    def _read_arrays(self, step: int, abstract: Any, checksums: Mapping[str, str]) -> Any:
        restored = self._manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract)))
        if _checksums(restored.arrays) != checksums:
            raise ValueError("its arrays do not fit their checksums")
        return restored.arrays

    def split(self, like: Any, parts: Sequence[tuple[Path, str, Sequence[int], Any]]) -> int | None:
        """Splits the newest checkpoint into checkpoints of smaller packs.

        Args:
          like: arrays or shapes of the whole pack.
          parts: for each smaller pack the folder of its checkpoints, the fingerprint of its base, the indices of its
            runs in the whole pack, and the shapes of its arrays. A smaller pack may lack paths of the whole pack and
            may be padded to smaller sizes, because what it leaves out is neutral for its runs.

        Returns:
          The step of the checkpoint, or None if there is none.
        """
        restored = self.restore(like)
        if restored is None:
            return None
        arrays, note = restored
        whole = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)}
        for folder, base_fingerprint, runs, shapes in parts:

            def take(path: Any, leaf: Any, runs: Sequence[int] = runs) -> np.ndarray:
                array = np.asarray(whole[jax.tree_util.keystr(path)])
                return array[list(runs)][(slice(None), *(slice(size) for size in leaf.shape[1:]))]

            progress = {
                name: [value[i] for i in runs] if isinstance(value, list) else value
                for name, value in note["progress"].items()
            }
            shutil.rmtree(folder, ignore_errors=True)  # may remain of an interrupted split
            names = [note["runs"][i] for i in runs]
            part = PackCheckpoints(folder, base_fingerprint=base_fingerprint, runs=names)
            with contextlib.closing(part) as checkpoints:
                checkpoints.save(
                    note["progress"]["step"], jax.tree_util.tree_map_with_path(take, shapes), {"progress": progress}
                )
        return int(note["progress"]["step"])

    def close(self) -> None:
        """Waits until all checkpoints are on disk, and closes the manager."""
        if self._opened is not None:
            with contextlib.closing(self._opened) as manager:
                manager.wait_until_finished()


def _checksums(arrays: Any) -> dict[str, str]:
    """Returns the dtype, shape and CRC-32 of every array, by path. A CRC-32 takes a third of the time of a SHA-256."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)}
    with ThreadPoolExecutor() as threads:  # zlib reads without Python's lock
        return dict(zip(leaves, threads.map(_checksum, leaves.values()), strict=True))


def _checksum(leaf: Any) -> str:
    array = np.ascontiguousarray(leaf)
    crc = zlib.crc32(array.reshape(-1).view(np.uint8).data)
    return f"{array.dtype.name}{list(array.shape)} {crc:08x}"


def _text(owner: Mapping[str, Any]) -> str:
    return f"base {owner['base'][:12]}, runs {', '.join(owner['runs'])}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what orbax's threads print beside the exception that a damaged checkpoint raises."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook, log.disabled = lambda _: None, True
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        sys.unraisablehook, log.disabled = hook, False


def _report_unraisable(unraisable: Any, previous: Any = sys.unraisablehook) -> None:
    """Reports an exception in a callback, unless TensorStore calls an event loop that orbax closed after an error."""
    if str(unraisable.exc_value) != "Event loop is closed":
        previous(unraisable)
