"""Finds the user's files, and the split that each belongs to by its name."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_jax.errors import UserError, shown

# TFDS's name of each split, and the names that its files may have.
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
_NAMED = re.compile(rf"({'|'.join(name for names in SPLITS.values() for name in names)})(?=[-.]|$)")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.|$)")
DATASET_INFO = "dataset_info.json"  # beside the files of a data set that `datasets` saved
_DEPTH = 3  # folders of a data set: a configuration, and a split in it


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
      name: the name that ``task.name`` takes.
      suffixes: the ends of files' names.
      nested: whether a split may have several files, and folders of its own.
      lists: whether a column may hold conversations.
    """

    name: str
    suffixes: tuple[str, ...]
    nested: bool = False
    lists: bool = True

    def suffix_of(self, name: str) -> str | None:
        """Returns the suffix of this format that a file's name ends with, or None."""
        return next((suffix for suffix in self.suffixes if name.endswith(suffix)), None)


FORMATS = {
    row.name: row
    for row in (
        Format("csv", (".csv", ".tsv", ".csv.gz", ".tsv.gz"), lists=False),
        Format("jsonl", (".jsonl", ".jsonl.gz")),
        Format("dataset", (".parquet", ".arrow"), nested=True),
    )
}


@dataclass(frozen=True)
class Files:
    """The files of a data set: `splits` has paths below `folder`, by TFDS's name of the split."""

    folder: Path
    splits: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """All files, in order."""
        return tuple(name for names in self.splits.values() for name in names)

    @property
    def read(self) -> tuple[str, ...]:
        """Everything that is read: the files, and what is beside them about their classes."""
        beside = dict.fromkeys(Path(name).with_name(DATASET_INFO).as_posix() for name in self.names)
        return (*self.names, *(name for name in beside if os.path.exists(self.folder / name)))


def find_files(format: Format, data_dir: Path | None) -> Files:
    """Returns the files of a data set in `data_dir`: a folder, or one file, which is then the train split.

    Raises:
      UserError: there is none of this format for the train split, or there are several for one split, and they are not
        its numbered parts.
    """
    if data_dir is None:
        raise UserError(f"task.data_dir is missing: task={format.name} reads your own data; give {_expected(format)}")
    where = f"task.data_dir={str(data_dir.absolute())!r}"
    if not os.path.isdir(data_dir):
        if not os.path.lexists(data_dir):
            raise UserError(f"{where}: there is no such folder or file; expected {_expected(format)}")
        if format.suffix_of(data_dir.name) is None:
            raise UserError(f"{where}: the file is called otherwise; expected {_expected(format)}")
        return Files(data_dir.parent, {"train": (data_dir.name,)})
    present = sorted(_present(format, data_dir))
    splits: dict[str, list[str]] = defaultdict(list)
    for name in present:
        if (split := _split_of(name)) is not None:
            splits[split].append(name)
    if "train" not in splits and format.nested:
        # A data set without splits, as `datasets` saves it.
        splits["train"] = [name for name in present if re.match(r"data-\d{5}-of-\d{5}\.arrow$", name)]
    if not splits["train"]:
        listing = shown(sorted(os.listdir(data_dir))[:20])
        raise UserError(f"{where}: it has no train split, but {listing}; expected {_expected(format)}")
    for split, names in splits.items():
        _check_one(format, split, names, where)
    return Files(data_dir, {split: tuple(splits[split]) for split in SPLITS if splits[split]})


def _present(format: Format, folder: Path) -> set[str]:
    """Returns the paths of all files of a format below `folder`."""
    patterns = ["/".join(["*"] * depth) for depth in range(1, _DEPTH + 1 if format.nested else 2)]
    paths = (path.relative_to(folder) for pattern in patterns for path in folder.glob(pattern))
    return {
        path.as_posix()
        for path in paths
        if format.suffix_of(path.name) and not any(part.startswith((".", "cache-")) for part in path.parts)
    }


def _split_of(name: str) -> str | None:
    """Returns the split that a file's name begins with, or else its folder's name."""
    path = Path(name)
    for part in (path.name, path.parent.name):
        if match := _NAMED.match(part):
            return next(split for split, names in SPLITS.items() if match[1] in names)
    return None


def _check_one(format: Format, split: str, names: list[str], where: str) -> None:
    """Raises UserError unless the files are one, or all the parts of one."""
    if len({_SHARD.sub("", name) for name in names}) > 1:
        raise UserError(f"{where}: the {split} split has {shown(names[:20])}; expected one of them")
    shards = [match.groups() for name in names if (match := _SHARD.search(name))]
    if not shards and len(names) == 1:
        return
    total = max(int(total) for _, total in shards)
    if [int(index) for index, _ in shards] != list(range(total)) or len(names) != total:
        raise UserError(f"{where}: the {split} split has {shown(names[:20])}; expected all its {total} parts")


def _expected(format: Format) -> str:
    names = " or ".join(f"train{suffix}" for suffix in format.suffixes if not suffix.endswith(".gz"))
    packed = ", or with .gz" if any(suffix.endswith(".gz") for suffix in format.suffixes) else ""
    nested = ", or a folder as datasets.save_to_disk or the hub leaves it" if format.nested else ""
    return f"a folder with {names}{packed}{nested}, or such a file"
