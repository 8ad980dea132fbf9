"""The TFDS builder of DART. Its description is README.md, which TFDS finds beside this file."""

from lora_jax.data.folder_builder import PromptBuilder
from lora_jax.data.json_lines import Record, read_json_list

FILES = {
    "train": "dart-v1.1.1-full-train.json",
    "validation": "dart-v1.1.1-full-dev.json",
    "test": "dart-v1.1.1-full-test.json",
}


class Dart(PromptBuilder):
    """Reads the files of FILES in `folder`; the network is not used."""

    homepage = "https://github.com/Yale-LILY/dart"
    license = "MIT"

    def splits(self) -> dict[str, list[dict[str, str]]]:
        return {
            split: [example for entry in read_json_list(self.folder / name) for example in _examples(entry)]
            for split, name in FILES.items()
        }


def _examples(entry: Record) -> list[dict[str, str]]:
    triples = entry.rows("tripleset", ("subject", "relation", "object"))
    prompt = " | ".join(
        f"{triple.string('subject')} : {triple.string('relation').lower()} : {triple.string('object')}"
        for triple in triples
    )
    texts = [" ".join(annotation.string("text").split()) for annotation in entry.records("annotations")]
    return [{"prompt": prompt, "reference": text} for text in texts if text]
