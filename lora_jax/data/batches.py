"""Batches of a pack: for every run its own examples, for all of them the same shape at the same step.

A compiled step has one length, so examples are padded to the length of a *bucket*. When a bucket is due depends on
the epoch alone; which examples fill it depends on the run's own seed and the epoch alone. So runs of different seeds
share one program, and a run sees the same batches alone as in any pack.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from lora_jax.data.tokens import IGNORED, Encoded
from lora_jax.errors import UserError


@dataclass(frozen=True)
class Buckets:
    """The lengths, in tokens, that examples are padded to: each example to the smallest that holds it."""

    lengths: tuple[int, ...]

    def __post_init__(self):
        rising = all(a < b for a, b in zip((0, *self.lengths), self.lengths, strict=False))
        if not self.lengths or not rising:
            raise UserError(
                f"task.buckets={self.lengths}: expected lengths from the shortest to the longest, like 16,32,64"
            )

    def of(self, encoded: Encoded) -> Int64[np.ndarray, " examples"]:
        """The place in `lengths` of each example's bucket; UserError if an example could be too long for the last."""
        if self.lengths[-1] < encoded.max_length:
            raise UserError(
                f"task.buckets={self.lengths}: texts are cut to {encoded.max_length} tokens; the longest bucket must "
                f"hold as many"
            )
        return np.searchsorted(self.lengths, encoded.lengths)


class Batch(NamedTuple):
    """A step's examples of every run of a pack; `mask` is True at tokens and False at padding."""

    tokens: Int32[np.ndarray, "runs batch length"]
    mask: Bool[np.ndarray, "runs batch length"]
    labels: Int32[np.ndarray, "runs batch *length"]  # one for each example, or for each token


class EvalBatch(NamedTuple):
    """Examples in a fixed order; rows that only fill the batch up have `weight` 0 and `index` -1."""

    tokens: Int32[np.ndarray, "batch length"]
    mask: Bool[np.ndarray, "batch length"]
    labels: Int32[np.ndarray, "batch *length"]  # noqa: F821
    weight: Float32[np.ndarray, " batch"]
    index: Int64[np.ndarray, " batch"]  # type: ignore[assignment]  # hides tuple.index, which nothing here calls


class TrainBatches:
    """``batches[step]`` is the `Batch` of that step, for any step from 0; nothing is kept between calls.

    An epoch of a run is this: its examples in the order of their buckets, by chance within a bucket, cut into batches
    of `batch`, each padded to the bucket of its longest member; then the batches in an order of that epoch. So a
    bucket's last examples may fill up a batch of the next bucket, and every example is seen once, but for the
    len(encoded) % batch that are left over. Those are taken from the buckets that hold most, by chance, anew for each
    run and epoch; so no example is always left out.

    Raises UserError if `encoded` does not fill one batch, or `buckets` do not fit it.
    """

    def __init__(
        self, encoded: Encoded, *, batch: int, buckets: tuple[int, ...], seeds: Sequence[int], pad_id: int = 0
    ):
        if not 1 <= batch <= len(encoded):
            raise UserError(f"batch={batch}: must be from 1 to the {len(encoded)} training examples")
        if not seeds or min(seeds) < 0:
            raise UserError(f"seeds={tuple(seeds)}: expected one for each run, none negative")
        self.encoded, self.batch, self.pad_id = encoded, batch, pad_id
        self.seeds = tuple(seeds)
        self.buckets = Buckets(tuple(buckets))
        self._bucket = self.buckets.of(encoded)
        self._seen = seen_per_bucket(np.bincount(self._bucket, minlength=len(self.buckets.lengths)), batch)
        longest = np.repeat(self.buckets.lengths, self._seen)[batch - 1 :: batch]
        self._batch_lengths: Int[np.ndarray, " steps_per_epoch"] = longest
        # Two epochs, because reading ahead touches the next one early.
        self._schedule = functools.lru_cache(maxsize=2)(self._draw_schedule)
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    @property
    def steps_per_epoch(self) -> int:
        return len(self._batch_lengths)

    def lengths(self) -> tuple[int, ...]:
        """The padded lengths that occur, each at least once in every epoch."""
        return tuple(np.unique(self._batch_lengths).tolist())

    def length_at(self, step: int) -> int:
        """The padded length of a step, the same for every run and seed."""
        epoch, within = self._place(step)
        return int(self._batch_lengths[self._schedule(epoch)[within]])

    def __getitem__(self, step: int) -> Batch:
        epoch, within = self._place(step)
        start = self._schedule(epoch)[within] * self.batch
        examples = self._order(epoch)[:, start : start + self.batch]
        return Batch(*self.encoded.padded(examples, self.length_at(step), self.pad_id))

    def _place(self, step: int) -> tuple[int, int]:
        if step < 0:
            raise IndexError(f"step {step}: steps count from 0")
        return divmod(step, self.steps_per_epoch)

    def _draw_schedule(self, epoch: int) -> Int[np.ndarray, " steps_per_epoch"]:
        return _shuffled(self.steps_per_epoch, 0, epoch)

    def _draw_order(self, epoch: int) -> Int[np.ndarray, "runs seen"]:
        drawn = {seed: self._draw_run(seed, epoch) for seed in set(self.seeds)}
        return np.stack([drawn[seed] for seed in self.seeds])

    def _draw_run(self, seed: int, epoch: int) -> Int[np.ndarray, " seen"]:
        chance = _shuffled(len(self.encoded), 1, epoch, seed)
        order = chance[np.argsort(self._bucket[chance], kind="stable")]
        ends = np.cumsum(np.bincount(self._bucket, minlength=len(self._seen)))
        starts = ends - np.diff(ends, prepend=0)
        return np.concatenate([order[a : a + n] for a, n in zip(starts, self._seen, strict=True)])


