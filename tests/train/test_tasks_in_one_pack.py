"""Runs of different tasks in one pack: each trains and is scored as it is alone."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.packed import QUICK

from lora_jax.config.point import Point
from lora_jax.data.encoding import TaskTokens
from lora_jax.data.task import Task, TaskData
from lora_jax.data.tokens import Encoded
from lora_jax.evaluation import pack_evaluators
from lora_jax.evaluation.scoring import score_runs
from lora_jax.metrics import Scoring
from lora_jax.sweep.choices import Choice
from lora_jax.sweep.plan import plan
from lora_jax.train.compile import compile_pack
from lora_jax.train.pack import initialise, make_pack, packed_step, shape_pack, unstack_run
from lora_jax.train.setup import Setup, group_by_task
from lora_jax.weights import load
from lora_jax.weights.fingerprint import hash_backbone

TASKS = {"cola": 2, "mnli": 3, "banking77": 7}  # labels
METRICS = Scoring(("accuracy", "loss", "f1"), "accuracy", "accuracy")


def encoded(task: str, seed: int, count: int, *, types: bool) -> Encoded:
    """Random texts, whose lengths depend on the task and whose first token tells the label."""
    rng = np.random.default_rng([seed, TASKS[task]])
    lengths = rng.integers(3, 4 + TASKS[task], count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = rng.integers(0, TASKS[task], count).astype(np.int32)
    tokens = rng.integers(10, 101, lengths.sum()).astype(np.int32)
    tokens[offsets[:-1]] = labels + 1
    places = np.arange(len(tokens)) - np.repeat(offsets[:-1], lengths)
    return Encoded(tokens, offsets, labels, 12, types=(places > 2).astype(np.int32) if types else None)


@pytest.fixture(scope="module")
def setups(base):
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), base)

    def setup(task: str) -> Setup:
        with jax.enable_x64(True):
            model = jax.tree.map(jnp.asarray, wide)
            loaded = load.Base(model, None, "made up", "", 1, SimpleNamespace(eos=()), {}, hash_backbone(model))
            loaded = load.with_labels(loaded, TASKS[task])
        splits = {
            name: encoded(task, seed, count, types=task == "mnli")
            for seed, (name, count) in enumerate({"train": 60, "valid": 20, "test": 30 + TASKS[task]}.items())
        }
        data = TaskData(tuple(map(str, range(TASKS[task]))), {})
        row = Task(task, "classification", ("scores",), METRICS.metrics, "accuracy", "accuracy", lambda _: data)
        return Setup(loaded, row, data, TaskTokens(data, {}, splits, (8, 12)))

    return {task: setup(task) for task in TASKS}


@pytest.fixture(scope="module")
def runs(configure):
    common = {"dtype": "float64", "batch": 8, "steps": 20, "lr": 3e-3, "eval_batch": 16, "task__buckets": None}
    return [
        configure(task__name=task, rank=rank, seed=seed, **common)
        for seed, (task, rank) in enumerate([("cola", 2), ("banking77", 4), ("mnli", 2), ("cola", 4)])
    ]


def trained(setups, runs, steps=4):
    points = [Point(str(i), Path(), run) for i, run in enumerate(runs)]
    pack = make_pack([setups[run.task.name] for run in runs], points)
    step, losses, programs = packed_step(pack.program), [], {}
    for i in range(steps):
        batch = jax.device_put(pack.batches[i])
        arguments = (pack.base, pack.state, pack.constants, pack.hyper, batch)
        if (length := batch.tokens.shape[-1]) not in programs:
            programs[length] = step.lower(*arguments).compile(QUICK)
        pack.state, metrics = programs[length](*arguments)
        losses.append(metrics.loss)
    return pack, np.array(losses)


def scores(pack):
    evaluators = pack_evaluators(pack)
    compiled = compile_pack(pack, evaluators)
    return [evaluated(pack, evaluators, compiled, split) for split in ("valid", "test")]


def evaluated(pack, evaluators, compiled, split="test"):
    display = SimpleNamespace(stage=lambda _: None)
    training = SimpleNamespace(pack=pack, compiled=compiled, display=display)
    return score_runs(training, evaluators, [METRICS] * len(pack.points), split, pack.state.params)


def test_a_run_trains_and_is_scored_as_it_is_alone(setups, runs):
    with jax.enable_x64(True):
        together, losses = trained(setups, runs)
        packed = scores(together)
        for i, run in enumerate(runs[:2]):
            alone, expected = trained(setups, [run])
            np.testing.assert_allclose(losses[:, i], expected[:, 0], rtol=1e-9)
            params = unstack_run(together.state.params, i, together.inits[i].params)
            single = unstack_run(alone.state.params, 0, alone.inits[0].params)
            assert params["head/bias"].value.shape == (TASKS[run.task.name],)
            for path in single:
                for actual, leaf in zip(*map(jax.tree.leaves, (params[path], single[path])), strict=True):
                    np.testing.assert_allclose(actual, leaf, rtol=0, atol=1e-9 * max(np.abs(leaf).max(), 1e-3))
            for split, alone_split in zip(packed, scores(alone), strict=True):
                assert split[i].metrics == pytest.approx(alone_split[0].metrics, rel=1e-9)
                assert len(split[i].predictions["scores"].labels) == len(alone_split[0].predictions["scores"].labels)


def test_one_length_for_all_batches_changes_nothing_but_the_padding(setups, runs):
    points = [Point(str(i), Path(), run) for i, run in enumerate(runs[:2])]
    packs = []
    with jax.enable_x64(True):
        for one_length in (False, True):
            pack = shape_pack([setups[run.task.name] for run in runs[:2]], points, one_length)
            initialise(pack)
            evaluators = pack_evaluators(pack, one_length)
            compiled = compile_pack(pack, evaluators)
            for i in range(4):
                batch = jax.device_put(pack.batches[i])
                step = compiled.steps[batch.tokens.shape[-1]]
                pack.state, _ = step(pack.base, pack.state, pack.constants, pack.hyper, batch)
            packs.append((pack, evaluators, compiled))
        assert [pack.batches.lengths() for pack, _, _ in packs] == [(8, 12), (12,)]
        assert len(packs[1][2].evaluation) == 1 < len(packs[0][2].evaluation)
        for leaf, expected in zip(*(jax.tree.leaves(pack.state.params) for pack, _, _ in packs), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-9 * max(np.abs(expected).max(), 1e-3))
        one, every = (evaluated(*each) for each in reversed(packs))
        for run, expected in zip(one, every, strict=True):
            assert run.metrics == pytest.approx(expected.metrics, rel=1e-9)


def test_outputs_that_a_task_lacks_stay_zero(setups, runs):
    with jax.enable_x64(True):
        pack, _ = trained(setups, runs)
        for i, run in enumerate(runs):
            kernel = pack.state.params["head/kernel"].value[i]
            assert not kernel[:, TASKS[run.task.name] :].any() and kernel[:, : TASKS[run.task.name]].all()


def test_runs_see_their_own_examples_padded_to_the_longest(setups, runs):
    pack, _ = trained(setups, runs, steps=0)
    assert group_by_task(runs) == [[0, 3], [1], [2]]
    assert pack.batches.steps_per_epoch == [7] * 4
    for step in (0, 5, 30):
        batch = pack.batches[step]
        assert batch.tokens.shape == (4, 8, pack.batches.length_at(step))
        for i, run in enumerate(runs):
            alone = setups[run.task.name].train_batches(run, (run.seed,))[step]
            width = alone.tokens.shape[-1]
            np.testing.assert_array_equal(batch.tokens[i, :, :width], alone.tokens[0])
            np.testing.assert_array_equal(batch.labels[i], alone.labels[0])
            assert not batch.mask[i, :, width:].any()
            np.testing.assert_array_equal(
                batch.types[i, :, :width], np.zeros((8, width)) if alone.types is None else alone.types[0]
            )


def test_a_run_with_smoothing_trains_on_another_loss_and_is_validated_on_the_same(setups, runs):
    """Only the labels that a task has are smoothed, so a run in a pack of two tasks has the losses of the run alone."""
    smoothed = [run.model_copy(update={"label_smoothing": 0.2}) for run in runs[:2]]
    with jax.enable_x64(True):
        _, losses = trained(setups, smoothed, steps=2)
        alone = [trained(setups, [run], steps=2) for run in smoothed]
        _, plain = trained(setups, runs[:1], steps=2)
        np.testing.assert_allclose(losses, np.concatenate([losses for _, losses in alone], 1), rtol=1e-9)
        assert (losses[:, 0] != plain[:, 0]).all()
        valid, _ = scores(alone[0][0])
        predictions = valid[0].predictions["scores"]
        logs = jax.nn.log_softmax(predictions.logits)
        expected = -logs[np.arange(len(logs)), predictions.labels].mean()
        assert valid[0].metrics["loss"] == pytest.approx(float(expected), rel=1e-9)


class Costs:
    """Every run costs the same; texts of banking77 are much longer than the others'."""

    room = 10**9

    def steps(self, point):
        return 10

    def work(self, points):
        return 1.0

    def length(self, points):
        return 90 if any(point.config.task.name == "banking77" for point in points) else 30

    def predict(self, points):
        return len(points), True

    def tokens(self, points):
        return len(points)

    def choose(self, points):
        return Choice("all", "default", "default", 0.0, 0.0)


