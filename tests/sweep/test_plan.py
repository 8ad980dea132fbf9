"""What shares a program, and what comes first."""

from pathlib import Path

import pytest

from lora_jax.config.point import Point
from lora_jax.sweep.plan import plan


class Costs:
    """A base of 20M parameters, and LoRA of 40,000 for each rank; a run takes 10 bytes and its rank."""

    room = 10**9

    def steps(self, point):
        return point.config.steps or 100

    def work(self, points):
        widest = max(point.config.rank for point in points)
        flops = 120 if points[0].config.method.name == "full" else 80 + 0.24 * widest
        return flops * max(map(self.steps, points))

    def predict(self, points):
        return len(points) * (10 + max(point.config.rank for point in points)), True

    def tokens(self, points):
        return len(points) * 256 * max(map(self.steps, points))


@pytest.fixture
def planned(configure):
    def planned(*settings, room=10**9, **shared):
        costs = Costs()
        costs.room = room
        runs = [configure(**shared, **own) for own in settings]
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


def test_as_few_packs_as_fit_and_those_even(planned):
    assert ranks(planned(*[{"seed": seed} for seed in range(7)], rank=8, room=18 * 3)) == [[8] * 2, [8] * 2, [8] * 3]
    # What is padded to the widest of a pack takes less where the widest is narrow.
    assert ranks(planned(*[{"rank": rank} for rank in (64, 2, 2, 64)], room=150)) == [[2, 2], [64, 64]]
    assert ranks(planned({}, {"seed": 1}, rank=8, room=1)) == [[8], [8]]  # tried all the same


def test_pack_bounds_how_many(planned):
    assert ranks(planned(*[{"seed": seed} for seed in range(5)], rank=8, pack=2)) == [[8], [8] * 2, [8] * 2]
    assert ranks(planned({}, {"seed": 1}, rank=8, pack=1)) == [[8], [8]]


def test_quick_results_come_first_and_baselines_last(planned):
    packs = planned(
        {"steps": 900},
        {"method": "full", "steps": 10},
        {"steps": 10, "batch": 8},
        {"method": "full", "steps": 1},
        rank=8,
    )
    assert packs == [[(8, 10)], [(8, 900)], [(8, 1)], [(8, 10)]]


def test_an_optimizer_that_is_not_elementwise_shares_equal_ranks_alone(planned):
    several = [{"rank": 4}, {"rank": 8}, {"rank": 4, "seed": 1}]
    assert ranks(planned(*several, optim="adafactor")) == [[4, 4], [8]]