class EvalBatches:
    """A sequence of `EvalBatch`: every example once, sorted by length, each in the smallest bucket that holds it."""

    def __init__(self, encoded: Encoded, *, batch: int, buckets: tuple[int, ...], pad_id: int = 0):
        if batch < 1:
            raise UserError(f"batch={batch}: must be at least 1")
        self.encoded, self.batch, self.pad_id = encoded, batch, pad_id
        self.buckets = Buckets(tuple(buckets))
        bucket = self.buckets.of(encoded)
        order = np.argsort(encoded.lengths, kind="stable")
        self._rows: list[Int64[np.ndarray, " batch"]] = []
        self._lengths: list[int] = []
        for i, length in enumerate(self.buckets.lengths):
            members = order[bucket[order] == i]
            for start in range(0, len(members), batch):
                rows = members[start : start + batch]
                self._rows.append(np.pad(rows, (0, batch - len(rows)), constant_values=-1))
                self._lengths.append(length)

    def __len__(self) -> int:
        return len(self._rows)

    def lengths(self) -> tuple[int, ...]:
        """The padded lengths that occur."""
        return tuple(sorted(set(self._lengths)))

    def __getitem__(self, i: int) -> EvalBatch:
        index = self._rows[i]
        real = index >= 0
        tokens, mask, labels = self.encoded.padded(np.maximum(index, 0), self._lengths[i], self.pad_id)
        tokens[~real], mask[~real] = self.pad_id, False
        # Models divide by the number of tokens: a row that only fills up has one, a padding token.
        mask[~real, 0] = True
        labels[~real] = IGNORED if self.encoded.by_token else 0
        return EvalBatch(tokens, mask, labels, real.astype(np.float32), index)

    def restore(self, rows: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
        """What was computed for every batch, along its `axis` of batch rows, as one array in the examples' order."""
        index = np.concatenate([np.zeros(0, np.int64), *self._rows])
        real = np.flatnonzero(index >= 0)
        return np.take(np.concatenate(rows, axis), real[np.argsort(index[real])], axis)


def prefetch(batches: TrainBatches, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps `start` to `stop` - 1 in order, made a few steps ahead in a thread of grain's.

    To resume takes nothing but the step.
    """
    import grain  # it imports jax, and planning a sweep should not

    source = grain.MapDataset.range(start, stop).map(batches.__getitem__)
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))


def seen_per_bucket(counts: Int[np.ndarray, " buckets"], batch: int) -> Int[np.ndarray, " buckets"]:
    """How many of each bucket's examples an epoch sees: all, less the remainder, off whichever bucket holds most."""
    seen = counts.copy()
    for _ in range(counts.sum() % batch):
        seen[seen.argmax()] -= 1
    return seen


def _shuffled(n: int, *key: int) -> Int[np.ndarray, " n"]:
    """A permutation of range(n), fixed by `key`: from raw bits, as numpy may change what `permutation` draws."""
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(bits, kind="stable")
