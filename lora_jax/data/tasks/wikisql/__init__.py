"""WikiSQL (Zhong et al., arXiv 1709.00103): the columns of a table and a question in, the SQL query out.

The LoRA paper fine-tunes GPT-3 on it (arXiv 2106.09685, table 4).
"""

from pathlib import Path

from lora_jax.data.prepared import open_builder, read_texts
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData

# The SHA-256 of the archive is not known; the commit in the address fixes it.
ARCHIVE = "data.tar.bz2"
_URL = f"https://raw.githubusercontent.com/salesforce/WikiSQL/7857cfd8aefcc9823245c370f9e39ecd55745ea6/{ARCHIVE}"
FILES = tuple(
    RawFile(f"{split}.{kind}", _URL) for split in ("train", "dev", "test") for kind in ("jsonl", "tables.jsonl")
)


def load(data_dir: Path | None = None) -> TaskData:
    """Reads the questions and tables of WikiSQL, or its data.tar.bz2, in `data_dir`; or else downloads that archive.

    There are 56,355 / 8,421 / 15,878 questions. Raises UserError if the files are malformed, or missing and cannot be
    downloaded.
    """

    from lora_jax.data.tasks.wikisql.builder import Wikisql

    folder = raw_folder("wikisql", data_dir, FILES, ARCHIVE)
    return read_texts(open_builder(Wikisql, folder, [raw.name for raw in FILES]))


WIKISQL = Task(
    name="wikisql",
    objective="generation",
    evaluators=("scores", "generation"),
    metrics=("loss", "perplexity", "token_accuracy", "logical_form"),
    metric="logical_form",
    select="loss",
    load=load,
    folder="wikisql",
)
