"""Files that are replaced as a whole: at any moment a path holds the old content or the new."""

import os
import shutil
from pathlib import Path

TEMPORARY = ".tmp-"  # the prefix of files and folders that a killed process may leave behind


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, and to the disk before the name is replaced."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # the system names no file when a write fails
        raise


def remove_temporaries(folder: Path) -> None:
    """Removes what killed processes left in `folder`, which no other process may be using."""
    for path in sorted(folder.rglob(f"{TEMPORARY}*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
