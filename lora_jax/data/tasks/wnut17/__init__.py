"""WNUT-17 (Derczynski et al., 2017): rare and emerging named entities in the English of social media."""

from pathlib import Path

from lora_jax.data.prepared import open_builder, read_splits
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.tagged_words import TaggedWords
from lora_jax.data.task import Task, TaskData

# CC BY 4.0: read from task.data_dir, or downloaded once.
_URL = "https://raw.githubusercontent.com/leondz/emerging_entities_17/e52a2d2a71ac1a051ca2d532eef28653c5c02603/"
FILES = (
    RawFile("wnut17train.conll", _URL, "731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5"),
    RawFile("emerging.dev.conll", _URL, "e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8"),
    RawFile("emerging.test.annotated", _URL, "2aa79b764e56ec9264a1b30fdd9b70195bd00ff400b62edd8f399d5f13c178f0"),
)


def load(data_dir: Path | None = None) -> TaskData[TaggedWords]:
    """Reads the FILES in `data_dir`, or else downloads them: 3,394 / 1,009 / 1,287 sentences.

    Raises UserError if the files are not there, are malformed, or cannot be downloaded.
    """

    from lora_jax.data.tasks.wnut17.builder import Wnut17

    folder = raw_folder("wnut17", data_dir, FILES)
    builder = open_builder(Wnut17, folder, [raw.name for raw in FILES])
    splits = {
        name: TaggedWords(
            [[word.decode() for word in row["words"]] for row in rows],
            [[int(tag) for tag in row["tags"]] for row in rows],
        )
        for name, rows in read_splits(builder).items()
    }
    return TaskData(tuple(builder.info.features["tags"].feature.names), splits)


WNUT17 = Task(
    name="wnut17",
    objective="token_classification",
    evaluators=("scores",),
    metrics=("span_f1", "token_accuracy", "loss"),
    metric="span_f1",
    select="span_f1",
    load=load,
    folder="wnut17",
)
