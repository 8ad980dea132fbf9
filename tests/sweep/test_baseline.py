"""Baselines of a sweep: full fine-tuning, once per learning rate and seed."""

import itertools

import pytest

from lora_jax.commands.composition import compose_run
from lora_jax.config import RunConfig
from lora_jax.sweep.baseline import Overrides, baselines


def settings(overrides: Overrides) -> RunConfig:
    return compose_run(*overrides)


def baselines_of(*swept: str, shared: tuple[str, ...] = ()) -> list[set[str]]:
    """Returns the baselines of the sweep over ``key=value,value`` ..., each as a set of overrides."""
    axes = [[f"{item.partition('=')[0]}={value}" for value in item.partition("=")[2].split(",")] for item in swept]
    points = [(*shared, *chosen) for chosen in itertools.product(*axes)]
    return [set(overrides) for overrides in baselines([(point, settings(point)) for point in points], settings)]


def test_ranks_share_a_baseline():
    assert baselines_of("rank=4,8", "alpha=8,16", "targets=qv,all", "method.dropout=0,0.1") == [{"method=full"}]


def test_an_explicit_learning_rate_is_scaled_by_a_sixth():
    (full,) = baselines_of("rank=4,8", shared=("lr=6e-3",))
    assert full == {"lr=0.001", "method=full"} and settings(tuple(full)).lr == 1e-3
    assert baselines_of("rank=4,8", "lr=6e-3,3e-3") == [{"lr=0.001", "method=full"}, {"lr=0.0005", "method=full"}]
    (full,) = baselines_of("rank=4")
    assert settings(tuple(full)).lr == 5e-4


def test_the_ratio_follows_the_methods_learning_rates():
    """With method.lr=5e-3 for LoRA and 5e-4 for full fine-tuning, the ratio is 1/10."""
    (full,) = baselines_of("rank=4", shared=("method=lora", "method.lr=5e-3", "lr=6e-3"))
    assert full == {"lr=0.0006", "method=full"}


def test_the_baseline_of_a_quantised_base_is_not_quantised():
    assert baselines_of("rank=4,8", shared=("base_storage=nf4",)) == [{"base_storage=auto", "method=full"}]
    assert baselines_of("base_storage=auto,int8,nf4") == [{"base_storage=auto", "method=full"}]
    assert baselines_of("base_storage=bf16", "rank=4") == [{"base_storage=bf16", "method=full"}]


def test_shared_settings_have_their_own_baselines():
    overrides = baselines_of("rank=4,8", "seed=0,1", "optim=adamw,sgd", shared=("optim.weight_decay=0.1",))
    shared = {"method=full", "optim.weight_decay=0.1"}
    assert overrides == [shared | {f"seed={s}", f"optim={o}"} for s in (0, 1) for o in ("adamw", "sgd")]


def test_no_baseline_if_present_or_disabled():
    assert baselines_of("rank=4,8", shared=("+baseline=none",)) == []
    assert baselines_of("method=lora,full", "rank=4,8") == []
    assert baselines_of("seed=0,1", shared=("method=full",)) == []


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        (("rank=4",), True),
        (("alpha=3", "targets=qv"), True),
        (("lr=1e-3",), False),
        (("seed=1",), False),
        (("steps=9",), False),
        (("optim.weight_decay=0.1",), False),
    ],
)
def test_full_fine_tuning_ignores_settings_of_lora(change, equal):
    plain, changed = settings(("method=full",)), settings(("method=full", *change))
    assert (plain.identity() == changed.identity()) is equal
    assert settings(()).identity() != settings(change).identity()
