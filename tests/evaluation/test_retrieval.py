"""Retrieval with the runs of a pack: the rankings of each run alone, the metrics by hand, and the command line."""

import dataclasses
import json
import math
import operator

import jax
import numpy as np
import pytest
from helpers.command_line import CommandLine, read, records
from helpers.glue_files import write_glue

from lora_jax.config.point import Point
from lora_jax.data.encoding import encode_task
from lora_jax.data.examples import Corpus, Examples
from lora_jax.data.task import TaskData
from lora_jax.data.tasks import TASKS
from lora_jax.delta import graft
from lora_jax.evaluation.retrieval import RetrievalEvaluator
from lora_jax.metrics import Predictions, score
from lora_jax.train.objective import OBJECTIVES
from lora_jax.train.pack import make_pack
from lora_jax.train.setup import Setup
from lora_jax.weights.load import load_base

QUERIES = ["where is my card?", "close my account", "why was I charged?"]
DOCUMENTS = ["the card is lost", "a fee", "end it", "an account, please", "my card"]
RELEVANT = [(0, 4), (2, 3), (1,)]


@pytest.fixture(scope="module")
def base(tiny_model):
    return load_base(str(tiny_model), "bert", head="embedding")


@pytest.fixture(scope="module")
def pack(base, configure, tmp_path_factory):
    """Two runs of different rank, a few steps in, and the setup that they share."""
    task = TASKS["banking77_retrieval"]
    queries = Examples(QUERIES, np.arange(3, dtype=np.int32))
    train = Examples(QUERIES, np.arange(3, dtype=np.int32), [DOCUMENTS[first] for first, *_ in RELEVANT])
    corpus = Corpus(DOCUMENTS, RELEVANT)
    data = TaskData((), {"train": train, "valid": queries, "test": queries}, {"valid": corpus, "test": corpus})
    settings = {"name": task.name, "buckets": (8, 16), "steps": 4}
    runs = [configure(rank=rank, batch=3, lr=0.05, eval_batch=2, task=settings, seed=rank) for rank in (2, 4)]
    setup = Setup(base, task, data, encode_task(task, data, base, runs[0].task))
    points = [Point(f"rank={run.rank}", tmp_path_factory.mktemp("run"), run) for run in runs]
    return make_pack([setup, setup], points), setup, runs[0]


def test_documents_rank_by_the_cosines_of_each_run_alone(pack, base, tmp_path):
    packed, setup, run = pack
    params, constants = packed.state.params, packed.constants
    # B starts at zero, so that runs would rank alike.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(0), leaf.shape), params)
    evaluator = RetrievalEvaluator(packed.program, base, run, setup.tokens)
    compiled = {key: lower().compile() for key, lower in evaluator.lower(params, constants).items()}
    assert evaluator.describe("test", 2) == "ranking 5 documents for 3 test queries"
    found = evaluator.evaluate("test", compiled, params, constants)
    assert len(found) == 2 and not np.allclose(found[0].scores, found[1].scores, atol=1e-3)
    for i, predictions in enumerate(found):
        assert predictions.fields == evaluator.fields(OBJECTIVES["contrastive"])
        own = jax.tree.map(operator.itemgetter(i), (params, constants))
        model = graft(base.model, packed.program.method.materialise(*own))
        expected = embedded(model, base, QUERIES) @ embedded(model, base, DOCUMENTS).T
        np.testing.assert_allclose(predictions.scores, expected, atol=1e-5)
        assert predictions.relevance.tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]
    assert all(figure > 0 for figure in score(found[0], ["recall_at_10", "ndcg_at_10"]).values())


def embedded(model, base, texts):
    """One text at a time, without padding."""
    ids = [np.array([base.tokenizer.encode(text).ids]) for text in texts]
    return np.concatenate([model(tokens, np.ones_like(tokens, bool)) for tokens in ids])


