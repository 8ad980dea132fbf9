"""The TFDS builder of WebNLG 2017. Its description is README.md, which TFDS finds beside this file."""

import tensorflow_datasets as tfds

from lora_jax.data.folder_builder import PromptBuilder
from lora_jax.data.json_lines import Record, read_json

FILES = {"train": "train.json", "validation": "dev.json", "test": "test.json"}


class WebNlg(PromptBuilder):
    """Reads train.json, dev.json and test.json in `folder`; the network is not used."""

    homepage = "https://gitlab.com/shimorina/webnlg-dataset"
    license = "CC BY-NC-SA 4.0"

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        return {**super().features(), "category": tfds.features.Text()}

    def splits(self) -> dict[str, list[dict[str, str]]]:
        return {split: self._examples(name) for split, name in FILES.items()}

    def _examples(self, name: str) -> list[dict[str, str]]:
        # Each entry is an object whose only key is its number.
        entries = read_json(self.folder / name).records("entries")
        return [example for i, entry in enumerate(entries, 1) for example in _examples(entry.record(str(i)))]


def _examples(entry: Record) -> list[dict[str, str]]:
    triples = entry.records("modifiedtripleset")
    prompt = " | ".join(" : ".join(triple.text(key) for key in ("subject", "property", "object")) for triple in triples)
    category = entry.text("category")
    return [
        {"prompt": prompt, "reference": " ".join(text.text("lex").split()), "category": category}
        for text in entry.records("lexicalisations")
        if text.text("comment") == "good"  # the others are marked as to be fixed, and the LoRA paper's code skips them
    ]
