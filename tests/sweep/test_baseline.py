"""Full fine-tuning beside a sweep: once per learning rate and seed."""

import itertools

import pytest

from lora_jax.commands.composition import compose_run
from lora_jax.config import RunConfig
from lora_jax.sweep.baseline import Overrides, baselines, identity


def settings(overrides: Overrides) -> RunConfig:
    return compose_run(*overrides)


def called_for(*swept: str, shared: tuple[str, ...] = ()) -> list[set[str]]:
    """The baselines of the sweep over ``key=value,value`` ..., each as a set of overrides."""
    axes = [[f"{item.partition('=')[0]}={value}" for value in item.partition("=")[2].split(",")] for item in swept]
    points = [(*shared, *chosen) for chosen in itertools.product(*axes)]
    return [set(overrides) for overrides in baselines([(point, settings(point)) for point in points], settings)]


def test_once_and_not_once_per_rank():
    assert called_for("rank=4,8", "alpha=8,16", "targets=qv,all", "method.dropout=0,0.1") == [{"method=full"}]


def test_a_tenth_of_an_explicit_learning_rate():
    (full,) = called_for("rank=4,8", shared=("lr=1e-3",))
    assert full == {"lr=0.0001", "method=full"} and settings(tuple(full)).lr == 1e-4
    assert called_for("rank=4,8", "lr=1e-3,3e-3") == [{"lr=0.0001", "method=full"}, {"lr=0.0003", "method=full"}]
    (full,) = called_for("rank=4")
    assert settings(tuple(full)).lr == 3e-4


def test_a_ratio_of_the_users_own():
    """The methods' own rates set the ratio: LoRA's at 1e-2 is 1/30 for full fine-tuning's 3e-4."""
    (full,) = called_for("rank=4", shared=("method=lora", "method.lr=3e-3", "lr=6e-3"))
    assert full == {"lr=0.0006", "method=full"}


def test_full_fine_tuning_has_the_whole_base_where_lora_has_a_quantised_one():
    assert called_for("rank=4,8", shared=("base=nf4",)) == [{"base=auto", "method=full"}]
    assert called_for("base=auto,int8,nf4") == [{"base=auto", "method=full"}]
    assert called_for("base=bf16", "rank=4") == [{"base=bf16", "method=full"}]


def test_once_per_seed_and_whatever_both_methods_have():
    found = called_for("rank=4,8", "seed=0,1", "optim=adamw,sgd", shared=("optim.weight_decay=0.1",))
    shared = {"method=full", "optim.weight_decay=0.1"}
    assert found == [shared | {f"seed={s}", f"optim={o}"} for s in (0, 1) for o in ("adamw", "sgd")]


def test_none_where_it_is_asked_for_or_left_out():
    assert called_for("rank=4,8", shared=("+baseline=none",)) == []
    assert called_for("method=lora,full", "rank=4,8") == []
    assert called_for("seed=0,1", shared=("method=full",)) == []


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (("rank=4",), True),
        (("alpha=3", "targets=qv"), True),
        (("lr=1e-3",), False),
        (("seed=1",), False),
        (("steps=9",), False),
        (("optim.weight_decay=0.1",), False),
    ],
)
def test_full_fine_tuning_is_the_same_whatever_is_loras(change, same):
    plain, changed = settings(("method=full",)), settings(("method=full", *change))
    assert (identity(plain) == identity(changed)) is same
    assert identity(settings(())) != identity(settings(change))
