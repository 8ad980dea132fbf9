"""Ranks the documents of a split for each of its queries, by the cosine of their embeddings."""

import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from lora_jax.config import RunConfig
from lora_jax.data.batches import EvalBatches
from lora_jax.data.encoding import TaskTokens
from lora_jax.data.sentence_pairs import EncodedTuples
from lora_jax.evaluation.outputs import compute_outputs, lower_outputs
from lora_jax.evaluation.scores import TITLES
from lora_jax.metrics import Predictions
from lora_jax.records import write_atomically
from lora_jax.train.evaluator import Compiled
from lora_jax.train.objective import Objective, unit_rows
from lora_jax.train.step import Params, Program
from lora_jax.weights.load import Base

SAVED = 10  # documents of each query in retrieval.jsonl


class RetrievalEvaluator:
    """Embeds queries and documents with all runs of a pack in one program, and keeps the first ten of each query."""

    splits: ClassVar[tuple[str, ...]] = ("valid", "test")

    def __init__(self, program: Program, base: Base, run: RunConfig, tokens: TaskTokens) -> None:
        if missing := set(self.splits) - tokens.retrieval.keys():
            raise ValueError(f"task={run.task.name} has no documents to search for {', '.join(sorted(missing))}")
        self._program, self._base, self._data = program, base, tokens.data

        def batches(texts: EncodedTuples) -> EvalBatches:
            return EvalBatches(texts, batch=min(run.eval_batch, len(texts)), buckets=tokens.buckets_of(run))

        self._queries = {split: batches(tokens.retrieval[split].queries) for split in self.splits}
        self._documents = {split: batches(tokens.retrieval[split].documents) for split in self.splits}
        self._relevance = {split: tokens.retrieval[split].relevance for split in self.splits}

    @staticmethod
    def fields(objective: Objective) -> frozenset[str]:
        return frozenset({"scores", "relevance"})

    def lower(self, params: Params, constants: Any) -> dict[Hashable, Callable[[], jax.stages.Lowered]]:
        batches = [*self._queries.values(), *self._documents.values()]
        return lower_outputs(self._program, self._base.model, batches, params, constants)

    def describe(self, split: str, runs: int) -> str:
        queries, documents = self._relevance[split].shape
        return f"ranking {documents} documents for {queries} {TITLES[split]} queries"

    def evaluate(self, split: str, compiled: Compiled, params: Params, constants: Any) -> list[Predictions]:
        queries, documents = (
            unit_rows(compute_outputs(self._base.model, batches, compiled, params, constants)[:, :, 0])
            for batches in (self._queries[split], self._documents[split])
        )
        return [
            Predictions(scores=mine @ others.T, relevance=self._relevance[split])
            for mine, others in zip(queries, documents, strict=True)
        ]

    def save(self, folder: Path, predictions: Predictions) -> None:
        """Writes ``retrieval.jsonl``: a line for each query, with the documents that rank first and their cosines."""
        texts, documents = self._data.splits["test"].texts, self._data.corpora["test"].documents
        scores, relevance = np.asarray(predictions.scores), np.asarray(predictions.relevance)
        order = np.argsort(-scores, axis=-1, kind="stable")[:, :SAVED]
        lines = []
        for query, first in enumerate(order):
            found = [
                {
                    "text": documents[i],
                    "cosine": round(float(scores[query, i]), 4),
                    "relevant": bool(relevance[query, i]),
                }
                for i in first
            ]
            lines.append(json.dumps({"query": texts[query], "documents": found}, ensure_ascii=False) + "\n")
        write_atomically(folder / "retrieval.jsonl", "".join(lines).encode())
