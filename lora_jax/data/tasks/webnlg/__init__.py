"""WebNLG 2017 (Gardent et al., INLG 2017): one to seven triples of DBpedia in, a text that says the same out.

The LoRA paper scores its test split on the categories that occur in the training data, on the others, and on all
(arXiv 2106.09685, appendix F.1): three tasks here, which differ in their test split alone.
"""

import dataclasses
import functools
from pathlib import Path

from lora_jax.data.prepared import open_builder, read_splits, text_examples
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData
from lora_jax.errors import UserError

# CC BY-NC-SA 4.0, so not in this package: read from task.data_dir, or downloaded once.
_URL = (
    "https://raw.githubusercontent.com/microsoft/LoRA/c4593f060e6a368d7bb5af5273b8e42810cdef90/examples/NLG/data/"
    "webnlg_challenge_2017/"
)
FILES = (
    RawFile("train.json", _URL, "180edb6011360608c8548d4551366a9d55f140cbf9bc9397fbf4d97f6a89c639"),
    RawFile("dev.json", _URL, "50f5a2c24d760bc84ba3e852707cd3b43b0cf2da035b425f87945a2440880488"),
    RawFile("test.json", _URL, "2574896b23b5959d1a0cd4bb501ffbeff1a11790a9996c4cb8efed289149ff4f"),
)


def load(data_dir: Path | None = None, *, seen: bool | None = None) -> TaskData:
    """Reads the challenge's train.json, dev.json and test.json in `data_dir`, or else downloads them.

    There are 18,025 / 2,258 / 4,928 texts.

    Args:
      data_dir: the folder of the files; None downloads them.
      seen: whether the test split holds the categories that occur in the training data (2,495 texts) or the others
        (2,433); None for both.

    Raises:
      UserError: the files are malformed, missing and cannot be downloaded, or no test text is left.
    """

    from lora_jax.data.tasks.webnlg.builder import WebNlg

    folder = raw_folder("webnlg", data_dir, FILES)
    splits = read_splits(open_builder(WebNlg, folder, [raw.name for raw in FILES]))
    if seen is not None:
        categories = {row["category"] for row in splits["train"]}
        splits["test"] = [row for row in splits["test"] if (row["category"] in categories) == seen]
        if not splits["test"]:
            raise UserError(
                f"task.data_dir={str(folder.absolute())!r}: no text in test.json has a category that is "
                f"{'also' if seen else 'not'} in train.json; expected one or more"
            )
    return TaskData((), {name: text_examples(rows) for name, rows in splits.items()})


WEBNLG = Task(
    name="webnlg",
    objective="generation",
    evaluators=("scores", "generation"),
    metrics=("loss", "perplexity", "token_accuracy", "bleu", "meteor"),
    metric="bleu",
    select="loss",
    load=load,
    folder="webnlg_challenge_2017",
)
WEBNLG_SEEN = dataclasses.replace(WEBNLG, name="webnlg_seen", load=functools.partial(load, seen=True))
WEBNLG_UNSEEN = dataclasses.replace(WEBNLG, name="webnlg_unseen", load=functools.partial(load, seen=False))
