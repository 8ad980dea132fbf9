"""Problems of arithmetic in words, as LLM-Adapters writes them (Hu et al., arXiv 2304.01933).

Its training file consists of four fifths of the test problems. What this package does about it is in README.md.
"""

import functools
from pathlib import Path

from lora_jax.data.instructions import URL
from lora_jax.data.prepared import open_builder, read_texts
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData

TRAIN = RawFile(
    "math_data.json", f"{URL}ft-training_set/", "1d06633b4db748b7cfa38f2891f8d7b17b3636717b3188dd382045b94cf999a7"
)


def load_numbers(test: RawFile, name: str, data_dir: Path | None = None) -> TaskData:
    """Reads math_data.json and the `test` file in `data_dir`, or else downloads them.

    Training and validation problems are those of the other sets whose solution ends with the right number. Raises
    UserError if the files are missing and cannot be downloaded.
    """

    from lora_jax.data.tasks.arithmetic.builder import NUMBERS

    folder = raw_folder(name, data_dir, (TRAIN, test))
    return read_texts(open_builder(NUMBERS[test.name], folder, (TRAIN.name, test.name)))


def load_aqua(test: RawFile, data_dir: Path | None = None) -> TaskData:
    """Reads math_data.json and AQuA's `test` file in `data_dir`, or else downloads them.

    Training and validation problems are AQuA's in math_data.json, which are left out of the test. A reference is a
    letter. Raises UserError if the files are missing and cannot be downloaded.
    """

    from lora_jax.data.tasks.arithmetic.builder import Aqua

    folder = raw_folder("aqua", data_dir, (TRAIN, test))
    return read_texts(open_builder(Aqua, folder, (TRAIN.name, test.name)))


def _numbers(name: str, folder: str, sha256: str) -> Task:
    """Returns the task whose test problems are in LLM-Adapters' `folder`, in a file with this SHA-256."""
    test = RawFile(f"{folder}/test.json", f"{URL}dataset/", sha256)
    return Task(
        name=name,
        objective="generation",
        evaluators=("scores", "generation"),
        metrics=("loss", "perplexity", "token_accuracy", "number_match"),
        metric="number_match",
        select="loss",
        load=functools.partial(load_numbers, test, name),
        folder="llm_adapters",
    )


ARITHMETIC = (
    _numbers("svamp", "SVAMP", "ffed015784f738f317c5603177861d044c4fc94e09211d78b25e96d46c656e2c"),
    _numbers("addsub", "AddSub", "62a8662b1ad40879953c4df0e61883a749d03aa3fc5e71f1cdb842b816e139ff"),
    _numbers("multiarith", "MultiArith", "a40f426807c8a563802c2a5b66bda3bcd1eba9c099038fd1199f0dd57de5fd28"),
    _numbers("singleeq", "SingleEq", "712b15edb851c97aab42a5de106d94008f94d917366c92537ed5400a8aacb207"),
    Task(
        name="aqua",
        objective="generation",
        evaluators=("scores", "choices", "generation"),
        metrics=("loss", "accuracy", "letter_match"),
        metric="letter_match",
        select="loss",
        load=functools.partial(
            load_aqua,
            RawFile(
                "AQuA/test.json",
                f"{URL}dataset/",
                "de677f5f0139340009eb01f17c0db781b4161912cd1f4efa77292f2fcf3478ee",
            ),
        ),
        folder="llm_adapters",
    ),
)
