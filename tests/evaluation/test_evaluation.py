"""Evaluators: what they compute of a pack, which metrics they allow, and a sweep that chooses its metrics."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.command_line import CommandLine, read, records
from tokenizers import Tokenizer

from lora_jax.data.encoding import TaskTokens, encode_task
from lora_jax.data.examples import Examples
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tasks import TASKS, scoring_of
from lora_jax.data.tokens import IGNORED, Encoded
from lora_jax.errors import UserError
from lora_jax.evaluation import EVALUATORS, check_metrics
from lora_jax.evaluation.generation import GenerationEvaluator
from lora_jax.evaluation.scores import ScoresEvaluator
from lora_jax.metrics import score
from lora_jax.models import bert
from lora_jax.models.heads import Classifier
from lora_jax.models.options import ComputeOptions
from lora_jax.train.objective import OBJECTIVES, Likelihoods, TaggedTokens, batch_loss
from lora_jax.train.step import outputs_of
from lora_jax.weights.load import load_base


def compiled(evaluator, params, constants):
    return {key: lower().compile() for key, lower in evaluator.lower(params, constants).items()}


def part_of(texts: Encoded, examples: int) -> Encoded:
    """The first examples."""
    end = texts.offsets[examples]
    return dataclasses.replace(
        texts, tokens=texts.tokens[:end], offsets=texts.offsets[: examples + 1], labels=texts.labels[:examples]
    )


# ---- scores


def test_scores_are_those_of_each_run_alone_in_the_order_of_the_examples(base, configure, pack_of, texts):
    runs = [configure(rank=rank, batch=16, steps=3, eval_batch=32, task__buckets=(8, 12)) for rank in (2, 4)]
    pack = pack_of(base, runs, buckets=(8, 12)).train(base, 3)
    data = TaskData(tuple("abcdefg"), {})
    tokens = TaskTokens(data, {}, {"train": texts, "valid": part_of(texts, 50), "test": texts}, (12,))
    evaluator = ScoresEvaluator(pack.program, SimpleNamespace(model=base), runs[0], tokens)
    programs = compiled(evaluator, pack.state.params, pack.constants)
    # Both splits have batches of 32 in two lengths, and share their programs.
    assert sorted(key[1][0] for key in programs) == [(32, 8), (32, 12)]
    assert evaluator.describe("valid", 2) == "scoring 50 validation examples"
    for split in evaluator.splits:
        predictions = evaluator.evaluate(split, programs, pack.state.params, pack.constants)
        encoded = tokens.encoded[split]
        batch = encoded.padded(np.arange(len(encoded)), 12, 0)
        outputs = jax.jit(functools.partial(outputs_of, pack.program))
        for i, found in enumerate(predictions):
            assert found.fields == evaluator.fields(OBJECTIVES["classification"])
            logits = outputs(base, pack.params(i), pack.inits[i].constants, batch)
            np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
            figures = score(found, ["accuracy", "loss"])
            assert figures["accuracy"] == (np.argmax(logits, -1) == encoded.labels).mean()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_fill_the_fields_that_they_promise(name):
    objective, n = OBJECTIVES[name], 3
    likelihoods = Likelihoods(np.ones(n, np.float32), np.ones(n, int), np.ones(n, int))
    outputs = {
        "classification": np.zeros((n, 2), np.float32),
        "image_classification": np.zeros((n, 2), np.float32),
        "regression": np.zeros(n, np.float32),
        "generation": likelihoods,
        "chat": likelihoods,
        "similarity": np.ones((n, 2, 4), np.float32),
        "contrastive": np.ones((n, 2, 4), np.float32),
        "contrastive_triplets": np.ones((n, 3, 4), np.float32),
        "token_classification": TaggedTokens(likelihoods, np.array([[IGNORED, 1], [0, IGNORED], [1, IGNORED]])),
        "masked_lm": likelihoods,
    }[name]
    found = objective.predictions(outputs, np.zeros(n, int), ("a", "b"))
    assert found.fields == objective.fields
    if name == "token_classification":
        assert (found.tags, found.predicted_tags) == ([["a"]] * 3, [["b"], ["a"], ["b"]])
    with_labels = {"classification": 2, "image_classification": 2, "regression": 1, "token_classification": 2}
    assert objective.head_outputs(("a", "b")) == with_labels.get(name)


def test_regression_learns_numbers_of_pairs_by_their_types():
    """The loss is the mean squared error, and token types reach the backbone."""
    config = bert.BertConfig(20, 8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    rng = np.random.default_rng(0)
    model = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32),
        jax.eval_shape(lambda: Classifier(bert.Bert(config), 8, 1)),
    )
    labels = np.array([0.5, -2.0], np.float32)
    types = np.array([0, 0, 1, 0, 1], np.int32)
    encoded = Encoded(np.arange(1, 6, dtype=np.int32), np.array([0, 3, 5]), labels, 8, types=types)
    batch = encoded.padded(np.arange(2), 4, 0)
    assert batch.types.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]] and batch.labels.dtype == np.float32
    objective = OBJECTIVES["regression"]
    values = np.asarray(objective.outputs(model, batch, options=ComputeOptions()))
    expected = model(batch.tokens, batch.mask, types=batch.types)[:, 0]
    np.testing.assert_array_equal(values, expected)
    assert not np.allclose(
        values, objective.outputs(model, batch._replace(types=None), options=ComputeOptions()), atol=1e-5
    )
    found = objective.predictions(values, labels, ())
    assert score(found, ["mean_squared_error", "bleu"]) == {
        "mean_squared_error": pytest.approx(
            float(batch_loss(objective, model, batch, options=ComputeOptions())), rel=1e-6
        )
    }


# ---- generation


@pytest.fixture(scope="module")
def decoder(tiny_decoder):
    return load_base(str(tiny_decoder), "llama", head="causal")


def generating(configure, decoder, **changes):
    """A run of E2E on three prompts, and their tokens."""
    task = {"name": "e2e", "buckets": (16,), "steps": 2, "decode": {"new_tokens": 5}}
    run = configure(task=task | changes, eval_batch=2)
    examples = Examples(["b", "a", "b", "cc"], ["1", "2", "3", "4"])
    data = TaskData((), {"train": examples, "valid": examples, "test": examples})
    return run, encode_task(TASKS["e2e"], data, decoder, run.task)


def test_texts_of_every_prompt_are_generated_and_kept(configure, decoder, pack_of, tmp_path):
    run, tokens = generating(configure, decoder)
    assert [len(tokens.encoded[split]) for split in ("train", "valid", "test")] == [4, 3, 3]
    pack = pack_of(decoder.model, [run, run])
    evaluator = GenerationEvaluator(pack.program, decoder, run, tokens)
    assert evaluator.splits == ("test",) and evaluator.describe("test", 2) == "generating 2 x 3 test texts"
    programs = compiled(evaluator, pack.state.params, pack.constants)
    first, second = evaluator.evaluate("test", programs, pack.state.params, pack.constants)
    assert first.fields == evaluator.fields(OBJECTIVES["generation"])
    assert first.texts == second.texts and len(first.texts) == 3
    assert first.references == [["1", "3"], ["2"], ["4"]]
    evaluator.save(tmp_path, first)
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["b", "a", "cc"]
    assert [line["text"] for line in lines] == first.texts


def test_a_generation_without_settings_is_refused_before_it_is_compiled(configure, decoder, pack_of):
    run, tokens = generating(configure, decoder, decode=None)
    program = SimpleNamespace()
    with pytest.raises(UserError, match=r"task\.decode is missing, and task=e2e generates texts"):
        GenerationEvaluator(program, decoder, run, tokens)


# ---- which metrics a run may have


def e2e(configure, **changes):
    return configure(task={"name": "e2e", "buckets": (16,), "steps": 2, **changes})


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_metrics_that_its_evaluators_can_compute(configure, name):
    task = TASKS[name]
    check_metrics(configure(task={"name": name, "buckets": (16,), "steps": 2}))
    assert task.name == name and set(task.evaluators) <= set(EVALUATORS) and task.objective in OBJECTIVES


def test_metrics_and_selection_can_be_chosen(configure):
    run = configure(task__metrics=["loss", "matthews"], task__select="matthews")
    check_metrics(run)
    scoring = scoring_of(run.task)
    # The headline stays, and is recorded whatever else is.
    assert scoring.metrics == ("loss", "matthews", "accuracy")
    assert (scoring.metric, scoring.select) == ("accuracy", "matthews")
    assert run.program_key() == configure().program_key()


def test_metrics_that_a_task_cannot_have_are_refused(configure):
    for changes, message in {
        (("task__metrics", ("accuracy", "acuracy")),): (
            r"task\.metrics=\['accuracy', 'acuracy'\]: 'acuracy' is not a metric; use accuracy, loss"
        ),
        (("task__select", "f2"),): r"task\.select='f2': not a metric; use accuracy, loss",
        (("task__metrics", ("bleu",)),): (
            r"task\.metrics=\['bleu'\]: 'bleu' cannot be computed for task=banking77; use accuracy, loss, perplexity"
        ),
    }.items():
        with pytest.raises(UserError, match=message):
            check_metrics(configure(**dict(changes)))
    with pytest.raises(
        UserError, match=r"task\.select='bleu': cannot be computed for task=e2e on the validation split"
    ):
        check_metrics(e2e(configure, select="bleu"))
    check_metrics(e2e(configure, select="token_accuracy", metrics=["perplexity"]))


def test_tokens_of_pairs_have_types_only_if_the_model_reads_them(configure, tiny_model):
    task = Task(
        "pairs", "regression", ("scores",), ("mean_squared_error",), *["mean_squared_error"] * 2, lambda _: data
    )
    examples = Examples(["how are you"], np.array([1.5], np.float32), ["fine"])
    data = TaskData((), dict.fromkeys(("train", "valid", "test"), examples))
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    for type_vocab_size, reads in ((2, True), (1, False), (0, False)):
        backbone = SimpleNamespace(config=SimpleNamespace(type_vocab_size=type_vocab_size))
        base = SimpleNamespace(model=SimpleNamespace(backbone=backbone), tokenizer=tokenizer)
        encoded = encode_task(task, data, base, configure(task__buckets=(16,)).task).encoded["train"]
        assert (encoded.types is not None) == reads
        assert encoded.labels.dtype == np.float32
        if reads:  # [CLS] how are you [SEP] fine [SEP]
            assert encoded.types.tolist() == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.smoke
@pytest.mark.slow
def test_a_sweep_selects_by_the_metric_that_is_asked_for(command: CommandLine, tmp_path):
    done = command.sweep(
        tmp_path / "sweep", "rank=4", "baseline=none", "eval_every=2", "task.select=matthews", "task.metrics=[matthews]"
    )
    assert done.returncode == 0, done.stderr
    summary, lines = read(tmp_path / "sweep/rank=4/summary.json"), records(tmp_path / "sweep/rank=4")
    scored = [record["valid/matthews"] for record in lines if "valid/matthews" in record]
    assert summary["valid_best"]["matthews"] == max(scored) and len(scored) == 2
    assert set(summary["test"]) == {"matthews", "accuracy"}
    assert (summary["metric"], summary["select"]) == ("accuracy", "matthews")
    refused = command.sweep(tmp_path / "other", "rank=4", "task.select=bleu")
    assert refused.returncode != 0 and "task.select='bleu'" in refused.stderr
    assert not (tmp_path / "other").exists()
