"""The TFDS builder of E2E NLG. Its description is README.md, which TFDS finds beside this file."""

import csv
import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import FolderBuilder
from lora_jax.errors import UserError

# The names of properties in the LoRA paper's code, where they differ from the data's.
NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_PROPERTY = re.compile(r"([^\[\],]+)\[([^\]]*)\]")


class E2eNlg(FolderBuilder):
    """Reads trainset.csv, devset.csv and testset_w_refs.csv in `folder`; the network is not used."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"prompt": tfds.features.Text(), "reference": tfds.features.Text()}),
            supervised_keys=("prompt", "reference"),
            homepage="https://github.com/tuetschek/e2e-dataset",
            license="CC BY-SA 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {
            "train": self._examples("trainset.csv"),
            "validation": self._examples("devset.csv"),
            "test": self._examples("testset_w_refs.csv"),
        }

    def _examples(self, name: str) -> Iterator[tuple[int, dict[str, str]]]:
        path = self.folder / name
        with path.open(encoding="utf-8-sig", newline="") as file:
            for i, row in enumerate(csv.DictReader(file)):
                if not row.get("ref") or not row.get("mr") or not _PROPERTY.search(row["mr"]):
                    raise UserError(
                        f"task.data_dir: {path.absolute()}, row {i + 1}: {row}; expected mr (name[The Mill]) and ref"
                    )
                yield i, {"prompt": prompt(row["mr"]), "reference": " ".join(row["ref"].split())}


def prompt(mr: str) -> str:
    """Writes a meaning representation as the LoRA paper does: ``name : The Mill | Type : pub | price : cheap``."""
    pairs = ((name.strip(), value.strip()) for name, value in _PROPERTY.findall(mr))
    return " | ".join(f"{NAMES.get(name, name)} : {value}" for name, value in pairs)
