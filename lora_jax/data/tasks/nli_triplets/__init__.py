"""MultiNLI (Williams et al., arXiv 1704.05426) for sentence embeddings: a premise finds what it entails."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lora_jax.data.examples import Corpus, Examples
from lora_jax.data.held_out import by_hash, normalise
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks.glue import GLUE
from lora_jax.data.tasks.glue.table import MNLI
from lora_jax.errors import UserError

VALID_PREMISES = 1_000


class Premise(NamedTuple):
    """A premise with all hypotheses that it entails, and all that contradict it."""

    text: str
    entailed: list[str]
    contradicted: list[str]


def load(data_dir: Path | None = None) -> TaskData:
    """Reads the triplets of the files of the task `mnli`: to train on, validate, and test, the development set.

    Raises:
      UserError: as the task `mnli` does, or a split has no premise with hypotheses of both kinds.
    """
    data = GLUE[MNLI.name].load(data_dir)
    # `mnli` validates on single pairs, which would tear triplets apart.
    train = _premises(data.labels, data.splits["train"], data.splits["valid"])
    held_out = set(by_hash(train)[: min(VALID_PREMISES, (len(train) + 5) // 10)])
    parts = {
        "train": {key: premise for key, premise in train.items() if key not in held_out},
        "valid": {key: premise for key, premise in train.items() if key in held_out},
        "test": _premises(data.labels, data.splits["test"]),
    }
    splits = {name: triplets(name, list(part.values())) for name, part in parts.items()}
    return TaskData((), splits, {name: corpus_of(splits[name]) for name in ("valid", "test")})


def triplets(name: str, premises: list[Premise]) -> Examples:
    """Returns the triplets of a split, in order. Those of one premise are a group.

    A premise's first entailed hypothesis goes with its first contradicting one, and so on, while it has both.

    Raises:
      UserError: there is none. `name` is the split's.
    """
    rows = [
        (premise.text, positive, negative, group)
        for group, premise in enumerate(premises)
        for positive, negative in zip(premise.entailed, premise.contradicted, strict=False)
    ]
    if not rows:
        raise UserError(
            f"task=nli_triplets: the {name} split has no premise with both an entailed and a contradicting hypothesis; "
            f"expected one or more"
        )
    anchors, positives, negatives, groups = (list(column) for column in zip(*rows, strict=True))
    return Examples(anchors, np.array(groups, np.int32), positives, negatives=negatives)


def corpus_of(split: Examples) -> Corpus:
    """Returns the positives of a split as documents, each text once. Those of an anchor's group suit it."""
    positives = split.pairs or []
    place = {text: i for i, text in enumerate(dict.fromkeys(positives))}
    suiting: dict[int, set[int]] = collections.defaultdict(set)
    for group, text in zip(split.labels, positives, strict=True):
        suiting[int(group)].add(place[text])
    return Corpus(list(place), [tuple(sorted(suiting[int(group)])) for group in split.labels])


def _premises(labels: tuple[str, ...], *splits: Examples) -> dict[str, Premise]:
    """Returns the premises by their normalised text, in the order of their first rows."""
    premises: dict[str, Premise] = {}
    for premise, hypothesis, label in _rows(labels, *splits):
        mine = premises.setdefault(normalise(premise), Premise(premise, [], []))
        if label == "entailment":
            mine.entailed.append(hypothesis)
        elif label == "contradiction":
            mine.contradicted.append(hypothesis)
    return premises


def _rows(labels: tuple[str, ...], *splits: Examples) -> Iterator[tuple[str, str, str]]:
    for split in splits:
        for premise, hypothesis, label in zip(split.texts, split.pairs or [], split.labels, strict=True):
            yield premise, hypothesis, labels[int(label)]


NLI_TRIPLETS = Task(
    name="nli_triplets",
    objective="contrastive_triplets",
    evaluators=("retrieval", "scores"),
    metrics=("ndcg_at_10", "recall_at_1", "recall_at_10", "accuracy"),
    metric="ndcg_at_10",
    select="ndcg_at_10",
    load=load,
    folder=MNLI.folder,
)
