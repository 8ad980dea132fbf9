"""Numbers that arrays cannot hold, booleans for numbers, and text that is no name: every setting refuses them."""

import numpy as np
import pytest

from lora_jax.config import parse
from lora_jax.errors import UserError

WHOLE = [
    *("rank", "seed", "steps", "batch", "eval_batch", "eval_every", "log_every", "checkpoint_every", "pack"),
    *("model__unroll", "task__steps", "task__eval_examples", "task__decode__new_tokens", "task__decode__beams"),
    "task__decode__no_repeat_ngram",
]
FRACTIONS = ["dropout", "label_smoothing", "method__dropout", "optim__b1", "optim__b2", "optim__warmup"]
REAL = ["lr", "method__lr", "epochs", "optim__eps", "optim__weight_decay", "optim__clip_norm", "alpha", *FRACTIONS]
TEXT = [
    *("model__name", "model__family", "model__source", "task__name", "task__data_dir", "task__select", "targets"),
    *("wandb__project", "resume"),
]


@pytest.fixture
def refusal(configure):
    """Returns the error of one changed setting."""

    def refusal(key, value):
        values = configure().model_dump()
        values["task"]["decode"] = {"new_tokens": 64}
        *groups, name = key.split("__")
        group = values
        for part in groups:
            group = group[part]
        group[name] = value
        with pytest.raises(UserError) as error:
            parse(values)
        assert str(error.value).startswith(key.replace("__", ".")) and len(str(error.value)) < 1000
        return str(error.value)

    return refusal


@pytest.mark.parametrize("key", [*WHOLE, *REAL, "task__decode__length_penalty"])
@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_is_no_number(refusal, key, value):
    assert f"={value}: must be a number" in refusal(key, value)


def test_a_boolean_is_no_number_in_patterns_and_lengths(refusal):
    assert "method.rank_pattern.q=True: must be a number" in refusal("method__rank_pattern", {"q": True})
    assert "method.alpha_pattern.q=True: must be a number" in refusal("method__alpha_pattern", {"q": True})
    assert "task.buckets.0=True: must be a number" in refusal("task__buckets", [True])


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", [2**31, 10**10, 10**400, 1e300])
def test_what_becomes_an_int32_fits_into_one(refusal, key, value):
    assert "must be" in refusal(key, value)


@pytest.mark.parametrize("key", REAL)
@pytest.mark.parametrize("value", [1e-320, 1e-40, 1e39, 10**400, 5e-324])
def test_what_becomes_a_float32_fits_into_one(refusal, key, value):
    assert "must be" in refusal(key, value)


@pytest.mark.parametrize("key", FRACTIONS)
def test_a_fraction_is_below_one_in_float32(configure, refusal, key):
    below = float(np.nextafter(np.float32(1), np.float32(0)))
    assert configure(**{key: below})
    assert "less than 1" in refusal(key, 1 - 1e-9)


@pytest.mark.parametrize(
    "alpha", ["1e-400r", "1e400r", f"0.{'0' * 400}1r", f"{'9' * 400}r", f"{'9' * 40}r", 1e31, 1e-31, "٣r"]
)
def test_alpha_and_its_ratio_to_the_rank_fit_into_a_float32(refusal, alpha):
    assert "or a multiple of the rank" in (message := refusal("alpha", alpha)) or "between 1e-30 and 1e+30" in message


@pytest.mark.parametrize(
    "pattern", [{"q": 1e-40}, {"q": 1e39}, {"q": 1e31}, {"": 4.0}, {"q\0": 4.0}, {"q" * 5000: 4.0}]
)
def test_alphas_of_patterns_too(refusal, pattern):
    assert ": must " in refusal("method__alpha_pattern", pattern)


@pytest.mark.parametrize("pattern", [{"q": 2**31}, {"q": 10**400}, {"": 4}, {"q\n": 4}])
def test_ranks_of_patterns_too(refusal, pattern):
    assert ": must " in refusal("method__rank_pattern", pattern)


@pytest.mark.parametrize(
    "lengths", [[], [16, 16], [64, 16], list(range(1, 40)), [2**20 + 1], [0], [-1], [16.5], "16", {"16": 1}, 16]
)
def test_padded_lengths_are_few_and_increase(refusal, lengths):
    assert ": must " in refusal("task__buckets", lengths)


@pytest.mark.parametrize("key", TEXT)
@pytest.mark.parametrize("value", ["", "a\0b", "a\nb", "a\x1b[31mb", "a\u2028b", "\ud800", "x" * 4097, 7, True, ["a"]])
def test_text_is_one_short_line(refusal, key, value):
    assert ": must " in refusal(key, value)


def test_text_may_be_in_any_script(configure):
    source = "/home/zoë/模型 1/модель\u202fа"
    assert configure(model__source=source).model.source == source


def test_epochs_of_too_many_steps_are_refused(configure):
    with pytest.raises(UserError, match=r"epochs=1e\+09: must be less than 7642290"):
        configure(epochs=1e9).steps_of(281)
    assert configure(epochs=7e6).steps_of(281) == 281 * 7_000_000


@pytest.mark.parametrize("key, value", [("rank", "8"), ("rank", 8.0), ("lr", "1e-3"), ("lr", 1), ("alpha", 16)])
def test_numbers_may_be_written_in_any_way(configure, key, value):
    assert getattr(configure(**{key: value}), key) == float(value)


@pytest.mark.parametrize("name", ["a/b", "a:b", "a%b", "x" * 129])
def test_a_project_is_a_name_that_wandb_takes(refusal, name):
    assert ": must " in refusal("wandb__project", name)
