"""SAMSum (Gliwa et al., arXiv 1911.12237): a chat of a few people in, a summary of it out.

The LoRA paper fine-tunes GPT-3 on it (arXiv 2106.09685, table 4).
"""

from pathlib import Path

from lora_jax.data.prepared import open_builder, read_texts
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData
from lora_jax.errors import UserError

# CC BY-NC-ND 4.0, so not in this package. It is published in an archive of a kind that Python does not unpack.
URL = "https://arxiv.org/src/1911.12237v2/anc/corpus.7z"
FILES = tuple(RawFile(name, URL) for name in ("train.json", "val.json", "test.json"))


def load(data_dir: Path | None = None) -> TaskData:
    """Reads train.json, val.json and test.json in `data_dir`.

    The authors count 14,732 / 818 / 819 dialogues; a blank one is passed over. Raises UserError if the files are
    missing or malformed, and without a `data_dir`.
    """

    from lora_jax.data.tasks.samsum.builder import Samsum

    names = [raw.name for raw in FILES]
    if data_dir is None:
        raise UserError(
            f"task=samsum: task.data_dir is not given, and {URL} is a 7z archive, which is not unpacked here; unpack "
            f"it (7z x corpus.7z) and name the folder with {', '.join(names)} by task.data_dir"
        )
    return read_texts(open_builder(Samsum, raw_folder("samsum", data_dir, FILES), names))


SAMSUM = Task(
    name="samsum",
    objective="generation",
    evaluators=("scores", "generation"),
    metrics=("loss", "perplexity", "rouge1", "rouge2", "rougeL"),
    metric="rougeL",
    select="loss",
    load=load,
    folder="samsum",
)
