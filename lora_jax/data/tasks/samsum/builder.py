"""The TFDS builder of SAMSum. Its description is README.md, which TFDS finds beside this file."""

from lora_jax.data.folder_builder import PromptBuilder
from lora_jax.data.json_lines import Record, read_json_list

FILES = {"train": "train.json", "validation": "val.json", "test": "test.json"}


class Samsum(PromptBuilder):
    """Reads train.json, val.json and test.json in `folder`; the network is not used."""

    homepage = "https://arxiv.org/abs/1911.12237"
    license = "CC BY-NC-ND 4.0"

    def splits(self) -> dict[str, list[dict[str, str]]]:
        return {
            split: [example for record in read_json_list(self.folder / name) for example in _examples(record)]
            for split, name in FILES.items()
        }


def _examples(record: Record) -> list[dict[str, str]]:
    """Returns the example of a dialogue; none if the dialogue is blank.

    The prompt ends with a newline, and another one stands before every text that is generated: an empty line.
    """
    turns = [" ".join(turn.split()) for turn in record.string("dialogue").splitlines()]
    prompt = "".join(f"{turn}\n" for turn in turns if turn)
    reference = " ".join(record.text("summary").split())
    return [{"prompt": prompt, "reference": reference}] if prompt else []
