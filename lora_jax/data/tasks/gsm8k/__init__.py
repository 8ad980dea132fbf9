"""GSM8K (Cobbe et al., arXiv 2110.14168): a school problem in words in, its solution step by step out."""

from pathlib import Path

from lora_jax.data.prepared import open_builder, read_texts
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData

_URL = (
    "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
    "grade_school_math/data/"
)
FILES = (
    RawFile("train.jsonl", _URL, "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
    RawFile("test.jsonl", _URL, "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
)


def load(data_dir: Path | None = None) -> TaskData:
    """Reads train.jsonl and test.jsonl in `data_dir`, or else downloads them.

    6,973 / 500 / 1,319 problems: 500 of the 7,473 training problems validate. Raises UserError if the files are
    missing and cannot be downloaded.
    """

    from lora_jax.data.tasks.gsm8k.builder import Gsm8k

    folder = raw_folder("gsm8k", data_dir, FILES)
    return read_texts(open_builder(Gsm8k, folder, [raw.name for raw in FILES]))


GSM8K = Task(
    name="gsm8k",
    objective="generation",
    evaluators=("scores", "generation"),
    metrics=("loss", "perplexity", "token_accuracy", "gsm8k_match"),
    metric="gsm8k_match",
    select="loss",
    load=load,
    folder="gsm8k",
)
