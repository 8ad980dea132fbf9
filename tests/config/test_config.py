"""Settings: what is refused, and in which words; what is data and what is settings."""

import pytest

from lora_jax.config import RunConfig, parse
from lora_jax.errors import UserError


def settings(configure, *, without=(), **changes):
    """conf/run.yaml as a mapping, changed; keys as ``optim__b1``."""
    values = configure(changes.get("method__name", "lora")).model_dump()
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        (values[group] if group else values)[name] = value
    for key in without:
        group, _, name = key.rpartition("__")
        del (values[group] if group else values)[name]
    return values


# key, value, what the message must hold beside them
BAD = [
    ("rank", 0, "greater than 0"),
    ("rank", -4, "greater than 0"),
    ("rank", 2.5, "integer"),
    ("rank", "eight", "integer"),
    ("alpha", 0, "above 0"),
    ("alpha", -1.0, "above 0"),
    ("alpha", "2x", "a multiple of the rank such as '2r'"),
    ("alpha", "r", "a multiple of the rank such as '2r'"),
    ("alpha", "0r", "a multiple of the rank such as '2r'"),
    ("targets", "", "at least 1 character"),
    ("lr", 0, "greater than 0"),
    ("lr", -1e-3, "greater than 0"),
    ("lr", float("inf"), "finite"),
    ("lr", float("nan"), "finite"),
    ("lr", "fast", "number"),
    ("seed", -1, "greater than or equal to 0"),
    ("seed", 2**31, "less than 2147483648"),
    ("steps", 0, "greater than 0"),
    ("epochs", 0, "greater than 0"),
    ("dropout", 1.0, "less than 1"),
    ("dropout", -0.1, "greater than or equal to 0"),
    ("label_smoothing", 1.0, "less than 1"),
    ("batch", 0, "greater than 0"),
    ("eval_batch", 0, "greater than 0"),
    ("dtype", "float16", "'float32', 'bfloat16' or 'float64'"),
    ("log_every", 0, "greater than 0"),
    ("checkpoint_every", 0, "greater than 0"),
    ("pack", 0, "greater than 0"),
    ("baseline", "lora", "'full' or 'none'"),
    ("optim__name", "adam", "'adamw', 'sgd', 'lion' or 'adafactor'"),
    ("optim__b1", 1.0, "less than 1"),
    ("optim__b2", 1.5, "less than 1"),
    ("optim__eps", 0, "greater than 0"),
    ("optim__weight_decay", -0.1, "greater than or equal to 0"),
    ("optim__clip_norm", 0, "greater than 0"),
    ("optim__warmup", 1.0, "less than 1"),
    ("optim__schedule", "exponential", "'linear', 'cosine' or 'constant'"),
    ("model__pool", "max", "'mean', 'first' or 'last'"),
    ("model__unroll", 0, "greater than 0"),
    ("task__buckets", ["long"], "integer"),
    ("task__steps", 0, "greater than 0"),
    ("method__lr", 0, "greater than 0"),
    ("method__scaling", "sqrt", "'lora', 'rslora', 'constant' or 'sqrt_rank'"),
    ("method__init", "zeros", "'uniform', 'gaussian', 'pissa' or 'lora_ga'"),
    ("method__dropout", 1, "less than 1"),
    ("wandb__mode", "on", "'auto', 'online', 'offline' or 'disabled'"),
]


@pytest.mark.parametrize("key, value, accepted", BAD, ids=[f"{key}={value}" for key, value, _ in BAD])
def test_a_bad_value_is_refused_by_key_value_and_what_would_do(configure, key, value, accepted):
    with pytest.raises(UserError) as error:
        parse(settings(configure, **{key: value}))
    lines = str(error.value).splitlines()
    assert lines and all(line.startswith(key.replace("__", ".")) for line in lines)
    assert repr(value).strip("[]") in lines[0] and accepted in " ".join(lines)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method__rank_pattern": {"mlp": 0}}, r"^method\.rank_pattern\.mlp=0: must be greater than 0$"),
        ({"method__alpha_pattern": {"q": -1}}, r"^method\.alpha_pattern\.q=-1: must be greater than 0$"),
        ({"rnak": 8}, r"^unknown setting rnak=8"),
        ({"method__rnak": 8}, r"^unknown setting method\.rnak=8"),
        ({"optim__lr": 8}, r"^unknown setting optim\.lr=8"),
        ({"method__name": "full", "method__dropout": 0.1}, r"^unknown setting method\.dropout=0\.1"),
        ({"without": ["lr"]}, r"^lr is missing$"),
        ({"without": ["model__source"]}, r"^model\.source is missing$"),
        ({"steps": 10, "epochs": 1.0}, r"^steps=10 and epochs=1\.0: give one of them$"),
    ],
)
def test_what_does_not_fit_together_is_refused(configure, changes, message):
    with pytest.raises(UserError, match=message):
        parse(settings(configure, **changes))


