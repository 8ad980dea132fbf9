"""Token classification and masked language modelling: losses, predictions, and packs of both."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.token_tasks import write_masked_model, write_wnut17

import lora_jax as lj
from lora_jax.data.tokens import IGNORED, Batch
from lora_jax.errors import UserError
from lora_jax.evaluation.evaluator import pack_evaluators
from lora_jax.metrics import METRICS, Predictions, score
from lora_jax.metrics.tokens import span_f1
from lora_jax.models.options import ComputeOptions
from lora_jax.train.objective import OBJECTIVES, batch_loss
from lora_jax.train.pack import make_pack, packed_step
from lora_jax.train.setup import load_setup
from lora_jax.train.step import adapt, compute_options, loss_of, outputs_of

OPTIONS = ComputeOptions()


@pytest.fixture(scope="module")
def overrides(tiny_model, tmp_path_factory):
    """Settings of a small run of each task."""
    folder = tmp_path_factory.mktemp("token-tasks")
    common = ["dtype=float64", "batch=4", "eval_batch=4", "steps=3", "wandb.mode=disabled", "model.pool=mean"]
    words = f"task.data_dir={write_wnut17(folder / 'wnut17')}"
    masked = write_masked_model(folder / "masked", tiny_model)
    return {
        "wnut17": ["task=wnut17", words, f"model.source={tiny_model}", "task.buckets=[16,64]", *common],
        "banking77_mlm": [
            "task=banking77_mlm",
            f"model.source={masked}",
            "task.eval_examples=20",
            "task.buckets=[16,64]",
            *common,
        ],
    }


@pytest.fixture(autouse=True, scope="module")
def wide(tmp_path_factory):
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pack_of(overrides, tmp_path, *ranks_and_seeds):
    """A pack of runs, after its steps, and its losses [steps, runs]."""
    runs = [lj.compose_run(*overrides, f"rank={rank}", f"seed={seed}") for rank, seed in ranks_and_seeds]
    points = [lj.Point(f"{i}", tmp_path / f"{i}", run) for i, run in enumerate(runs)]
    pack = make_pack([load_setup(runs[0])] * len(runs), points)
    step, losses = packed_step(pack.program), []
    for i in range(int(pack.steps.max())):
        batch = jax.device_put(pack.batches[i])
        pack.state, metrics = step(pack.base, pack.state, pack.constants, pack.hyper, batch)
        losses.append(np.asarray(metrics.loss))
    return pack, np.array(losses)


def call(model, tokens, mask, options):
    return model(tokens, mask, options=options)


@pytest.fixture(scope="module", params=["wnut17", "banking77_mlm"])
def trained(request, overrides, tmp_path_factory):
    """The task, a pack of two runs after its steps, and their losses."""
    return request.param, *pack_of(overrides[request.param], tmp_path_factory.mktemp("pack"), (2, 0), (4, 1))


def test_packed_equals_alone(trained, overrides, tmp_path):
    task, _, together = trained
    alone = [pack_of(overrides[task], tmp_path, run)[1][:, 0] for run in ((2, 0), (4, 1))]
    np.testing.assert_allclose(together, np.stack(alone, 1), rtol=1e-9)
    assert len(np.unique(together)) == together.size and np.isfinite(together).all()


def test_the_evaluator_scores_every_text_as_the_model_does_alone(trained):
    task, pack, _ = trained
    (group,) = pack_evaluators(pack)
    evaluator = group.evaluators["scores"]
    programs = {key: lower().compile() for key, lower in evaluator.lower(pack.state.params, pack.constants).items()}
    setup = pack.setups[0]
    encoded, objective = setup.tokens.encoded["test"], OBJECTIVES[setup.task.objective]
    assert len({key[1][0][1] for key in programs}) > 1  # texts are padded to several lengths
    logits_of = jax.jit(functools.partial(call, options=compute_options(pack.program)))
    for i, found in enumerate(evaluator.evaluate("test", programs, pack.state.params, pack.constants)):
        params, constants = (
            jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (pack.state.params, pack.constants)
        )
        model = adapt(pack.program, pack.base, params, constants)
        assert found.fields == objective.fields
        true, predicted, losses, correct = [], [], [], []
        # All texts in one batch, longer than any that the evaluator pads to.
        batch = encoded.padded(np.arange(len(encoded)), 70, 0)
        all_logits = np.asarray(logits_of(model, batch.tokens, batch.mask))
        for example_labels, example_logits in zip(batch.labels, all_logits, strict=True):
            labelled = example_labels != IGNORED
            labels, logits = example_labels[labelled], example_logits[labelled]
            logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            losses.append(-logs[np.arange(len(labels)), labels].sum())
            correct.append((logits.argmax(-1) == labels).sum())
            if task == "wnut17":
                true.append([setup.data.labels[k] for k in labels])
                predicted.append([setup.data.labels[k] for k in logits.argmax(-1)])
        np.testing.assert_allclose(found.losses, losses, rtol=1e-9)
        assert found.correct.tolist() == correct and found.tokens.sum() > 20
        if task == "wnut17":
            assert (
                found.tags == true == [[setup.data.labels[k] for k in tags] for tags in setup.data.splits["test"].tags]
            )
            assert found.predicted_tags == predicted
            expected = span_f1(Predictions(tags=true, predicted_tags=predicted))
            assert score(found, METRICS)["span_f1"] == expected
        figures = score(found, METRICS)
        assert figures["loss"] == pytest.approx(np.sum(losses) / found.tokens.sum(), rel=1e-9)
        assert figures["token_accuracy"] == np.sum(correct) / found.tokens.sum()


def test_smoothing_changes_the_training_loss_alone(trained):
    """A tenth of the smoothed loss is the mean of -log p over all classes or tokens. Outputs to score are the same."""
    _, pack, _ = trained
    params, constants, hyper, batch = jax.tree.map(
        lambda leaf: leaf[0], (pack.state.params, pack.constants, pack.hyper, pack.batches[0])
    )
    smoothed = dataclasses.replace(pack.program, label_smoothing=0.1)

    @functools.partial(jax.jit, static_argnums=0)
    def computed(program):
        loss = loss_of(program, pack.base, params, constants, hyper, batch, 0)
        return loss, outputs_of(program, pack.base, params, constants, batch)

    (loss, outputs), (smoothed_loss, smoothed_outputs) = computed(pack.program), computed(smoothed)
    jax.tree.map(np.testing.assert_array_equal, smoothed_outputs, outputs)
    model = adapt(pack.program, pack.base, params, constants)
    logits = jax.jit(functools.partial(call, options=compute_options(pack.program)))(model, batch.tokens, batch.mask)
    uniform = -np.asarray(jax.nn.log_softmax(logits))[batch.labels != IGNORED].mean()
    assert float(smoothed_loss) == pytest.approx(0.9 * float(loss) + 0.1 * uniform, rel=1e-9) != float(loss)


def test_the_loss_is_the_mean_over_the_labelled_tokens_of_the_batch(overrides):
    run = lj.compose_run(*overrides["wnut17"], "rank=2")
    model = load_setup(run).base.model
    rng = np.random.default_rng(0)
    kernel = model.head.kernel.get_value()
    model.head.kernel.set_value(jnp.asarray(rng.normal(size=kernel.shape), kernel.dtype))
    tokens, mask = rng.integers(1, 100, (2, 5)).astype(np.int32), np.ones((2, 5), bool)
    labels = np.array([[IGNORED, 3, IGNORED, 0, 1], [IGNORED, 12, IGNORED, IGNORED, IGNORED]], np.int32)
    objective = OBJECTIVES["token_classification"]
    loss_of = jax.jit(functools.partial(batch_loss, objective, options=OPTIONS))
    loss = loss_of(model, Batch(tokens, mask, labels))
    logs = np.asarray(jax.nn.log_softmax(jax.jit(functools.partial(call, options=OPTIONS))(model, tokens, mask)))
    expected = -np.mean([logs[0, 1, 3], logs[0, 3, 0], logs[0, 4, 1], logs[1, 1, 12]])
    assert float(loss) == pytest.approx(expected, rel=1e-6)  # four tokens, not two sentences
    none = Batch(tokens, mask, np.full_like(labels, IGNORED))
    assert loss_of(model, none) == 0


def test_a_model_without_a_masked_head_or_mask_token_is_refused(overrides, tiny_model):
    settings = [item for item in overrides["banking77_mlm"] if not item.startswith("model.source")]
    with pytest.raises(UserError, match=r"missing:\n  cls\.predictions"):
        load_setup(lj.compose_run(*settings, f"model.source={tiny_model}"))
    with pytest.raises(
        UserError, match=r"head='masked': model\.family='llama' carries .*; masked goes on bert, roberta"
    ):
        load_setup(lj.compose_run(*settings, "model=smollm2_135m"))


def test_outputs_of_an_ensemble_cannot_be_averaged(overrides, tmp_path):
    ensemble = ("method.factor_dropout=0.1", "method.ensemble=2")
    with pytest.raises(UserError, match=r"^method\.ensemble=2: must be 1 for task=wnut17, whose outputs cannot be"):
        pack_of([*overrides["wnut17"], *ensemble], tmp_path, (2, 0))
