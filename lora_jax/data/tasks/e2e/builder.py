"""The TFDS builder of E2E NLG. Its description is README.md, which TFDS finds beside this file."""

from lora_jax.data.folder_builder import PromptBuilder
from lora_jax.data.tables import Row, read_csv

# The names of properties in the LoRA paper's code, where they differ from the data's.
NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


class E2eNlg(PromptBuilder):
    """Reads trainset.csv, devset.csv and testset_w_refs.csv in `folder`; the network is not used."""

    homepage = "https://github.com/tuetschek/e2e-dataset"
    license = "CC BY-SA 4.0"

    def splits(self) -> dict[str, list[dict[str, str]]]:
        files = {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"}
        return {
            split: [_example(row) for row in read_csv(self.folder / name, ("mr", "ref"))]
            for split, name in files.items()
        }


def prompt(mr: str) -> str:
    """Writes a meaning representation as the LoRA paper does: ``name : The Mill | Type : pub | price : cheap``.

    Raises:
      ValueError: `mr` is not a list of properties like ``name[The Mill], priceRange[cheap]``.
    """
    *parts, rest = mr.split("]")
    properties: list[str] = []
    for part in parts:
        name, bracket, value = part.partition("[")
        name = (name.strip().removeprefix(",") if properties else name).strip()
        if not bracket or not name or "," in name:
            raise ValueError(f"{part!r} is not a property")
        properties.append(f"{NAMES.get(name, name)} : {value.strip()}")
    if not properties or rest.strip():
        raise ValueError(f"{rest!r} is not a property")
    return " | ".join(properties)


def _example(row: Row) -> dict[str, str]:
    try:
        text = prompt(row.text("mr"))
    except ValueError:
        raise row.error("mr", "properties like name[The Mill], priceRange[cheap]") from None
    return {"prompt": text, "reference": " ".join(row.text("ref").split())}
