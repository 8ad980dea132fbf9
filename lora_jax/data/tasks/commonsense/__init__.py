"""Questions of commonsense with a few options, as LLM-Adapters writes them (Hu et al., arXiv 2304.01933)."""

import functools
from collections.abc import Sequence
from pathlib import Path

from lora_jax.data.instructions import URL
from lora_jax.data.prepared import open_builder, read_texts
from lora_jax.data.raw import RawFile, raw_folder
from lora_jax.data.task import Task, TaskData


def load(files: Sequence[RawFile], name: str, data_dir: Path | None = None) -> TaskData:
    """Reads train.json and test.json in `data_dir`, or else downloads them.

    A tenth of the training questions validates, but at most 500. Every example has the choices that its question
    names, each written as a reference is. Raises UserError if the files are missing and cannot be downloaded.
    """

    from lora_jax.data.tasks.commonsense.builder import Commonsense

    folder = raw_folder(name, data_dir, files)
    return read_texts(open_builder(Commonsense, folder, [raw.name for raw in files]))


def _task(name: str, folder: str, train: str | None, test: str) -> Task:
    """Returns the task of the data set in LLM-Adapters' `folder`, whose files have these SHA-256."""
    files = [
        RawFile(f"{part}.json", f"{URL}dataset/{folder}/", sha) for part, sha in (("train", train), ("test", test))
    ]
    return Task(
        name=name,
        objective="generation",
        evaluators=("scores", "choices", "generation"),
        metrics=("loss", "accuracy", "option_match"),
        metric="accuracy",
        select="loss",
        load=functools.partial(load, files, name),
        folder=f"llm_adapters/{folder}",
    )


# Three training files were never downloaded when this was written, so that their SHA-256 are not known.
COMMONSENSE = (
    _task(
        "boolq",
        "boolq",
        "5ccbaceebaddc69765e1c4a363632196b81851d303696672165ab59ec4e48c83",
        "89df2397cbca81dc31adcc6f7f5b635821aa0565aafde46725b2b4bd39b4dfa9",
    ),
    _task("piqa", "piqa", None, "3860d11b9b42e590b6b4bbc1643214d373ed0b0d4ac62fcc7bdceb8e044ad141"),
    _task("siqa", "social_i_qa", None, "71543f41127451945379d106ffedaef502f1c8770dff6d2f543aca85e3080b1d"),
    _task("winogrande", "winogrande", None, "6946f5209e7114c65c6d04f8f644c5a061af20d730b1cfe158fff3dc44076fb9"),
    _task(
        "arc_easy",
        "ARC-Easy",
        "6a06cece3dec32f4fb1c1b0fc29dab14be7cf3053b417290dbc6cd845359f5ff",
        "3f32a84716ca6d57d38728bf80cc8117aecd17445c2cf29a68b571b810eb82dc",
    ),
    _task(
        "arc_challenge",
        "ARC-Challenge",
        "a9debff28aafed86a08211dc3584a3b6cb38edca8c56bb34cd5002ed54aeebfb",
        "4a89ce368ae01a71d268d9851686738b2a0a1d84271116bab49a1dd2b48ecad7",
    ),
    _task(
        "openbookqa",
        "openbookqa",
        "a1e094eeea01f70c0baa880f37497b26700ae99b243927b9c529984de9b1fe90",
        "8479930f7b8a26052c78250280b5465a4016ca7fc806af440d0f37e243f3099e",
    ),
)