def names(packs):
    return sorted(sorted({point.config.task.name for point in pack.points}) for pack in packs)


def test_tasks_of_one_objective_share_a_pack_unless_one_is_much_longer(runs):
    points = [Point(str(i), Path(str(i)), run) for i, run in enumerate(runs)]
    assert names(plan(points, Costs())) == [["banking77"], ["cola", "mnli"]]


@pytest.mark.parametrize("changes", [{"dropout": 0.1}, {"optim": "adafactor"}])
def test_tasks_do_not_share_a_pack_where_padding_would_change_a_run(configure, changes):
    points = [Point(task, Path(task), configure(task__name=task, **changes)) for task in ("cola", "mnli")]
    assert names(plan(points, Costs())) == [["cola"], ["mnli"]]


def test_regression_and_classification_do_not_share_a_pack(configure):
    points = [Point(task, Path(task), configure(task__name=task)) for task in ("cola", "stsb")]
    assert names(plan(points, Costs())) == [["cola"], ["stsb"]]


def test_runs_of_one_task_have_no_mask_of_outputs(setups, runs):
    assert "head/mask" not in trained(setups, [runs[0], runs[3]], steps=0)[0].constants
    assert "head/mask" in trained(setups, runs[:2], steps=0)[0].constants


def test_shapes_are_traced_once_for_runs_that_differ_in_rate_alpha_and_seed(setups, configure):
    common = {"task__name": "cola", "dtype": "float64"}
    changes = [{"rank": 3}, {"rank": 3, "lr": 1e-2, "seed": 5, "alpha": 7}, {"rank": 2}, {"rank": 3, "targets": "q"}]
    points = [Point(str(i), Path(), configure(**common, **change)) for i, change in enumerate(changes)]
    first, same, *others = shape_pack([setups["cola"]] * 4, points).inits
    assert same is first
    assert all(jax.tree.map(np.shape, other) != jax.tree.map(np.shape, first) for other in others)
