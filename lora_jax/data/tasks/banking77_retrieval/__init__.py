"""BANKING77 (Casanueva et al., arXiv 2003.04807) for sentence embeddings: a question finds others of its intent."""

from pathlib import Path

import numpy as np

from lora_jax.data.examples import Corpus, Examples
from lora_jax.data.held_out import by_hash, normalise
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks.banking77 import BANKING77
from lora_jax.errors import UserError

QUERIES = 1_000  # of a split, at most
DOCUMENTS = 20  # of an intent, at most


def load(data_dir: Path | None = None) -> TaskData:
    """Reads the questions of the task `banking77`, as pairs to train on, and as queries and documents.

    Raises:
      UserError: as the task `banking77` does, or there is no pair, or no query in a split.
    """
    data = BANKING77.load(data_dir)
    train = data.splits["train"]
    documents = documents_of(train)
    splits = {"train": pairs_of(train)}
    splits |= {name: queries_of(data.splits[name], train, documents) for name in ("valid", "test")}
    for name, split in splits.items():
        if not len(split):
            raise UserError(
                f"task=banking77_retrieval: the {name} split is empty; expected two different questions of an intent "
                f"to train on, and other questions of that intent to find them"
            )
    return TaskData(data.labels, splits, {name: corpus_of(splits[name], documents) for name in ("valid", "test")})


def pairs_of(train: Examples) -> Examples:
    """Returns each question as an anchor, and another of its intent as its positive.

    The different questions of an intent form a ring, in the order of their hashes. Each is paired with the next, so
    that it is an anchor once and a positive once. A question that is alone with its intent is left out.
    """
    anchors, positives, intents = [], [], []
    for intent, questions in _by_intent(train).items():
        if len(questions) > 1:
            anchors += questions
            positives += [*questions[1:], questions[0]]
            intents += [intent] * len(questions)
    return Examples(anchors, np.array(intents, np.int32), positives)


def documents_of(train: Examples) -> Examples:
    """Returns the first DOCUMENTS questions of each intent, in the order of their hashes."""
    rows = [(text, intent) for intent, questions in _by_intent(train).items() for text in questions[:DOCUMENTS]]
    return Examples([text for text, _ in rows], np.array([intent for _, intent in rows], np.int32))


def queries_of(split: Examples, train: Examples, documents: Examples) -> Examples:
    """Returns the first QUERIES different questions, in the order of their hashes, that `train` does not have.

    Those of an intent without a document are left out.
    """
    trained, intents = {normalise(text) for text in train.texts}, set(documents.labels)
    rows = {normalise(text): row for row, text in enumerate(split.texts) if split.labels[row] in intents}
    return split.take([rows[key] for key in by_hash(rows.keys() - trained)[:QUERIES]])


def corpus_of(queries: Examples, documents: Examples) -> Corpus:
    """Returns the documents. Those of a query's intent suit it."""
    suiting = {intent: tuple(np.flatnonzero(documents.labels == intent).tolist()) for intent in set(documents.labels)}
    return Corpus(documents.texts, [suiting[intent] for intent in queries.labels])


def _by_intent(questions: Examples) -> dict[int, list[str]]:
    """Returns the different questions of each intent, in the order of their hashes."""
    texts: dict[int, dict[str, str]] = {intent: {} for intent in sorted(set(np.asarray(questions.labels).tolist()))}
    for text, intent in zip(questions.texts, questions.labels, strict=True):
        texts[int(intent)][normalise(text)] = text
    return {intent: [mine[key] for key in by_hash(mine)] for intent, mine in texts.items()}


BANKING77_RETRIEVAL = Task(
    name="banking77_retrieval",
    objective="contrastive",
    evaluators=("retrieval",),
    metrics=("ndcg_at_10", "recall_at_1", "recall_at_10"),
    metric="ndcg_at_10",
    select="ndcg_at_10",
    load=load,
    folder=BANKING77.folder,
)
