"""Plans: which runs share a pack, and the order of packs."""

from pathlib import Path

import pytest

from lora_jax.config.point import Point
from lora_jax.sweep.choices import Choice
from lora_jax.sweep.plan import plan, separating_settings


class Costs:
    """Costs of a base of 20M parameters with LoRA of 40,000 per rank. A run takes 10 bytes plus its rank."""

    room = 10**9

    def steps(self, point):
        return point.config.steps or 100

    def work(self, points):
        largest_rank = max(point.config.rank for point in points)
        flops = 120 if points[0].config.method.name == "full" else 80 + 0.24 * largest_rank
        return flops * max(map(self.steps, points))

    def length(self, points):
        return 8

    def predict(self, points):
        return len(points) * (10 + max(point.config.rank for point in points)), True

    def tokens(self, points):
        return len(points) * 256 * max(map(self.steps, points))

    def choose(self, points):
        return Choice("all", "default", "default", 0.0, 0.0)


@pytest.fixture
def planned(configure):
    def planned(*settings, room=10**9, **shared):
        costs = Costs()
        costs.room = room
        runs = [configure(**shared, **run_settings) for run_settings in settings]
        packs = plan([Point(str(i), Path(str(i)), run) for i, run in enumerate(runs)], costs)
        assert [pack.index for pack in packs] == list(range(len(packs)))
        assert sorted(point.name for pack in packs for point in pack.points) == sorted(map(str, range(len(runs))))
        assert all(pack.bytes == costs.predict(pack.points)[0] for pack in packs)
        return [[(point.config.rank, point.config.steps) for point in pack.points] for pack in packs]

    return planned


def ranks(packs):
    return [[rank for rank, _ in pack] for pack in packs]


def test_ranks_share_unless_padding_would_cost_more_than_a_second_pack(planned):
    assert ranks(planned({"rank": 32}, {"rank": 4}, {"rank": 16}, {"rank": 8})) == [[4, 8, 16, 32]]
    assert ranks(planned({"rank": 1024}, {"rank": 1})) == [[1], [1024]]
    assert ranks(planned({"rank": 1024}, {"rank": 1}, {"rank": 1000}, {"rank": 4}, {"rank": 8})) == [
        [1, 4, 8],
        [1000, 1024],
    ]


def test_a_short_run_does_not_idle_beside_a_long_one(planned):
    assert planned({"steps": 20}, {"steps": 10}, {"steps": 1000}, rank=8) == [[(8, 10), (8, 20)], [(8, 1000)]]


def test_packs_are_as_few_as_fit_and_of_equal_size(planned):
    assert ranks(planned(*[{"seed": seed} for seed in range(7)], rank=8, room=18 * 3)) == [[8] * 2, [8] * 2, [8] * 3]
    # A pack with a small largest rank has less padding.
    assert ranks(planned(*[{"rank": rank} for rank in (64, 2, 2, 64)], room=150)) == [[2, 2], [64, 64]]
    assert ranks(planned({}, {"seed": 1}, rank=8, room=1)) == [
        [8],
        [8],
    ]  # single runs are planned even if they do not fit


def test_pack_limits_the_runs_of_a_pack(planned):
    assert ranks(planned(*[{"seed": seed} for seed in range(5)], rank=8, pack=2)) == [[8], [8] * 2, [8] * 2]
    assert ranks(planned({}, {"seed": 1}, rank=8, pack=1)) == [[8], [8]]


def test_cheap_packs_come_first_and_baselines_last(planned):
    packs = planned(
        {"steps": 900},
        {"method": "full", "steps": 10},
        {"steps": 10, "batch": 8},
        {"method": "full", "steps": 1},
        rank=8,
    )
    assert packs == [[(8, 10)], [(8, 900)], [(8, 1)], [(8, 10)]]


def test_an_optimizer_that_is_not_elementwise_packs_equal_ranks_only(planned):
    settings = [{"rank": 4}, {"rank": 8}, {"rank": 4, "seed": 1}]
    assert ranks(planned(*settings, optim="adafactor")) == [[4, 4], [8]]


def test_the_plan_says_which_settings_keep_packs_apart(configure):
    runs = [configure(rank=4), configure(rank=8), configure(rank=4, batch=16), configure("full", batch=16)]
    packs = plan([Point(str(i), Path(str(i)), run) for i, run in enumerate(runs)], Costs())
    assert [len(pack.points) for pack in packs] == [1, 2, 1]
    assert separating_settings(packs) == ["batch=16", "batch=32", ""]
