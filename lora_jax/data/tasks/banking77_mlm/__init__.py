"""The questions of BANKING77 without their intents, to adapt a masked language model to a bank's customers."""

from pathlib import Path

from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks.banking77 import load as load_banking77
from lora_jax.data.unlabelled import UnlabelledTexts


def load(data_dir: Path | None = None) -> TaskData[UnlabelledTexts]:
    """Reads what `banking77` reads, in the same splits, and drops the labels."""
    splits = load_banking77(data_dir).splits
    return TaskData((), {name: UnlabelledTexts(split.texts) for name, split in splits.items()})


BANKING77_MLM = Task(
    name="banking77_mlm",
    objective="masked_lm",
    evaluators=("scores",),
    metrics=("perplexity", "loss", "token_accuracy"),
    metric="perplexity",
    select="loss",
    load=load,
    folder="banking77",
)