@pytest.mark.parametrize("name", ["lorra", "x" * 5000, {"a": "x" * 5000}], ids=["a word", "a long word", "a mapping"])
def test_an_unknown_method_is_refused_in_short_with_those_there_are(configure, name):
    settings = configure().model_dump()
    with pytest.raises(
        UserError, match=r"^method\.name=.*: must be one of 'lora', 'full', 'top_layers', 'layerwise', 'bitfit', "
    ) as error:
        parse(settings | {"method": {"name": name}})
    assert len(str(error.value)) < 1000


def test_every_bad_value_is_named_at_once(configure):
    with pytest.raises(UserError) as error:
        parse(settings(configure, rank=0, dropout=2, optim__b1=-1))
    assert sorted(line.split("=")[0] for line in str(error.value).splitlines()) == ["dropout", "optim.b1", "rank"]


def test_a_parsed_config_parses_to_itself(configure):
    run = configure(rank=4, alpha="1.5r", method__rank_pattern={"mlp": 16}, steps=7)
    assert parse(run.model_dump()) == run == RunConfig.model_validate_json(run.model_dump_json())


def test_a_default_is_the_same_setting_as_its_value(configure):
    settings = configure().model_dump(mode="json")
    del settings["alpha"]
    assert parse(settings).identity() == configure(alpha=16).identity()


@pytest.mark.parametrize("alpha, expected", [("2r", 16.0), ("0.5r", 4.0), ("1r", 8.0), (16, 16.0), (0.1, 0.1)])
def test_alpha_is_a_number_or_a_multiple_of_the_rank(configure, alpha, expected):
    assert configure(alpha=alpha).alpha_of(8) == expected


def test_length_is_in_steps_or_epochs_or_the_tasks_own(configure):
    assert configure(steps=7).steps_of(100) == 7
    assert configure(epochs=2.5).steps_of(100) == 250
    assert configure(epochs=0.001).steps_of(100) == 1
    assert configure().steps_of(100) == configure().task.steps


def test_runs_share_a_program_unless_a_setting_is_shape(configure):
    same = [
        {"rank": 32, "alpha": 4, "targets": "q", "lr": 1.0, "seed": 5, "steps": 3, "method__scaling": "rslora"},
        {"method__lr": 1.0, "method__init": "gaussian", "method__rank_pattern": {"q": 2}, "wandb__mode": "disabled"},
        {"optim__b1": 0.5, "optim__b2": 0.5, "optim__eps": 1e-3, "optim__weight_decay": 0.1, "optim__clip_norm": 9.0},
        {"optim__warmup": 0.5, "epochs": 2.0, "pack": 3, "baseline": "none", "resume": "x"},
    ]
    other = [
        {"batch": 8},
        {"dtype": "bfloat16"},
        {"dropout": 0.1},  # with dropout the program draws numbers
        {"method__dropout": 0.1},
        {"label_smoothing": 0.1},
        {"optim__schedule": "cosine"},
        {"model__pool": "first"},
        {"model__source": "elsewhere"},
        {"task__buckets": [16]},
        {"method": "full"},
        {"optim": "sgd"},
    ]
    settings = configure().static_settings()
    for changes in same:
        assert configure(**changes).static_settings() == settings, changes
    for changes in other:
        assert configure(**changes).static_settings() != settings, changes
    assert configure(dropout=0.1).static_settings() == configure(dropout=0.3, method__dropout=0.2).static_settings()
