"""E2E NLG (Novikova et al., arXiv 1706.09254): a restaurant's properties in, a sentence or two about it out.

This is the challenge's original data, which the LoRA paper uses (arXiv 2106.09685, table 3): not ``e2e_cleaned``.
"""

from pathlib import Path

from lora_jax.data.examples import Examples, Task
from lora_jax.data.prepared import open_builder
from lora_jax.data.raw import Raw, raw_folder

# CC BY-SA 4.0, so not in this package: read from task.data_dir, or fetched once.
_HOME = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/ab0d967dd5729ce455ef14ba9ffafc456a335264/"
FILES = (
    Raw("trainset.csv", _HOME, "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6"),
    Raw("devset.csv", _HOME, "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9"),
    Raw("testset_w_refs.csv", _HOME, "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd"),
)
ARCHIVE = "e2e-dataset.zip"  # as the challenge publishes them


def load(data_dir: Path | None = None) -> Task:
    """The task, from the challenge's CSV files or its e2e-dataset.zip in `data_dir`, or else downloaded.

    42,061 / 4,672 / 4,693 rows, a reference each; the test split has 630 different meaning representations. Raises
    UserError if the files are not there, or cannot be had.
    """

    def make(folder: Path, prepared: Path):
        from lora_jax.data.e2e.builder import E2eNlg

        return E2eNlg(folder=folder, data_dir=prepared)

    builder = open_builder(make, raw_folder("e2e", data_dir, FILES, ARCHIVE), [raw.name for raw in FILES])
    sources = builder.as_data_source()
    splits = {}
    for ours, theirs in {"train": "train", "valid": "validation", "test": "test"}.items():
        rows = list(sources[theirs])
        splits[ours] = Examples([row["prompt"].decode() for row in rows], [row["reference"].decode() for row in rows])
    return Task(name="e2e", kind="generation", labels=(), metric="bleu", select="loss", splits=splits)
