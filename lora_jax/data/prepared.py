"""Raw files to TFDS splits on disk, once, in the cache; later calls only read them. No TensorFlow is involved."""

import contextlib
import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_jax.data.raw import raw_files
from lora_jax.weights.sources import cache_folder

logger = logging.getLogger("lora_jax")

# A builder for the raw files in a folder, given the folder to prepare into (TFDS's data_dir).
MakeBuilder = Callable[[Path, Path], Any]


def open_builder(make: MakeBuilder, folder: Path, files: Sequence[str]) -> Any:
    """The TFDS builder that `make` makes for the raw `files` in `folder`, prepared and ready for `as_data_source`.

    The prepared copy's path holds a hash of the raw files, so files that change are prepared anew. Raises UserError
    if `folder` lacks one of them.
    """
    import tensorflow_datasets as tfds

    digest = hashlib.sha256()
    for path in raw_files(folder, files):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    home = cache_folder().absolute() / "tfds" / digest.hexdigest()[:16]
    builder = make(folder, home)
    if Path(builder.data_dir).exists():
        return builder
    logger.info("preparing %s in %s", folder, builder.data_dir)
    tfds.disable_progress_bar()
    try:
        # On standard output TFDS announces a download that does not take place. By default it would write TFRecord,
        # which needs TensorFlow.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except OSError:
        # TFDS writes to a folder of its own and renames it last. A rename onto a folder that is there fails: then
        # another process was quicker, and its copy, being whole, is as good as ours.
        if not Path(builder.data_dir).exists():
            raise
    return make(folder, home)
