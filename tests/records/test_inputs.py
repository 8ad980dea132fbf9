"""Which settings determine a run's base and data."""

import pytest

from lora_jax.records.inputs import data_key, inputs_key

COLUMNS = ("kind", "text", "pair", "label", "messages", "id")
DATA = {"task__name", "task__data_dir", "task__validation", *(f"task__{key}" for key in COLUMNS)}


def test_a_run_and_its_record_have_the_same_key(configure):
    run = configure()
    assert inputs_key(run.model_dump(mode="json")) == inputs_key(run.model_dump())


@pytest.mark.parametrize(
    "changes",
    [
        {"model__source": "elsewhere"},
        {"model__family": "llama"},
        {"model__pool": "first"},
        {"task__name": "cola"},
        {"task__data_dir": "elsewhere"},
        *({f"task__{key}": "chat"} for key in COLUMNS),
        {"task__buckets": [16, 64]},
        {"task__eval_examples": 7},
        {"task__augment": ["flip"]},
        {"task__packing": True},
        {"task__validation": "test"},
        {"task__buckets": None, "task__max_length": 64},
        {"dtype": "bfloat16"},
        {"base_storage": "nf4"},
    ],
)
def test_what_determines_the_base_or_its_data_changes_the_key(configure, changes):
    run, other = configure().model_dump(mode="json"), configure(**changes).model_dump(mode="json")
    assert inputs_key(run) != inputs_key(other)
    assert (data_key(run) != data_key(other)) == (not DATA.isdisjoint(changes))


@pytest.mark.parametrize(
    "changes", [{"rank": 4}, {"method": "full"}, {"lr": 1.0}, {"model__unroll": 5}, {"task__buckets": [32]}]
)
def test_other_settings_do_not(configure, changes):
    assert inputs_key(configure().model_dump()) == inputs_key(configure(**changes).model_dump())


@pytest.mark.parametrize("config", [{}, {"model": None, "task": 7}, {"task": {"buckets": ["a", None]}}])
def test_a_record_may_lack_settings(config):
    assert hash(inputs_key(config)) and hash(data_key(config))


@pytest.mark.parametrize("setting", ["packing", "validation"])
def test_a_record_of_before_a_setting_existed_has_the_key_of_its_default(configure, setting):
    run = configure().model_dump(mode="json")
    earlier = {**run, "task": {key: value for key, value in run["task"].items() if key != setting}}
    assert inputs_key(earlier) == inputs_key(run) and data_key(earlier) == data_key(run)