def test_the_best_ten_documents_of_a_query_are_kept(pack, base, tmp_path):
    packed, setup, run = pack
    evaluator = RetrievalEvaluator(packed.program, base, run, setup.tokens)
    scores = np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [0.9, 0.5, 0.1, 0.5, 0.2], [0, 0.25, 0, 0, 0]])
    predictions = Predictions(scores=scores, relevance=setup.tokens.retrieval["test"].relevance)
    evaluator.save(tmp_path, predictions)
    lines = [json.loads(line) for line in (tmp_path / "retrieval.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == QUERIES
    assert [row["text"] for row in lines[1]["documents"]] == [DOCUMENTS[i] for i in (0, 1, 3, 4, 2)]
    assert lines[2]["documents"][0] == {"text": "a fee", "cosine": 0.25, "relevant": True}
    # Relevant documents at ranks 1 and 5, at 3 and 5, and at 1.
    ideal = 1 + 1 / math.log2(3)
    gains = (1 + 1 / math.log2(6)) / ideal, (1 / math.log2(4) + 1 / math.log2(6)) / ideal, 1
    figures = score(predictions, ["ndcg_at_10", "recall_at_1", "recall_at_10"])
    assert figures == pytest.approx({"ndcg_at_10": sum(gains) / 3, "recall_at_1": 1.5 / 3, "recall_at_10": 1})


def test_a_task_without_documents_is_refused(pack, base):
    packed, setup, run = pack
    tokens = dataclasses.replace(setup.tokens, retrieval={"test": setup.tokens.retrieval["test"]})
    with pytest.raises(ValueError, match="task=banking77_retrieval has no documents to search for valid"):
        RetrievalEvaluator(packed.program, base, run, tokens)


# ---- from the command line


@pytest.mark.slow
def test_a_sweep_of_retrieval_from_the_command_line(command: CommandLine, tmp_path):
    intents = ["fees", "lost", "rate"]
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "categories.json").write_text(json.dumps(intents))
    for name, word, count in (("train.csv", "Why", 30), ("test.csv", "How", 4)):
        rows = [f"{word} {intent} {i}?,{intent}\n" for intent in intents for i in range(count)]
        (folder / name).write_text("text,category\n" + "".join(rows))
    done = command.sweep(
        tmp_path / "sweep", "task=banking77_retrieval", f"task.data_dir={folder}", "rank=2,4", "baseline=none"
    )
    assert done.returncode == 0, done.stderr
    for rank in (2, 4):
        run = tmp_path / f"sweep/rank={rank}"
        summary = read(run / "summary.json")
        assert (summary["metric"], summary["select"], summary["head_parameters"]) == ("ndcg_at_10", "ndcg_at_10", 0)
        assert set(summary["test"]) == {"ndcg_at_10", "recall_at_1", "recall_at_10"}
        assert 0 < summary["test"]["recall_at_1"] <= 1 / 20 and summary["pack"]["runs"] == 2
        lines = [json.loads(line) for line in (run / "retrieval.jsonl").read_text().splitlines()]
        first = [line["documents"][0]["relevant"] for line in lines]
        assert len(lines) == 12 and np.mean(first) / 20 == pytest.approx(summary["test"]["recall_at_1"])
        assert any("valid/ndcg_at_10" in record for record in records(run))
        assert summary["tokens"] > 4 * 8 * 2 * 5  # of both texts


@pytest.mark.slow
@pytest.mark.parametrize("task", ["stsb_embedding", "nli_triplets"])
def test_pairs_and_triplets_from_the_command_line(command: CommandLine, tmp_path, task):
    if task == "stsb_embedding":
        rows = [(f"A {i} dog.", f"The {i % 7} dog.", f"{i % 6}.500"[:3]) for i in range(60)]
        rows = [(one, other, str(min(float(value), 5))) for one, other, value in rows]
        folder = write_glue("stsb", tmp_path / "raw", rows, rows[:12])
    else:
        labels = ("entailment", "neutral", "contradiction")
        rows = [(f"A dog {i}.", f"It {label} {i}.", label) for i in range(60) for label in labels]
        folder = write_glue("mnli", tmp_path / "raw", rows, rows[:12])
    done = command.sweep(tmp_path / "sweep", f"task={task}", f"task.data_dir={folder}", "rank=2", "baseline=none")
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    summary = read(run / "summary.json")
    assert set(summary["test"]) == set(TASKS[task].metrics) and summary["head_parameters"] == 0
    assert summary["metric"] == summary["select"] == TASKS[task].metric
