"""DART (Nan et al., arXiv 2007.02871): triples from tables and from other sets in, a text that says the same out.

The LoRA paper reports it in appendix F.1 (arXiv 2106.09685).
"""

from pathlib import Path

from lora_jax.data.prepared import open_builder, read_texts
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData

# Version 1.1.1, all of its parts. Of train and test the SHA-256 is not known; the commit in the address fixes them.
_URL = "https://raw.githubusercontent.com/Yale-LILY/dart/bb644b12ec1d0264f96a31145534b9a94f6ff5f5/data/v1.1.1/"
FILES = (
    RawFile("dart-v1.1.1-full-train.json", _URL),
    RawFile("dart-v1.1.1-full-dev.json", _URL, "56606eac12baa7f0ddb81c61890f9f1a95bace4df8f8989852786358fe5d2b88"),
    RawFile("dart-v1.1.1-full-test.json", _URL),
)


def load(data_dir: Path | None = None) -> TaskData:
    """Reads the files of version 1.1.1 in `data_dir`, or else downloads them.

    The authors count 62,659 / 6,980 / 12,552 texts; a blank one is passed over. Raises UserError if the files are
    malformed, or missing and cannot be downloaded.
    """

    from lora_jax.data.tasks.dart.builder import Dart

    folder = raw_folder("dart", data_dir, FILES)
    return read_texts(open_builder(Dart, folder, [raw.name for raw in FILES]))


DART = Task(
    name="dart",
    objective="generation",
    evaluators=("scores", "generation"),
    metrics=("loss", "perplexity", "token_accuracy", "bleu", "meteor"),
    metric="bleu",
    select="loss",
    load=load,
    folder="dart",
)
