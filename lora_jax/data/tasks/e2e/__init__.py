"""E2E NLG (Novikova et al., arXiv 1706.09254): a restaurant's properties in, a sentence or two about it out.

This is the challenge's original data, which the LoRA paper uses (arXiv 2106.09685, table 3): not ``e2e_cleaned``.
"""

from pathlib import Path

from lora_jax.data.examples import Examples
from lora_jax.data.prepared import open_builder, read_splits
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData

# CC BY-SA 4.0, so not in this package: read from task.data_dir, or downloaded once.
_URL = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/ab0d967dd5729ce455ef14ba9ffafc456a335264/"
FILES = (
    RawFile("trainset.csv", _URL, "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6"),
    RawFile("devset.csv", _URL, "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9"),
    RawFile("testset_w_refs.csv", _URL, "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd"),
)
ARCHIVE = "e2e-dataset.zip"  # as the challenge publishes them


def load(data_dir: Path | None = None) -> TaskData:
    """Reads the challenge's CSV files or its e2e-dataset.zip in `data_dir`, or else downloads them.

    There are 42,061 / 4,672 / 4,693 rows with a reference each; the test split has 630 different meaning
    representations. Raises UserError if the files are missing and cannot be downloaded.
    """

    from lora_jax.data.tasks.e2e.builder import E2eNlg

    folder = raw_folder("e2e", data_dir, FILES, ARCHIVE)
    builder = open_builder(E2eNlg, folder, [raw.name for raw in FILES])
    splits = {
        name: Examples([row["prompt"].decode() for row in rows], [row["reference"].decode() for row in rows])
        for name, rows in read_splits(builder).items()
    }
    return TaskData((), splits)


E2E = Task(
    name="e2e",
    objective="generation",
    evaluators=("scores", "generation"),
    metrics=("loss", "perplexity", "token_accuracy", "bleu", "nist", "meteor", "rouge_l", "cider"),
    metric="bleu",
    select="loss",
    load=load,
    folder="e2e_nlg",
)
